"""What callers see of the front: who may call, what they get when something is wrong."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from waiting import until

from hatoba.v1 import (
    artifact_pb2,
    artifact_pb2_grpc,
    job_pb2,
    runner_pb2,
    runner_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from hatoba_scheduler import errors
from hatoba_scheduler.auth import Role
from hatoba_scheduler.errors import Reason
from hatoba_scheduler.interceptors import Phase, current_call

from .conftest import MAX_BYTES, Failure, Harness, collect, failing, good_submit

SUBMIT = "hatoba.v1.JobService/SubmitJob"
WATCH = "hatoba.v1.JobService/WatchJobs"
TAIL = "hatoba.v1.JobService/TailLogs"


# -- who may call --------------------------------------------------------------------------------


def _headers(front: Harness, kind: str) -> tuple[tuple[str, str], ...]:
    good = front.tokens[Role.ADMIN]
    values = {
        "basic": "Basic YWRtaW46YWRtaW4=",
        "text": "Bearer not-a-token",
        "other": f"Bearer {good[:-4]}AAAA",
        "unknown": f"Bearer hb_000000000000_{'A' * 32}",
    }
    return (("authorization", values[kind]),) if kind in values else ()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("none", Reason.TOKEN_MISSING),
        ("basic", Reason.TOKEN_MALFORMED),
        ("text", Reason.TOKEN_MALFORMED),
        ("other", Reason.TOKEN_UNKNOWN),
        ("unknown", Reason.TOKEN_UNKNOWN),
    ],
)
async def test_a_call_without_a_good_token_is_refused(
    front: Harness, kind: str, reason: Reason
) -> None:
    failure = await failing(front.jobs.SubmitJob(good_submit(), metadata=_headers(front, kind)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, reason)
    assert not front.script.seen
    assert front.calls(SUBMIT, "UNAUTHENTICATED") == 1


@pytest.mark.parametrize("method", ["watch", "tail", "connect", "upload"])
async def test_streams_need_a_token_too(front: Harness, method: str) -> None:
    calls: dict[str, Any] = {
        "watch": lambda: collect(front.jobs.WatchJobs(job_pb2.WatchJobsRequest())),
        "tail": lambda: collect(front.jobs.TailLogs(job_pb2.TailLogsRequest(job="a"))),
        "connect": lambda: collect(_connect(front, [], ())),
        "upload": lambda: _upload(front, [b"x"], ()),
    }
    failure = await failing(calls[method]())
    assert failure.code is grpc.StatusCode.UNAUTHENTICATED


async def test_an_expired_token_is_refused(front: Harness) -> None:
    _, text = await front.authenticator.create("ann", Role.USER, ttl=1_000_000)
    metadata = (("authorization", f"Bearer {text}"),)
    await front.jobs.SubmitJob(good_submit(), metadata=metadata)
    front.clock.now += 1_000_000
    failure = await failing(front.jobs.SubmitJob(good_submit(), metadata=metadata))
    assert failure.reason == Reason.TOKEN_EXPIRED


async def test_a_revoked_token_is_refused(front: Harness) -> None:
    await front.authenticator.revoke(front.records[Role.USER].id)
    failure = await failing(front.submit(Role.USER))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAUTHENTICATED,
        Reason.TOKEN_REVOKED,
    )


@pytest.mark.parametrize("role", [Role.VIEWER, Role.WORKER])
async def test_roles_that_may_not_submit_are_told_which_may(front: Harness, role: Role) -> None:
    failure = await failing(front.submit(role))
    assert failure.code is grpc.StatusCode.PERMISSION_DENIED
    assert failure.reason == Reason.ROLE_INSUFFICIENT
    assert "admin or user" in failure.message
    assert not front.script.seen


async def test_a_viewer_may_read(front: Harness) -> None:
    request = job_pb2.GetJobRequest(name="digits-1")
    front.script.unary = _answers(job_pb2.Job(name="digits-1"))
    job = await front.jobs.GetJob(request, metadata=front.metadata(Role.VIEWER))
    assert job.name == "digits-1"


async def test_an_unknown_method_is_unimplemented(front: Harness) -> None:
    failure = await failing(front.raw("hatoba.v1.JobService/Nothing", b"", front.metadata()))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNIMPLEMENTED,
        Reason.UNKNOWN_METHOD,
    )
    assert front.calls("other", "UNIMPLEMENTED") == 1


async def test_a_big_body_without_a_token_is_refused_unread(front: Harness) -> None:
    raw = b"x" * (MAX_BYTES * 8)
    failure = await failing(front.raw(SUBMIT, raw))
    assert failure.code is grpc.StatusCode.UNAUTHENTICATED


# -- who is calling ------------------------------------------------------------------------------


async def test_servicers_know_the_call(front: Harness) -> None:
    known: list[tuple[str, Role | None, str, str]] = []

    async def note(request: Any, context: Any) -> job_pb2.Job:
        call = current_call()
        call.trailers.append(("hatoba-deduplicated", "true"))
        known.append((call.principal, call.role, call.request_id, call.method))
        return job_pb2.Job()

    front.script.unary = note
    metadata = front.metadata(Role.USER, x_request_id="my-id")
    call = front.jobs.SubmitJob(good_submit(), metadata=metadata)
    await call
    assert known == [("user", Role.USER, "my-id", SUBMIT)]
    trailers = dict(await call.trailing_metadata())
    assert trailers == {"x-request-id": "my-id", "hatoba-deduplicated": "true"}


async def test_trailers_that_a_servicer_sets_are_kept(front: Harness) -> None:
    async def answer(request: Any, context: Any) -> job_pb2.Job:
        context.set_trailing_metadata((("own", "1"),))
        return job_pb2.Job()

    front.script.unary = answer
    call = front.jobs.SubmitJob(good_submit(), metadata=front.metadata())
    trailers = dict(await call.trailing_metadata())
    assert trailers["own"] == "1"
    assert len(trailers["x-request-id"]) == 16


async def test_an_unusable_request_id_is_replaced(front: Harness) -> None:
    call = front.jobs.SubmitJob(good_submit(), metadata=front.metadata(x_request_id="a" * 129))
    assert len(dict(await call.trailing_metadata())["x-request-id"]) == 16


# -- errors --------------------------------------------------------------------------------------

ERRORS: list[tuple[errors.HatobaError, type[Any] | None]] = [
    (errors.InvalidArgument.field("spec.name", "is bad"), error_details_pb2.BadRequest),
    (
        errors.NotFound("no job", resource=errors.Resource("job", "digits-7")),
        error_details_pb2.ResourceInfo,
    ),
    (
        errors.AlreadyExists(
            "other body",
            reason=Reason.IDEMPOTENCY_MISMATCH,
            resource=errors.Resource("job", "digits-7"),
        ),
        error_details_pb2.ResourceInfo,
    ),
    (errors.FailedPrecondition("running"), error_details_pb2.PreconditionFailure),
    (errors.Aborted("stale etag"), None),
    (errors.ResourceExhausted("queue full"), error_details_pb2.QuotaFailure),
    (errors.ResourceExhausted("queue full"), error_details_pb2.RetryInfo),
    (errors.Unavailable("away", retry_after=2.5), error_details_pb2.RetryInfo),
    (errors.OutOfRange("too old", metadata={"oldest_cursor": "7"}), None),
    (errors.Unauthenticated("who"), None),
    (errors.PermissionDenied("no"), None),
    (errors.DeadlineExceeded("late"), None),
    (errors.Unimplemented("not here"), None),
]


@pytest.mark.parametrize(("error", "detail"), ERRORS)
async def test_every_error_has_its_code_and_details(
    front: Harness, error: errors.HatobaError, detail: type[Any] | None
) -> None:
    front.script.unary = _raises(error)
    failure = await failing(front.submit(x_request_id="rid"))
    assert (failure.code, failure.message) == (error.code, error.message)
    info = failure.find(error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, "hatoba")
    assert info.metadata["request_id"] == "rid"
    assert len(info.metadata["trace_id"]) == 32
    assert error.metadata.items() <= dict(info.metadata).items()
    if detail is not None:
        failure.find(detail)
    assert front.calls(SUBMIT, error.code.name) == 1


async def test_details_carry_what_the_error_knows(front: Harness) -> None:
    front.script.unary = _raises(
        errors.ResourceExhausted("full", resource=errors.Resource("queue", "q"), retry_after=1.5)
    )
    failure = await failing(front.submit())
    assert failure.find(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 1500
    assert failure.find(error_details_pb2.QuotaFailure).violations[0].subject == "q"
    assert failure.find(error_details_pb2.ResourceInfo).resource_name == "q"


async def test_a_thousand_violations_fit_into_the_trailers(front: Harness) -> None:
    found = [errors.FieldViolation(f"items[{i}].spec.name", "is bad " * 20) for i in range(1000)]
    front.script.unary = _raises(errors.InvalidArgument.of(found))
    failure = await failing(front.submit())
    listed = failure.find(error_details_pb2.BadRequest).field_violations
    assert listed[0].field == "items[0].spec.name"
    assert listed[-1].description == f"and {1000 - len(listed) + 1} more"


def ours(logged: io.StringIO) -> list[dict[str, Any]]:
    """What the server wrote; on a busy machine asyncio has a word of its own."""
    lines = map(json.loads, logged.getvalue().splitlines())
    return [line for line in lines if line["logger"] != "asyncio"]


async def test_a_bug_shows_an_error_id_and_nothing_else(
    front: Harness, logged: io.StringIO
) -> None:
    front.script.unary = _raises(RuntimeError("password=hunter2"))
    failure = await failing(front.submit(x_request_id="rid"))
    assert failure.code is grpc.StatusCode.INTERNAL
    assert "hunter2" not in repr(failure)
    assert "RuntimeError" not in repr(failure)
    info = failure.find(error_details_pb2.ErrorInfo).metadata
    assert info["error_id"] in failure.message
    (line,) = ours(logged)
    assert line["error_id"] == info["error_id"]
    assert (line["trace_id"], line["request_id"]) == (info["trace_id"], "rid")
    assert line["exception"][0] == "RuntimeError: password=hunter2"
    assert any("test_calls.py" in frame for frame in line["exception"])


async def test_a_reply_of_the_wrong_type_is_a_bug_not_unknown(front: Harness) -> None:
    front.script.unary = _answers(None)
    assert (await failing(front.submit())).code is grpc.StatusCode.INTERNAL


async def test_an_error_inside_a_task_group_keeps_its_code(front: Harness) -> None:
    async def grouped(request: Any, context: Any) -> job_pb2.Job:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_raises(errors.NotFound("gone"))(request, context))
        return job_pb2.Job()

    front.script.unary = grouped
    assert (await failing(front.submit())).code is grpc.StatusCode.NOT_FOUND


async def test_a_stray_cancellation_does_not_leave_the_caller_waiting(front: Harness) -> None:
    front.script.unary = _raises(asyncio.CancelledError())
    failure = await failing(front.submit())
    assert failure.code is grpc.StatusCode.UNAVAILABLE


async def test_a_servicer_may_abort_by_itself(front: Harness) -> None:
    async def abort(request: Any, context: Any) -> job_pb2.Job:
        await context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return job_pb2.Job()

    front.script.unary = abort
    failure = await failing(front.submit())
    assert (failure.code, failure.message) == (grpc.StatusCode.NOT_FOUND, "gone")
    assert front.calls(SUBMIT, "NOT_FOUND") == 1


@pytest.mark.parametrize("style", ["watch", "tail"])
async def test_a_stream_that_fails_half_way_has_its_status(front: Harness, style: str) -> None:
    async def generator(request: Any, context: Any) -> Any:
        yield job_pb2.WatchJobsResponse(cursor="2")
        raise errors.OutOfRange("too old")

    front.script.stream = generator if style == "watch" else _raises(errors.OutOfRange("too old"))
    failure = await failing(collect(_open(front, style)))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.OUT_OF_RANGE,
        Reason.OFFSET_OUT_OF_RANGE,
    )
    assert front.script.left.is_set()


# -- what is asked -------------------------------------------------------------------------------


async def test_every_broken_field_is_named(front: Harness) -> None:
    spec = job_pb2.JobSpec(name="Bad Name", env={"A B": "secret-value"}, priority=5000)
    request = job_pb2.SubmitJobRequest(spec=spec, request_id="with space")
    failure = await failing(front.jobs.SubmitJob(request, metadata=front.metadata()))
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields == [
        "spec.name",
        "spec.priority",
        "spec.command",
        "spec.env['A B'] (key)",
        "request_id",
    ]
    first = failure.find(error_details_pb2.BadRequest).field_violations[0]
    assert first.reason == "STRING_PATTERN"
    assert "got 'Bad Name'" in first.description
    assert "choose a name such as" in first.description
    assert "secret-value" not in repr(failure)
    assert not front.script.seen


async def test_each_message_of_a_write_style_stream_is_checked(front: Harness) -> None:
    good = worker_pb2.WorkerServiceConnectRequest()
    bad = worker_pb2.WorkerServiceConnectRequest(
        items=[worker_pb2.WorkerItem(hello=worker_pb2.WorkerHello(host="NODE"))]
    )
    failure = await failing(
        collect(_connect(front, [good, bad, good], front.metadata(Role.WORKER)))
    )
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failure.fields[0] == "items[0].hello.host"
    assert front.script.seen == [good]


async def test_each_message_of_a_generator_style_stream_is_checked(front: Harness) -> None:
    stub: runner_pb2_grpc.RunnerServiceAsyncStub = runner_pb2_grpc.RunnerServiceStub(front.channel)
    pieces = [
        runner_pb2.PushLogsRequest(attempt="a", stream=stream, data=b"abc")
        for stream in ("stdout", "nowhere")
    ]
    stream: Any = stub.PushLogs(iter(pieces), metadata=front.metadata(Role.WORKER))
    assert (await stream.read()).acked == 3
    failure = await failing(stream.read())
    assert failure.fields == ["stream"]


async def test_each_message_of_an_upload_is_checked(front: Harness) -> None:
    assert (await _upload(front, [b"abc", b"d"], front.metadata())).bytes == 4
    failure = await failing(_upload(front, [b"abc", b"x" * (MAX_BYTES + 1)], front.metadata()))
    assert failure.reason == Reason.MESSAGE_TOO_LARGE


async def test_an_oversized_message_is_told_the_limit(front: Harness) -> None:
    request = good_submit()
    request.spec.env["A"] = "x" * MAX_BYTES
    failure = await failing(front.jobs.SubmitJob(request, metadata=front.metadata()))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        Reason.MESSAGE_TOO_LARGE,
    )
    assert f"limit of {MAX_BYTES:,}" in failure.message


async def test_an_enormous_message_never_reaches_us(front: Harness) -> None:
    raw = b"x" * (MAX_BYTES * 8)
    failure = await failing(front.raw(SUBMIT, raw, front.metadata()))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_oversized_reply_asks_for_less(front: Harness) -> None:
    front.script.unary = _answers(job_pb2.Job(name="x" * (MAX_BYTES + 1)))
    failure = await failing(front.submit())
    assert "ask for a smaller page" in failure.message


@pytest.mark.parametrize(
    "raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["broken bytes", "not UTF-8"]
)
async def test_bytes_that_are_no_message_are_an_invalid_argument(
    front: Harness, raw: bytes
) -> None:
    failure = await failing(front.raw(SUBMIT, raw, front.metadata()))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        Reason.INVALID_MESSAGE,
    )


async def test_deep_nesting_is_an_invalid_argument(front: Harness) -> None:
    raw = b""
    for _ in range(200):
        # google.protobuf.Value{struct_value{fields{key "a" value ...}}}, from the inside out.
        entry = b"\x0a\x01a\x12" + _length(raw) + raw
        struct = b"\x0a" + _length(entry) + entry
        raw = b"\x2a" + _length(struct) + struct
    pair = b"\x0a\x01a\x12" + _length(raw) + raw
    spec = b"\x42" + _length(pair) + pair
    failure = await failing(front.raw(SUBMIT, b"\x12" + _length(spec) + spec, front.metadata()))
    assert failure.reason == Reason.INVALID_MESSAGE


# -- time ----------------------------------------------------------------------------------------


async def test_a_call_without_a_deadline_ends_at_the_servers(front: Harness) -> None:
    front.script.unary = _never
    failure = await failing(front.submit())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        Reason.DEADLINE_EXCEEDED,
    )


async def test_a_longer_deadline_than_the_servers_is_clamped(front: Harness) -> None:
    front.script.unary = _never
    call = front.jobs.SubmitJob(good_submit(), metadata=front.metadata(), timeout=30)
    assert "within the server's" in (await failing(call)).message


async def test_what_takes_as_long_as_there_is_much_is_not_ended_by_the_server(
    front: Harness,
) -> None:
    artifacts = artifact_pb2_grpc.ArtifactServiceStub(front.channel)
    request = artifact_pb2.CollectGarbageRequest()
    collects = artifacts.CollectGarbage(request, metadata=front.metadata())
    await front.script.entered.wait()
    front.script.unary = _never
    assert "within the server's" in (await failing(front.submit())).message
    front.script.left.set()
    assert (await collects) == artifact_pb2.CollectGarbageResponse()


async def test_nothing_is_begun_with_too_little_time_left(front: Harness) -> None:
    call = front.jobs.SubmitJob(good_submit(), metadata=front.metadata(), timeout=0.04)
    assert (await failing(call)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not front.script.seen


async def test_a_handlers_own_timeout_is_a_bug_not_a_deadline(front: Harness) -> None:
    front.script.unary = _raises(TimeoutError())
    assert (await failing(front.submit())).code is grpc.StatusCode.INTERNAL


# -- how calls end -------------------------------------------------------------------------------


async def test_a_passed_deadline_ends_the_span(front: Harness) -> None:
    front.script.unary = _never
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    metadata = front.metadata(traceparent=parent)
    await failing(front.jobs.SubmitJob(good_submit(), metadata=metadata, timeout=0.1))
    span = await front.span()
    assert (span.context.trace_id, span.parent_id) == ("ab" * 16, "cd" * 8)
    assert span.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert span.error
    assert front.active(SUBMIT) == 0


async def test_a_cancelled_call_ends_the_span(front: Harness) -> None:
    front.script.unary = _entering(front)
    metadata = front.metadata()
    call = front.jobs.SubmitJob(good_submit(), metadata=metadata, timeout=10)
    async with asyncio.timeout(5):
        await front.script.entered.wait()
    call.cancel()
    span = await front.span()
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"
    assert front.calls(SUBMIT, "CANCELLED") == 1


@pytest.mark.parametrize(("style", "method"), [("watch", WATCH), ("tail", TAIL)])
async def test_a_cancelled_stream_is_closed_and_ends_its_span(
    front: Harness, style: str, method: str
) -> None:
    front.script.stream = _forever if style == "watch" else _never
    stream = _open(front, style, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    await stream.read()
    assert front.active(method) == 1
    stream.cancel()
    async with asyncio.timeout(5):
        await front.script.left.wait()
    span = await front.span()
    assert span.name == method
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"
    assert front.active(method) == 0


async def test_a_generator_abandoned_in_a_write_is_closed_by_the_calls_own_task(
    front: Harness,
) -> None:
    """Left to the garbage collector it would be closed in another task, without its context."""
    tasks: list[asyncio.Task[Any] | None] = []
    wrote = asyncio.Event()

    async def flood(request: Any, context: Any) -> Any:
        tasks.append(asyncio.current_task())
        try:
            for number in itertools.count():
                yield job_pb2.WatchJobsResponse(cursor="x" * 64_000)
                if number > 2:
                    wrote.set()
        finally:
            tasks.append(asyncio.current_task())

    front.script.stream = flood
    stream = _open(front, "watch")
    async with asyncio.timeout(5):
        await wrote.wait()
        stream.cancel()
        await front.script.left.wait()
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


@pytest.mark.parametrize("style", ["watch", "tail"])
async def test_a_stream_that_ends_well_is_ok(front: Harness, style: str) -> None:
    stream = _open(front, style, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
    assert len(await collect(stream)) == 1
    span = await front.span()
    assert (span.error, span.attributes["rpc.response.status_code"]) == ("", "OK")


@pytest.mark.parametrize("style", ["watch", "tail"])
async def test_revoking_a_token_ends_its_streams(front: Harness, style: str) -> None:
    front.script.stream = _forever if style == "watch" else _never
    stream = _open(front, style)
    await stream.read()
    await front.script.entered.wait()
    await front.authenticator.revoke(front.records[Role.ADMIN].id)
    failure = await failing(stream.read())
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.UNAUTHENTICATED,
        Reason.TOKEN_REVOKED,
    )
    assert front.script.left.is_set()


async def test_a_token_that_expires_ends_its_streams(front: Harness) -> None:
    _, text = await front.authenticator.create("ann", Role.USER, ttl=20_000)
    front.script.stream = _forever
    metadata = (("authorization", f"Bearer {text}"),)
    stream = front.jobs.WatchJobs(job_pb2.WatchJobsRequest(), metadata=metadata)
    failure = await failing(collect(stream))
    assert failure.reason == Reason.TOKEN_EXPIRED


# -- traces --------------------------------------------------------------------------------------


async def test_a_change_begins_a_trace_and_a_read_does_not(front: Harness) -> None:
    front.script.unary = _answers(job_pb2.Job())
    await front.jobs.GetJob(job_pb2.GetJobRequest(name="a-1"), metadata=front.metadata())
    await front.submit()
    span = await front.span()
    assert (span.name, span.kind, span.parent_id) == (SUBMIT, "server", "")
    assert front.spans.empty()


async def test_a_broken_traceparent_begins_a_new_trace(front: Harness) -> None:
    await front.submit(traceparent=f"00-{'0' * 32}-{'cd' * 8}-01")
    assert (await front.span()).parent_id == ""


async def test_a_refused_caller_leaves_no_span(front: Harness) -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    await failing(front.jobs.SubmitJob(good_submit(), metadata=(("traceparent", parent),)))
    await front.submit()
    assert (await front.span()).context.trace_id != "ab" * 16


# -- starting and stopping -----------------------------------------------------------------------


async def test_nothing_is_answered_before_recovery_is_done(front: Harness) -> None:
    front.admission.phase = Phase.RECOVERING
    failure = await failing(front.submit())
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, Reason.STARTING)
    failure.find(error_details_pb2.RetryInfo)


async def test_draining_waits_for_calls_and_refuses_changes_only(front: Harness) -> None:
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def wait(request: Any, context: Any) -> job_pb2.Job:
        entered.set()
        await go_on.wait()
        return job_pb2.Job(name="done")

    front.script.unary = wait
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(_job(front))
        await entered.wait()
        drained = tasks.create_task(front.admission.drain())
        front.script.unary = _answers(job_pb2.Job())
        await asyncio.sleep(0)
        refused = await failing(front.submit())
        await front.jobs.GetJob(job_pb2.GetJobRequest(name="a-1"), metadata=front.metadata())
        assert not drained.done()
        go_on.set()
    assert (refused.reason, call.result().name) == (Reason.DRAINING, "done")


@pytest.mark.parametrize("grace", [None, 0.03])
async def test_stopping_the_server_ends_what_is_open_without_noise(
    front: Harness, logged: io.StringIO, grace: float | None
) -> None:
    front.script.stream = _forever
    watch = _open(front, "watch")
    await watch.read()
    front.script.stream = _never
    tail = _open(front, "tail")
    await tail.read()
    front.script.entered.clear()
    front.script.unary = _entering(front)
    call = front.jobs.SubmitJob(good_submit(), metadata=front.metadata())
    await front.script.entered.wait()
    await front.server.stop(grace)
    for ending in (watch.read(), tail.read(), call):
        failure = await failing(ending)
        assert failure.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    await until(lambda: not any(map(front.active, (WATCH, TAIL, SUBMIT))))
    assert not ours(logged)


async def test_any_exception_has_a_status_of_ours(front: Harness) -> None:
    """No UNKNOWN leaves the server, whatever is raised, in whichever style of handler."""
    raised: list[BaseException] = [
        KeyError("x"),
        RecursionError(),
        MemoryError(),
        StopIteration(),
        StopAsyncIteration(),
        asyncio.CancelledError(),
        ExceptionGroup("two", [errors.NotFound("a"), ValueError("b")]),
        errors.Internal("secret"),
    ]
    for failure, style in itertools.product(raised, ("unary", "tail")):
        front.script.unary = front.script.stream = _raises(failure)
        call = front.submit() if style == "unary" else collect(_open(front, style))
        seen: Failure = await failing(call)
        assert seen.code in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}, failure
        assert "secret" not in seen.message
        assert seen.reason in {Reason.BUG, Reason.DRAINING}


# -- helpers -------------------------------------------------------------------------------------


def _answers(reply: Any) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        return reply

    return answer


def _raises(error: BaseException) -> Any:
    async def fail(request: Any, context: Any) -> Any:
        raise error

    return fail


async def _never(request: Any, context: Any) -> Any:
    await asyncio.Event().wait()


def _entering(front: Harness) -> Any:
    async def enter(request: Any, context: Any) -> Any:
        front.script.entered.set()
        await asyncio.Event().wait()

    return enter


async def _forever(request: Any, context: Any) -> Any:
    await asyncio.Event().wait()
    yield job_pb2.WatchJobsResponse()


async def _job(front: Harness) -> job_pb2.Job:
    return await front.jobs.SubmitJob(good_submit(), metadata=front.metadata(), timeout=10)


def _open(front: Harness, style: str, **more: str) -> Any:
    metadata = front.metadata(**more)
    if style == "watch":
        return front.jobs.WatchJobs(job_pb2.WatchJobsRequest(), metadata=metadata)
    return front.jobs.TailLogs(job_pb2.TailLogsRequest(job="a-1"), metadata=metadata)


def _connect(front: Harness, messages: list[Any], metadata: Any) -> Any:
    stub: worker_pb2_grpc.WorkerServiceAsyncStub = worker_pb2_grpc.WorkerServiceStub(front.channel)
    return stub.Connect(iter(messages), metadata=metadata)


async def _upload(
    front: Harness, pieces: list[bytes], metadata: Any
) -> artifact_pb2.UploadChunksResponse:
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub = artifact_pb2_grpc.ArtifactServiceStub(
        front.channel
    )
    messages = [artifact_pb2.UploadChunksRequest(data=piece) for piece in pieces]
    return await stub.UploadChunks(iter(messages), metadata=metadata)


def _length(raw: bytes) -> bytes:
    value, out = len(raw), b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])
