"""Calls and streams over a connection that breaks, to a server that moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from hatoba import errors
from hatoba.aio import AsyncClient
from hatoba.following import LogQuery, Resync
from hatoba.settings import Server
from hatoba.tracing import Tracer, parse_traceparent
from hatoba.transport import Timing, method_path
from hatoba.v1 import admin_pb2, job_pb2, worker_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Locate = Callable[[], Server]


class Pauses:
    """A clock that never waits and keeps what it was asked for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


def client_of(locate: Locate, pauses: Pauses, told: list[str] | None = None) -> AsyncClient:
    timing = Timing(pauses.sleep, lambda: 1.0)
    notify = told.append if told is not None else lambda _: None
    return AsyncClient(locate=locate, timing=timing, tracer=Tracer(environ={}), notify=notify)


async def sequence(client: AsyncClient) -> list[int]:
    """The numbers of a job's events; 0 for each resync."""
    async with aclosing(client.events("train-1", cursor="0")) as events:
        return [0 if isinstance(event, Resync) else event.seq async for event in events]


async def test_a_read_is_tried_again_when_the_server_is_away(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.add_job()
    fake.refuse("GetJobRequest", grpc.StatusCode.UNAVAILABLE, times=3)
    async with client_of(locate, pauses) as client:
        assert (await client.get("train-1")).uid
    assert pauses.seconds == [0.2, 0.4, 0.8]


async def test_after_four_tries_it_is_unavailable(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.refuse("GetJobRequest", grpc.StatusCode.UNAVAILABLE, "draining", times=9)
    async with client_of(locate, pauses) as client:
        with pytest.raises(errors.Unavailable, match="draining"):
            await client.get("train-1")
    assert len(fake.requests("GetJobRequest")) == 4


async def test_a_submit_is_repeated_with_the_same_request_id(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.refuse("SubmitJobRequest", grpc.StatusCode.UNAVAILABLE, times=2)
    async with client_of(locate, pauses) as client:
        await client.submit("true", code=None)
    requests = fake.requests("SubmitJobRequest")
    assert len(requests) == 3
    assert len({request.request_id for request in requests}) == 1


async def test_a_call_without_an_id_is_never_repeated(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.refuse("CordonHostRequest", grpc.StatusCode.UNAVAILABLE)
    async with client_of(locate, pauses) as client:
        with pytest.raises(errors.Unavailable):
            await client.call(worker_pb2.CordonHostRequest(name="here"), worker_pb2.Host)
    assert len(fake.requests("CordonHostRequest")) == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.NotFound),
        (grpc.StatusCode.ALREADY_EXISTS, errors.AlreadyExists),
        (grpc.StatusCode.UNAUTHENTICATED, errors.NotAllowed),
        (grpc.StatusCode.PERMISSION_DENIED, errors.NotAllowed),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.FailedPrecondition),
        (grpc.StatusCode.ABORTED, errors.Aborted),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Exhausted),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.INTERNAL, errors.ServerError),
    ],
)
async def test_every_code_has_its_kind(
    fake: FakeServer,
    locate: Locate,
    pauses: Pauses,
    code: grpc.StatusCode,
    kind: type[errors.HatobaError],
) -> None:
    fake.refuse("GetJobRequest", code, "no")
    async with client_of(locate, pauses) as client:
        with pytest.raises(kind, match="no"):
            await client.get("x")


