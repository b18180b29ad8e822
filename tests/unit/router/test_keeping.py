"""What is kept of visits, in batches, on a disk that is bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf import json_format

from hatoba.sampling import RateSampler
from hatoba.v1 import deployment_pb2
from hatoba_scheduler import validation
from hatoba_worker.router.keeping import MOST_BYTES, Chooser, requests
from hatoba_worker.router.reports import MOST_BYTES as MOST_WAITING
from hatoba_worker.router.reports import Reports
from hatoba_worker.router.spool import Spool
from hatoba_worker.router.table import Table
from hatoba_worker.router.visits import Body, Tracer, Visit

READER = "projects/default/deployments/reader"
TRACE, SPAN = "ab" * 16, "cd" * 8


def visits(rate: float = 1.0, sampled: bool = True) -> Callable[..., Visit]:
    """Makes visits of one deployment."""
    table = Table()
    route = deployment_pb2.Route(deployment=READER)
    route.capture.dataset, route.capture.rate = "faces", rate
    target = route.targets.add(revision=1, weight=100)
    target.model_version = "projects/default/models/digits/versions/7"
    target.replicas.add(name="r-1", address="127.0.0.1:1")
    table.apply(deployment_pb2.WatchDeploymentsResponse(complete=True, routes=[route]))
    tracer = Tracer(Random(3), RateSampler(1e9 if sampled else 0.0, 0.0, lambda: 0.0))

    def make(
        asked: bytes = b"{}", answered: bytes = b"1", media: str = "application/json"
    ) -> Visit:
        visit = Visit("POST", "/reader/predict", tracer.begin(None), began=1_000, ended=3_000)
        visit.route = table.route("/reader")
        assert visit.route is not None
        visit.choice = visit.route.pick(0.0, Random(1))
        visit.call_began, visit.status = 2_000, 200
        visit.asked = Body(asked, "image/png\udcff")
        visit.answered = Body(answered, media)
        return visit

    return make


def only(visit: Visit) -> deployment_pb2.ReportPredictionsRequest:
    """The one batch that it makes."""
    [request] = requests([(visit, True)])
    validation.check(request)
    return request


def prediction(answered: bytes, media: str = "application/json") -> Any:
    """A prediction as it stands in a captured item, through the wire and JSON."""
    request = only(visits()(answered=answered, media=media))
    again = deployment_pb2.ReportPredictionsRequest.FromString(request.SerializeToString())
    attributes = json_format.MessageToDict(again.captured[0].item.attributes)
    json.dumps(attributes, allow_nan=False)
    return attributes["prediction"]


@pytest.mark.parametrize(
    ("answered", "kept"),
    [
        (b'{"digit": 7, "p": [0.5]}', {"digit": 7, "p": [0.5]}),
        (b"null", None),
        (b"NaN", "NaN"),
        (b"1e999", "1e999"),
        (b"9" * 400, "9" * 400),
        (b"[" * 50 + b"]" * 50, "[" * 50 + "]" * 50),
        (b"[" * 20_000 + b"]" * 20_000, "[" * 20_000 + "]" * 20_000),
        (b'"\\ud800"', '"\\ud800"'),
        (b"no json", "no json"),
        (b"\xff\xfe", "//4="),
    ],
)
def test_whatever_was_answered_can_be_kept(answered: bytes, kept: Any) -> None:
    assert prediction(answered) == kept


def test_text_stays_text() -> None:
    assert prediction(b"7", "text/plain") == "7"


def test_a_batch_is_what_the_server_takes() -> None:
    request = only(visits()(asked=b"\x89PNG"))
    [item] = request.captured
    assert (item.dataset, item.item.data, item.item.media_type) == (
        "faces",
        b"\x89PNG",
        "image/png",
    )
    assert item.item.id == request.predictions[0].item == request.predictions[0].trace_id
    assert [span.name for span in request.spans] == ["predict", "predict.replica"]


def test_batches_are_small_enough_to_send() -> None:
    make = visits()
    many = list(requests((make(asked=b"x" * 200_000), True) for _ in range(50)))
    assert sum(len(one.captured) for one in many) == 50
    assert max(one.ByteSize() for one in many) <= MOST_BYTES
    assert len({one.batch for one in many}) == len(many)
    few = list(requests((make(), False) for _ in range(2_500)))
    assert [len(one.predictions) for one in few] == [1_000, 1_000, 500]


def test_captured_are_good_whole_and_small_ones_at_their_rate() -> None:
    chooser = Chooser(Random(5))
    make = visits(rate=0.25)
    assert 200 < sum(chooser.wants_capture(make()) for _ in range(1_000)) < 300
    every = visits(rate=1.0)
    assert chooser.wants_capture(every())
    failed = every()
    failed.status = 500
    assert not chooser.wants_capture(failed)
    streamed = every()
    streamed.answered = None
    assert not chooser.wants_capture(streamed)
    assert chooser.wants_capture(every(asked=b"x" * 262_143))
    assert not chooser.wants_capture(every(asked=b"x" * 262_144))
    assert not chooser.wants_capture(visits(rate=0.0)())


def test_a_callers_trace_goes_on_and_a_bad_one_is_none() -> None:
    tracer = Tracer(Random(3), RateSampler(10.0, 0.0, lambda: 0.0))
    trace = tracer.begin(f"00-{TRACE}-{SPAN}-01")
    assert (trace.trace_id, trace.parent_id, trace.sampled) == (TRACE, SPAN, True)
    assert trace.of_router == f"00-{TRACE}-{trace.span_id}-01"
    assert not tracer.begin(f"00-{TRACE}-{SPAN}-00").sampled
    fresh = tracer.begin("00-zz-yy-01")
    assert (len(fresh.trace_id), fresh.parent_id) == (32, "")


def test_above_the_rate_a_share_is_kept() -> None:
    tracer = Tracer(Random(3), RateSampler(5.0, 0.5, lambda: 0.0))
    kept = [tracer.begin(None).sampled for _ in range(1_000)]
    assert kept[:5] == [True] * 5
    assert 400 < sum(kept) < 600


# -- waiting --------------------------------------------------------------------------------------


def reports(tmp_path: Path) -> Reports:
    """With a disk of its own."""
    return Reports(Spool(tmp_path / "spool", lambda: 1), Chooser(Random(5)))


async def test_memory_is_bounded_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    made = reports(tmp_path)
    make = visits()
    # One counts for its bodies and a thousand bytes.
    fit = MOST_WAITING // 201_001
    for _ in range(fit + 5):
        made(make(asked=b"x" * 200_000))
    assert made.dropped["visits"] == 5


async def test_what_is_neither_sampled_nor_captured_is_not_kept(tmp_path: Path) -> None:
    made = reports(tmp_path)
    unsampled = visits(rate=0.0, sampled=False)()
    made(unsampled)
    assert unsampled.asked is None
    never_asked = visits()()
    never_asked.call_began = 0
    made(never_asked)
    assert never_asked.asked is None
    assert made.dropped == {"visits": 0, "batches": 0, "refused": 0}


async def test_a_batch_that_is_none_is_dropped_and_others_go_on(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", lambda: 1)
    await asyncio.to_thread(spool.open)
    await asyncio.to_thread(spool.put, "broken", b"\xff\xff")
    good = only(visits()())
    await asyncio.to_thread(spool.put, good.batch, good.SerializeToString())
    made = Reports(spool, Chooser(Random(5)))
    sent: list[str] = []

    async def send(
        request: deployment_pb2.ReportPredictionsRequest,
    ) -> deployment_pb2.ReportPredictionsResponse:
        sent.append(request.batch)
        return deployment_pb2.ReportPredictionsResponse(refused=1)

    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(made.serve(send))
        while await asyncio.to_thread(spool.entries):  # noqa: ASYNC110 - a file sets no event
            await asyncio.sleep(0)
        serving.cancel()
    assert sent == [good.batch]
    assert made.dropped == {"visits": 0, "batches": 1, "refused": 1}


def test_the_oldest_make_room_and_half_written_ones_go(tmp_path: Path) -> None:
    numbers = count(1)
    spool = Spool(tmp_path / "spool", lambda: next(numbers), 1_000)
    spool.open()
    assert [spool.put(f"b{number}", b"x" * 400) for number in range(4)] == [0, 0, 1, 1]
    assert [entry.batch for entry in spool.entries()] == ["b2", "b3"]
    assert spool.put("large", b"x" * 5_000) == 2
    (tmp_path / "spool" / "half.new").write_bytes(b"x")
    again = Spool(tmp_path / "spool", lambda: 0, 1_000)
    again.open()
    again.put("after", b"")
    assert [entry.batch for entry in again.entries()][-1] != "half"
    assert not (tmp_path / "spool" / "half.new").exists()


def test_order_holds_when_the_clock_does_not_move(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", lambda: 5)
    spool.open()
    for name in "cab":
        spool.put(name, b"")
    assert [entry.batch for entry in spool.entries()] == ["c", "a", "b"]
