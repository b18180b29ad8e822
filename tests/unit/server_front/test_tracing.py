"""Spans, their ids, and where they are kept."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from hatoba.sampling import RateSampler
from hatoba.v1 import job_pb2
from hatoba_scheduler import validation
from hatoba_scheduler.telemetry import otlp
from hatoba_scheduler.telemetry.trace_store import QUEUE_SPANS, TraceStore
from hatoba_scheduler.telemetry.tracing import (
    FinishedSpan,
    SpanContext,
    Tracer,
    parse_traceparent,
)

TRACE, SPAN = "ab" * 16, "cd" * 8


# -- contexts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_good_headers_are_read(header: str, sampled: bool) -> None:
    assert parse_traceparent(header) == SpanContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-zz",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
    ],
)
def test_broken_headers_are_as_good_as_none(header: str | None) -> None:
    assert parse_traceparent(header) is None


def test_a_header_says_what_it_was_made_of() -> None:
    context = Tracer(rng=Random(1)).root(sampled=True)
    assert parse_traceparent(context.traceparent) == context


# -- what is kept --------------------------------------------------------------------------------


def test_all_traces_are_kept_below_the_rate_and_a_share_above_it() -> None:
    now = 0.0
    tracer = Tracer(rng=Random(7), sampler=RateSampler(50, 0.1, lambda: now))
    first = [tracer.root().sampled for _ in range(50)]
    then = [tracer.root().sampled for _ in range(2_000)]
    assert all(first)
    assert 140 <= sum(then) <= 260
    now += 0.5
    assert all(tracer.root().sampled for _ in range(25))


def test_a_caller_cannot_force_more_than_the_rate() -> None:
    tracer = Tracer(rng=Random(7), sampler=RateSampler(5, 0.0, lambda: 0.0))
    wished = [tracer.accept(SpanContext(TRACE, SPAN, sampled=True)) for _ in range(9)]
    assert [context.sampled for context in wished] == [True] * 5 + [False] * 4
    assert not tracer.accept(SpanContext(TRACE, SPAN, sampled=False)).sampled


def test_children_follow_their_parent() -> None:
    tracer = Tracer(rng=Random(7))
    for sampled in (True, False):
        parent = tracer.root(sampled=sampled)
        child = tracer.child(parent)
        assert (child.trace_id, child.sampled) == (parent.trace_id, sampled)
        assert child.span_id != parent.span_id


def test_a_span_can_be_emitted_long_after_its_id_was_given() -> None:
    spans: list[FinishedSpan] = []
    parent = Tracer().root(sampled=True)
    stored = parse_traceparent(Tracer().child(parent).traceparent)
    assert stored is not None
    after_restart = Tracer([spans.append], service="hatoba-server")
    after_restart.emit(
        stored, "attempt", start_ns=5, end_ns=9, parent_id=parent.span_id, attributes={"n": "1"}
    )
    (span,) = spans
    assert span.context == stored
    assert (span.parent_id, span.start_ns, span.end_ns) == (parent.span_id, 5, 9)


def test_what_is_not_kept_is_not_emitted() -> None:
    spans: list[FinishedSpan] = []
    tracer = Tracer([spans.append])
    tracer.emit(tracer.root(sampled=False), "x", start_ns=1)
    assert not spans


def test_a_block_that_raises_marks_its_span() -> None:
    spans: list[FinishedSpan] = []
    tracer = Tracer([spans.append], clock_ns=iter(range(1, 9)).__next__)
    root = tracer.root(sampled=True)
    with tracer.span("good", root) as span:
        span.attributes["k"] = "v"
    with pytest.raises(KeyError), tracer.span("bad", span.context):
        raise KeyError
    good, bad = spans
    assert (good.error, good.attributes, good.parent_id) == ("", {"k": "v"}, root.span_id)
    assert (bad.error, bad.parent_id) == ("KeyError", good.context.span_id)
    assert (good.start_ns, good.end_ns) == (1, 2)


def test_a_span_as_message_keeps_the_contracts_rules() -> None:
    attributes = {"k" * 500: "v" * 5_000}
    context = SpanContext(TRACE, SPAN, sampled=True)
    span = FinishedSpan(context, "", "n" * 500, "server", 1, 2, "e" * 5_000, attributes, "a/1")
    assert not validation.violations(span.to_message())


# -- the trace store -----------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[TraceStore]:
    store = TraceStore(tmp_path / "traces.db", kept=100)
    yield store
    await store.close()


def _span(number: int, trace_id: str = TRACE) -> job_pb2.Span:
    return job_pb2.Span(
        trace_id=trace_id, span_id=f"{number + 1:016x}", name=f"n{number}", start_unix_nanos=number
    )


async def test_spans_are_read_by_trace_in_order_of_start(store: TraceStore) -> None:
    store.add([_span(2), _span(0), _span(1, "ef" * 16)])
    store(FinishedSpan(SpanContext(TRACE, SPAN, True), "", "own", "server", 1, 2, "", {}, "s/1"))
    assert [span.name for span in await store.trace(TRACE)] == ["n0", "own", "n2"]
    assert [span.name for span in await store.trace("ef" * 16)] == ["n1"]
    assert await store.trace("00" * 16) == []


async def test_a_span_that_comes_twice_is_kept_once(store: TraceStore) -> None:
    store.add([_span(1), _span(1)])
    await store.trace(TRACE)
    store.add([_span(1)])
    assert len(await store.trace(TRACE)) == 1


async def test_the_oldest_spans_go_first(store: TraceStore) -> None:
    store.add(_span(number) for number in range(250))
    kept = await store.trace(TRACE)
    assert [span.start_unix_nanos for span in kept] == list(range(150, 250))


async def test_spans_survive_a_restart(tmp_path: Path) -> None:
    first = TraceStore(tmp_path / "traces.db")
    first.add([_span(1)])
    await first.close()
    second = TraceStore(tmp_path / "traces.db")
    assert len(await second.trace(TRACE)) == 1
    await second.close()
    assert await second.trace(TRACE) == []


async def test_a_flood_is_dropped_counted_and_never_waited_for(tmp_path: Path) -> None:
    locker = sqlite3.connect(tmp_path / "traces.db", isolation_level=None)
    store = TraceStore(tmp_path / "traces.db", kept=1_000_000)
    await store.trace(TRACE)
    locker.execute("BEGIN EXCLUSIVE")
    store.add(_span(number) for number in range(QUEUE_SPANS * 2))
    assert store.dropped >= QUEUE_SPANS // 2
    locker.execute("ROLLBACK")
    locker.close()
    await store.close()


@pytest.mark.parametrize("damage", ["rubbish", "another"])
async def test_a_file_that_cannot_be_used_is_begun_anew(tmp_path: Path, damage: str) -> None:
    _write(tmp_path / "traces.db", damage)
    store = TraceStore(tmp_path / "traces.db")
    store.add([_span(1)])
    kept = await store.trace(TRACE)
    await store.close()
    assert len(kept) == (1 if damage == "rubbish" else 0)
    assert store.dropped == (0 if damage == "rubbish" else 1)


async def test_a_directory_that_is_away_costs_spans_only(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "away" / "traces.db")
    store.add([_span(1)])
    assert await store.trace(TRACE) == []
    assert store.dropped == 1
    _make(tmp_path / "away")
    store.add([_span(2)])
    assert len(await store.trace(TRACE)) == 1
    await store.close()


def _make(path: Path) -> None:
    path.mkdir()


def _write(path: Path, damage: str) -> None:
    if damage == "rubbish":
        path.write_bytes(b"rubbish" * 10_000)
        return
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE span (other TEXT)")
    database.close()


# -- OTLP ----------------------------------------------------------------------------------------


@pytest.fixture
def exported() -> Callable[[FinishedSpan], ReadableSpan]:
    def export(span: FinishedSpan) -> ReadableSpan:
        exporter = InMemorySpanExporter()
        sink = otlp.OtlpSink(exporter, {"service.name": "hatoba-server"})
        sink(span)
        sink._processor.force_flush()
        (done,) = exporter.get_finished_spans()
        sink.close()
        return done

    return export


def test_a_collector_gets_ids_times_kind_and_status(
    exported: Callable[[FinishedSpan], ReadableSpan],
) -> None:
    context = SpanContext(TRACE, SPAN, sampled=True)
    span = FinishedSpan(context, "ef" * 8, "n", "server", 5, 9, "NOT_FOUND", {"a": "b"}, "s/1")
    done = exported(span)
    assert done.context is not None
    assert done.parent is not None
    assert (f"{done.context.trace_id:032x}", f"{done.context.span_id:016x}") == (TRACE, SPAN)
    assert f"{done.parent.span_id:016x}" == "ef" * 8
    assert (done.start_time, done.end_time, done.kind) == (5, 9, SpanKind.SERVER)
    assert (done.status.status_code, done.status.description) == (StatusCode.ERROR, "NOT_FOUND")
    assert done.attributes == {"a": "b"}


def test_a_root_span_has_no_parent_and_no_error(
    exported: Callable[[FinishedSpan], ReadableSpan],
) -> None:
    context = SpanContext(TRACE, SPAN, sampled=True)
    done = exported(FinishedSpan(context, "", "n", "internal", 5, 9, "", {}, "s/1"))
    assert done.parent is None
    assert done.status.status_code is StatusCode.UNSET


def test_a_collector_that_is_away_does_not_hold_up_the_end() -> None:
    sink = otlp.open_sink("http://127.0.0.1:1", "0.1.0", "c")
    sink(FinishedSpan(SpanContext(TRACE, SPAN, True), "", "n", "internal", 5, 9, "", {}, "s/1"))
    began = time.monotonic()
    sink.close(seconds=0.02)
    assert time.monotonic() - began < otlp.FLUSH_SECONDS