async def test_details_are_read(fake: FakeServer, locate: Locate, pauses: Pauses) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(
        field="spec.name", description="must not be empty", reason="string.min"
    )
    info = error_details_pb2.ErrorInfo(reason="INVALID_FIELD", metadata={"trace_id": "ab"})
    link = error_details_pb2.Help(links=[{"description": "give it a name"}])
    resource = error_details_pb2.ResourceInfo(resource_type="job", resource_name="train-1")
    quota = error_details_pb2.QuotaFailure(violations=[{"subject": "q", "description": "full"}])
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="wrong")
    for detail in (bad, info, link, resource, quota, any_pb2.Any(type_url="x/unknown.Kind")):
        status.details.add().Pack(detail)
    fake.refuse(
        "GetJobRequest",
        grpc.StatusCode.INVALID_ARGUMENT,
        "wrong",
        details=status.SerializeToString(),
    )
    async with client_of(locate, pauses) as client:
        with pytest.raises(errors.InvalidRequest) as raised:
            await client.get("x")
    error = raised.value
    assert [(v.field, v.description, v.reason) for v in error.violations] == [
        ("spec.name", "must not be empty", "string.min")
    ]
    assert (error.reason, error.details.metadata) == ("INVALID_FIELD", {"trace_id": "ab"})
    assert (error.remedy, error.details.resource) == ("give it a name", "train-1")
    assert error.details.preconditions[0].description == "full"


async def test_the_server_says_how_long_to_wait(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.add_job()
    status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="starting")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    status.details.add().Pack(retry)
    fake.refuse("GetJobRequest", grpc.StatusCode.UNAVAILABLE, details=status.SerializeToString())
    async with client_of(locate, pauses) as client:
        await client.get("train-1")
    assert pauses.seconds == [1.5]


def too_much(reason: str) -> bytes:
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="too much")
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(700)
    for detail in (error_details_pb2.ErrorInfo(reason=reason), retry):
        status.details.add().Pack(detail)
    packed: bytes = status.SerializeToString()
    return packed


@pytest.mark.parametrize("reason", ["RATE_LIMITED", "TOO_MANY_CALLS"])
async def test_too_much_at_once_is_sent_again_after_the_delay_that_was_told(
    fake: FakeServer, locate: Locate, pauses: Pauses, reason: str
) -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    fake.refuse("SubmitJobRequest", code, details=too_much(reason), times=2)
    async with client_of(locate, pauses) as client:
        await client.submit("true", code=None)
    assert len(fake.requests("SubmitJobRequest")) == 3
    assert all(0.7 <= seconds <= 1.05 for seconds in pauses.seconds)


async def test_a_full_queue_is_told_at_once(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    fake.refuse("SubmitJobRequest", code, details=too_much("QUOTA_EXCEEDED"))
    async with client_of(locate, pauses) as client:
        with pytest.raises(errors.Exhausted):
            await client.submit("true", code=None)
    assert pauses.seconds == []


async def test_a_watch_that_is_one_too_many_is_tried_again(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.refuse(
        "WatchJobsRequest", grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"
    )
    async with client_of(locate, pauses) as client:
        await sequence(client)
    assert len(fake.requests("WatchJobsRequest")) == 2


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\x1a\xff\xff", b"\x1a\x05\x0a\x01", b"\x0b", b"\x1a"]
)
def test_broken_details_are_no_details(data: bytes) -> None:
    from hatoba._status_details import parse_details

    assert parse_details(data).violations == []


async def test_the_token_goes_with_every_call(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.run_through()
    async with client_of(locate, pauses) as client:
        await (await client.job("train-1")).wait()
    assert {data.get("authorization") for data in fake.metadata} == {
        "Bearer hatoba-token-for-tests"
    }


async def test_a_server_that_moved_is_found_again(fake: FakeServer, pauses: Pauses) -> None:
    fake.add_job()
    places = ["127.0.0.1:1", fake.address]
    async with client_of(
        lambda: Server(places.pop(0) if places else fake.address), pauses
    ) as client:
        assert (await client.get("train-1")).uid
        assert client.server.address == fake.address


async def test_a_watch_goes_on_after_its_cursor_without_gap_or_duplicate(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.run_through()
    fake.breaks = [1, 0, 2]
    told: list[str] = []
    async with client_of(locate, pauses, told) as client:
        seen = await sequence(client)
    assert seen == [1, 2, 3, 4]
    assert [request.cursor for request in fake.requests("WatchJobsRequest")] == ["0", "1", "1", "3"]
    away, back = "the server does not answer; going on when it is back", "the server answers again"
    assert told == [away, back, away, back]


async def test_an_end_that_was_not_said_is_not_believed(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.run_through()
    fake.breaks, fake.politely = [2], True
    async with client_of(locate, pauses) as client:
        seen = await sequence(client)
    assert seen == [1, 2, 3, 4]


async def test_a_watcher_that_was_too_slow_is_told_and_goes_on(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.run_through()
    fake.oldest = 3
    async with client_of(locate, pauses) as client:
        assert await sequence(client) == [0, 3, 4]


async def test_a_watch_on_a_server_that_was_never_there_fails(pauses: Pauses) -> None:
    async with client_of(lambda: Server("127.0.0.1:1"), pauses) as client:
        with pytest.raises(errors.Unavailable):
            await anext(client.events())
    assert len(pauses.seconds) == 3


@pytest.mark.parametrize("stream", ["", "stdout"])
async def test_a_log_is_whole_however_often_it_breaks(
    fake: FakeServer, locate: Locate, pauses: Pauses, stream: str
) -> None:
    text = bytes(range(256)) * 3
    fake.run_through(out=text, err=b"warned" * 5)
    fake.breaks = [3, 1, 0, 7, 2, 30]
    query = LogQuery("train-1", attempt=1, stream=stream, follow=True)
    parts: dict[str, bytes] = {}
    async with client_of(locate, pauses) as client, aclosing(client.logs(query)) as pieces:
        async for piece in pieces:
            assert piece.offset == len(parts.get(piece.stream, b""))
            parts[piece.stream] = parts.get(piece.stream, b"") + piece.data
    assert parts["stdout"] == text
    assert parts.get("stderr", b"") == (b"" if stream else b"warned" * 5)


async def test_wait_returns_the_ended_job(fake: FakeServer, locate: Locate, pauses: Pauses) -> None:
    fake.run_through(state="FAILED")
    async with client_of(locate, pauses) as client:
        job = await client.job("train-1")
        assert job_pb2.Job.FromString((await job.wait()).SerializeToString()).uid == job.record.uid
        assert job.state == "FAILED"


async def test_wait_has_an_end_of_its_own(fake: FakeServer, locate: Locate) -> None:
    fake.run_through()
    fake.events.pop()
    fake.breaks, fake.politely = [0] * 100_000, True
    async with AsyncClient(locate=locate) as client:
        with pytest.raises(errors.DeadlineExceeded, match=r"0\.02"):
            await (await client.job("train-1")).wait(timeout=0.02)


async def test_spans_are_pushed_and_their_loss_hurts_nobody(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    fake.refuse("PushSpansRequest", grpc.StatusCode.PERMISSION_DENIED)
    async with client_of(locate, pauses) as client:
        await client.cancel("train-1")
    assert len(fake.requests("PushSpansRequest")) == 1


async def test_a_trace_that_is_open_already_goes_on(
    fake: FakeServer, locate: Locate, pauses: Pauses
) -> None:
    outer = f"00-{'ab' * 16}-{'cd' * 8}-01"
    tracer = Tracer(environ={"TRACEPARENT": outer})
    async with AsyncClient(locate=locate, tracer=tracer) as client:
        await client.cancel("train-1")
    assert fake.pushed[0].trace_id == "ab" * 16
    assert fake.pushed[0].parent_span_id == "cd" * 8


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"01-{'ab' * 16}-{'cd' * 8}-01",
        f"00-{'0' * 32}-{'cd' * 8}-01",
        f"00-{'ab' * 16}-{'0' * 16}-01",
        f"00-{'AB' * 16}-{'cd' * 8}-01",
    ],
)
def test_a_bad_traceparent_begins_a_new_trace(text: str) -> None:
    assert parse_traceparent(text) is None


def test_every_request_has_one_method() -> None:
    assert method_path(job_pb2.SubmitJobRequest.DESCRIPTOR) == "/hatoba.v1.JobService/SubmitJob"
    assert method_path(admin_pb2.PushSpansRequest.DESCRIPTOR) == "/hatoba.v1.AdminService/PushSpans"
    with pytest.raises(ValueError, match="no method takes"):
        method_path(job_pb2.Job.DESCRIPTOR)
