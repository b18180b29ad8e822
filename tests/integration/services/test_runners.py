"""RunnerService: one runner gets the attempt, its first commit counts, all others are refused."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from waiting import eventually, turns
from wire import Wire, path_of

from hatoba.v1 import common_pb2, job_pb2, runner_pb2, worker_pb2

from .conftest import Host, cancel, commit_of, held, job_on, refused, state, submit

GRANTED = runner_pb2.CLAIM_VERDICT_GRANTED
DUPLICATE = runner_pb2.CLAIM_VERDICT_DUPLICATE
SUPERSEDED = runner_pb2.CLAIM_VERDICT_SUPERSEDED
CANCELLED = runner_pb2.CLAIM_VERDICT_CANCELLED
OTHER = "x" * 16


@pytest.fixture
async def launch(wire: Wire, host: Host) -> worker_pb2.LaunchAttempt:
    """An attempt that was sent to the host."""
    await submit(wire, job_on(host.name))
    return await host.launched()


# -- claims ----------------------------------------------------------------------------------------


async def test_a_launch_says_everything(wire: Wire, host: Host) -> None:
    wanted = job_on(host.name, "train")
    wanted.command[:] = ["train", "--lr=${params.lr}"]
    wanted.params["lr"].number_value = 0.1
    wanted.env["A"] = "1"
    wanted.resources.cpus = 0.0
    wanted.timeout.seconds = 60
    wanted.stop_grace.seconds = 3
    job = await submit(wire, wanted)
    launch = await host.launched()
    assert list(launch.command) == ["train", "--lr=0.1"]
    assert (launch.job, launch.job_uid, launch.index, launch.number) == (job.name, job.uid, 0, 1)
    assert (launch.fence, launch.task_count) == (1, 1)
    assert (dict(launch.env), launch.timeout.seconds, launch.stop_grace.seconds) == (
        {"A": "1"},
        60,
        3,
    )
    assert launch.traceparent.split("-")[1] == job.trace_id


async def test_a_claim_is_granted_to_one_nonce(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    nonces = [f"{n:016d}" for n in range(20)]
    answers = await asyncio.gather(*(host.claim(launch, nonce) for nonce in nonces))
    verdicts = [answer.verdict for answer in answers]
    assert sorted(verdicts) == [GRANTED] + [DUPLICATE] * 19
    winner = nonces[verdicts.index(GRANTED)]
    assert (await host.claim(launch, winner)).verdict == GRANTED
    (attempt,) = await wire.attempts(launch.job)
    assert attempt.state == common_pb2.ATTEMPT_STATE_STARTING
    assert attempt.claim_time.seconds
    assert (attempt.host, attempt.fenced) == (host.name, True)


async def test_a_claim_with_another_fence_or_name_is_superseded(
    host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    for name, fence in ((launch.attempt, 2), (launch.attempt, 0), (launch.attempt + "0", 1)):
        wrong = worker_pb2.LaunchAttempt(attempt=name, fence=fence)
        assert (await host.claim(wrong)).verdict == SUPERSEDED
    assert (await host.claim(launch)).verdict == GRANTED


async def test_a_cancelled_job_is_not_claimed(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await cancel(wire, launch.job)
    assert (await host.claim(launch)).verdict == CANCELLED
    stop = await host.hears("stop")
    assert stop.attempt == launch.attempt
    gone = worker_pb2.AttemptGone(attempt=launch.attempt, fence=launch.fence)
    await host.say(worker_pb2.WorkerItem(gone=gone))
    assert state(await wire.ended(launch.job)) == "CANCELLED"
    assert (await host.claim(launch)).verdict == SUPERSEDED


async def test_the_former_attempt_is_refused_everything(wire: Wire, host: Host) -> None:
    wanted = job_on(host.name)
    wanted.retries.user = 1
    await submit(wire, wanted)
    first = await host.launched()
    await host.started(first)
    assert (await host.commit(first, exit_code=1)).accepted
    second = await host.launched()
    assert (second.number, second.fence) == (2, 2)
    await host.started(second)
    assert (await host.claim(first)).verdict == SUPERSEDED
    assert not (await host.checkpoint(first, 9)).accepted
    heartbeat = runner_pb2.HeartbeatRequest(attempt=first.attempt, fence=first.fence)
    reply = await wire.once(heartbeat, runner_pb2.HeartbeatResponse)
    assert reply.order == runner_pb2.RUNNER_ORDER_STOP
    report = runner_pb2.ReportMetricsRequest(attempt=first.attempt, fence=first.fence)
    refusal = await refused(wire.once(report, runner_pb2.ReportMetricsResponse))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_CURRENT")
    assert not (await host.commit(first, OTHER)).accepted
    assert (await host.commit(first)).accepted
    assert (await wire.attempts(first.job))[0].cause.exit_code == 1
    assert (await host.commit(second)).accepted
    assert state(await wire.ended(first.job)) == "SUCCEEDED"


# -- commits ---------------------------------------------------------------------------------------


async def test_the_first_commit_counts(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    assert not (await host.commit(launch, OTHER)).accepted
    answers = await asyncio.gather(*(host.commit(launch, exit_code=3) for _ in range(10)))
    assert all(answer.accepted for answer in answers)
    ended = await wire.ended(launch.job)
    assert (state(ended), ended.cause.exit_code) == ("FAILED", 3)
    assert (await host.commit(launch)).accepted
    assert not (await host.commit(launch, OTHER)).accepted
    assert await wire.job(launch.job) == ended


async def test_a_runner_that_never_claimed_gives_up_and_does_not_succeed(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    assert not (await host.commit(launch, "")).accepted
    assert not (await host.commit(launch, OTHER)).accepted
    kind = runner_pb2.EXIT_KIND_SECRET_MISSING
    assert (await host.commit(launch, "", kind=kind, message="no TOKEN")).accepted
    ended = await wire.ended(launch.job)
    assert ended.cause.code == common_pb2.CAUSE_CODE_SECRET_MISSING
    assert "no TOKEN" in ended.cause.message


async def test_a_commit_keeps_what_it_tells(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    usage = job_pb2.Usage(cpu_seconds=1.5, memory_peak_bytes=2**30, memory_limit_by="cgroup")
    request = commit_of(
        launch,
        kind=runner_pb2.EXIT_KIND_OUT_OF_MEMORY,
        usage=usage,
        last_log_lines=["one", "two"],
        log_sizes={"stdout": 0},
    )
    request.end_time.seconds = 1_800_000_000
    assert (await wire.once(request, runner_pb2.CommitAttemptResponse)).accepted
    ended = await wire.ended(launch.job)
    assert ended.cause.code == common_pb2.CAUSE_CODE_OUT_OF_MEMORY
    assert ended.cause.evidence["memory_peak_bytes"] == str(2**30)
    assert list(ended.cause.last_log_lines) == ["one", "two"]
    (attempt,) = await wire.attempts(launch.job)
    assert attempt.usage == usage
    assert attempt.end_time.seconds == 1_800_000_000
    assert attempt.release == common_pb2.RELEASE_RELEASED


async def test_what_is_not_gone_is_held_until_it_is(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    await host.commit(launch, gone=False)
    assert state(await wire.ended(launch.job)) == "SUCCEEDED"
    (attempt,) = await wire.attempts(launch.job)
    assert attempt.release != common_pb2.RELEASE_RELEASED
    gone = worker_pb2.AttemptGone(attempt=launch.attempt, fence=launch.fence)
    await host.say(worker_pb2.WorkerItem(gone=gone))

    async def released() -> bool:
        return (await wire.attempts(launch.job))[0].release == common_pb2.RELEASE_RELEASED

    await eventually(released)


async def test_times_beyond_all_calendars_and_numbers_that_are_none_break_nothing(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    usage = job_pb2.Usage(cpu_seconds=math.nan, gpu_peak=math.inf, memory_peak_bytes=-(2**63))
    beat = runner_pb2.HeartbeatRequest(attempt=launch.attempt, fence=launch.fence, usage=usage)
    beat.progress.done, beat.progress.time.seconds = math.nan, 2**62
    await wire.once(beat, runner_pb2.HeartbeatResponse)
    report = runner_pb2.ReportMetricsRequest(attempt=launch.attempt, fence=launch.fence)
    sample = report.samples.add(key="loss", step=-(2**63), value=math.nan)
    sample.time.seconds, sample.time.nanos = 2**62, -5
    await wire.once(report, runner_pb2.ReportMetricsResponse)
    request = commit_of(launch, usage=usage, log_sizes={"stdout": -1})
    request.end_time.seconds = -(2**62)
    assert (await wire.once(request, runner_pb2.CommitAttemptResponse)).accepted
    assert state(await wire.ended(launch.job)) == "SUCCEEDED"
    await wire.attempts(launch.job)


# -- reports ---------------------------------------------------------------------------------------


async def test_a_heartbeat_learns_what_is_wanted_and_shows_progress(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    await wire.in_state(launch.job, common_pb2.JOB_STATE_RUNNING)
    request = runner_pb2.HeartbeatRequest(attempt=launch.attempt, fence=launch.fence)
    request.progress.done, request.progress.total, request.progress.message = 3, 10, "epoch 3/10"
    request.usage.memory_peak_bytes = 2048
    reply = await wire.once(request, runner_pb2.HeartbeatResponse)
    assert (reply.attempt, reply.order) == (launch.attempt, runner_pb2.RUNNER_ORDER_RUN)
    job = await wire.job(launch.job)
    assert (job.progress.done, job.progress.message) == (3, "epoch 3/10")
    (task,) = await wire.tasks(launch.job)
    assert task.progress.total == 10
    (attempt,) = await wire.attempts(launch.job)
    assert attempt.usage.memory_peak_bytes == 2048
    await cancel(wire, launch.job)
    reply = await wire.once(request, runner_pb2.HeartbeatResponse)
    assert reply.order == runner_pb2.RUNNER_ORDER_STOP
    assert reply.grace.seconds == 10
    request.attempt = "nobody"
    reply = await wire.once(request, runner_pb2.HeartbeatResponse)
    assert reply.order == runner_pb2.RUNNER_ORDER_STOP


async def test_a_new_attempt_does_not_show_the_progress_of_the_former(
    wire: Wire, host: Host
) -> None:
    wanted = job_on(host.name)
    wanted.retries.user = 1
    await submit(wire, wanted)
    first = await host.launched()
    await host.started(first)
    request = runner_pb2.HeartbeatRequest(attempt=first.attempt, fence=first.fence)
    request.progress.done = 9
    await wire.once(request, runner_pb2.HeartbeatResponse)
    await host.commit(first, exit_code=1)
    second = await host.launched()
    await host.started(second)
    job = await wire.in_state(first.job, common_pb2.JOB_STATE_RUNNING)
    assert not job.HasField("progress")


async def test_checkpoints_only_go_up(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    for step, newest in ((5, 5), (3, 5), (5, 5), (8, 8)):
        assert (await host.checkpoint(launch, step)).accepted
        assert (await wire.attempts(launch.job))[0].checkpoint.step == newest
    (attempt,) = await wire.attempts(launch.job)
    assert attempt.checkpoint.manifest.digest.endswith("8")
    assert attempt.checkpoint.attempt == 1


async def test_the_next_attempt_begins_at_the_last_checkpoint(wire: Wire, host: Host) -> None:
    await submit(wire, job_on(host.name))
    launch = await host.launched()
    await host.started(launch)
    await host.checkpoint(launch, 4)
    await host.commit(launch, kind=runner_pb2.EXIT_KIND_LOST)
    again = await host.launched()
    claim = await host.claim(again)
    assert (claim.checkpoint.step, claim.checkpoint.attempt) == (4, 1)


async def test_a_report_whose_sender_went_away_harms_nobody(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    report = runner_pb2.ReportMetricsRequest(attempt=launch.attempt, fence=launch.fence)
    report.samples.add(key="loss", step=1, value=1.0)
    channel = await wire.channel()
    method: Any = channel.unary_unary(
        path_of(report), request_serializer=lambda message: message.SerializeToString()
    )
    for count in range(60):
        call = method(report, metadata=wire.metadata)
        await turns(count)  # it is cancelled further on its way each time
        call.cancel()
    reply = await wire.once(report, runner_pb2.ReportMetricsResponse)
    assert reply.attempt == launch.attempt


# -- logs ------------------------------------------------------------------------------------------


class Pusher:
    """A log stream."""

    def __init__(self, stream: Any, launch: worker_pb2.LaunchAttempt) -> None:
        self._stream = stream
        self._launch = launch

    async def push(
        self, offset: int, data: bytes = b"", stream: str = "stdout", **fields: Any
    ) -> runner_pb2.PushLogsResponse:
        told = {"attempt": self._launch.attempt, "fence": self._launch.fence, **fields}
        request = runner_pb2.PushLogsRequest(stream=stream, offset=offset, data=data, **told)
        await self._stream.write(request)
        reply: runner_pb2.PushLogsResponse = await self._stream.read()
        return reply


@pytest.fixture
async def pusher(wire: Wire, launch: worker_pb2.LaunchAttempt) -> AsyncIterator[Pusher]:
    channel = await wire.channel()
    method: Any = channel.stream_stream(
        "/hatoba.v1.RunnerService/PushLogs",
        request_serializer=runner_pb2.PushLogsRequest.SerializeToString,
        response_deserializer=runner_pb2.PushLogsResponse.FromString,
    )
    stream = method(metadata=wire.metadata)
    yield Pusher(stream, launch)
    stream.cancel()


async def tail(wire: Wire, job: str, **fields: Any) -> list[job_pb2.TailLogsResponse]:
    request = job_pb2.TailLogsRequest(job=job, **fields)
    async with asyncio.timeout(20):
        return [piece async for piece in wire.stream(request, job_pb2.TailLogsResponse)]


async def test_offsets_are_acknowledged_ignored_and_refused(
    wire: Wire, pusher: Pusher, launch: worker_pb2.LaunchAttempt
) -> None:
    assert (await pusher.push(0)).acked == 0
    assert (await pusher.push(0, b"hello ")).acked == 6
    assert (await pusher.push(0, b"XXXXXX")).acked == 6
    assert (await pusher.push(3, b"YYYworld")).acked == 11
    assert (await pusher.push(99, b"beyond")).acked == 11
    assert (await pusher.push(0)).acked == 11
    assert (await pusher.push(0, b"err", "stderr")).acked == 3
    assert (await pusher.push(11, b"!", fence=7)).refused
    assert (await pusher.push(11, b"!", attempt="nobody")).refused
    pieces = await tail(wire, launch.job, stream="stdout")
    assert b"".join(piece.data for piece in pieces) == b"hello world"
    assert not any(piece.end for piece in pieces)


async def test_a_wrong_piece_ends_the_stream(
    wire: Wire, pusher: Pusher, launch: worker_pb2.LaunchAttempt
) -> None:
    refusal = await refused(pusher.push(0, b"x", "stdin"))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["stream"])


async def test_a_gap_is_named_where_it_is(
    wire: Wire, pusher: Pusher, launch: worker_pb2.LaunchAttempt
) -> None:
    await pusher.push(0, b"begin\n")
    assert (await pusher.push(6, gap_bytes=1000)).acked == 1006
    await pusher.push(1006, b"end\n")
    pieces = await tail(wire, launch.job, stream="stdout")
    assert [(p.offset, p.data, p.gap_bytes) for p in pieces] == [
        (0, b"begin\n", 0),
        (6, b"", 1000),
        (1006, b"end\n", 0),
    ]
    (middle, *_) = await tail(wire, launch.job, stream="stdout", offset=500)
    assert (middle.offset, middle.gap_bytes) == (500, 506)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pusher.push(1010, gap_bytes=2**63 - 1)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_follower_ends_exactly_at_the_end(
    wire: Wire, host: Host, pusher: Pusher, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    await pusher.push(0, b"one\n")
    async with asyncio.TaskGroup() as group:
        both = group.create_task(tail(wire, launch.job, follow=True), name="both")
        one = group.create_task(
            tail(wire, launch.job, follow=True, stream="stdout", offset=4), name="one"
        )
        await host.commit(launch, log_sizes={"stdout": 12, "stderr": 4})
        await wire.ended(launch.job)
        await pusher.push(4, b"two\n")
        await pusher.push(0, b"err\n", "stderr")
        assert not both.done()
        assert not one.done()
        await pusher.push(8, b"end\n")
    for pieces in (both.result(), one.result()):
        assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert {piece.attempt for piece in pieces} == {1}
    assert b"".join(p.data for p in both.result() if p.stream == "stdout") == b"one\ntwo\nend\n"
    assert b"".join(p.data for p in both.result() if p.stream == "stderr") == b"err\n"
    assert b"".join(p.data for p in one.result()) == b"two\nend\n"


async def test_large_logs_come_in_pieces(
    wire: Wire, pusher: Pusher, launch: worker_pb2.LaunchAttempt
) -> None:
    block = bytes(range(256)) * 1024
    for number in range(4):
        assert (await pusher.push(number * len(block), block)).acked == (number + 1) * len(block)
    pieces = await tail(wire, launch.job, stream="stdout")
    assert b"".join(piece.data for piece in pieces) == block * 4
    assert max(len(piece.data) for piece in pieces) <= 64 * 1024


@pytest.mark.parametrize(
    ("lines", "expected"),
    [(1, b"c\n"), (2, b"b\nc\n"), (3, b"a\nb\nc\n"), (100, b"a\nb\nc\n"), (0, b"a\nb\nc\n")],
)
async def test_the_last_lines(
    wire: Wire,
    pusher: Pusher,
    launch: worker_pb2.LaunchAttempt,
    lines: int,
    expected: bytes,
) -> None:
    await pusher.push(0, b"a\nb\nc\n")
    pieces = await tail(wire, launch.job, stream="stdout", tail_lines=lines)
    assert b"".join(piece.data for piece in pieces) == expected


async def test_each_attempt_has_its_own_log(wire: Wire, host: Host) -> None:
    wanted = job_on(host.name)
    wanted.retries.user = 1
    job = await submit(wire, wanted)
    channel = await wire.channel()
    method: Any = channel.stream_stream(
        "/hatoba.v1.RunnerService/PushLogs",
        request_serializer=runner_pb2.PushLogsRequest.SerializeToString,
        response_deserializer=runner_pb2.PushLogsResponse.FromString,
    )
    stream = method(metadata=wire.metadata)
    for number in (1, 2):
        launch = await host.launched()
        await host.started(launch)
        text = b"attempt %d\n" % number
        assert (await Pusher(stream, launch).push(0, text)).acked == len(text)
        await host.commit(launch, exit_code=1, log_sizes={"stdout": len(text)})
    stream.cancel()
    await wire.ended(job.name)
    for asked, number in ((0, 2), (1, 1), (2, 2)):
        pieces = await tail(wire, job.name, attempt=asked)
        assert (pieces[0].data, pieces[0].attempt) == (b"attempt %d\n" % number, number)
        assert pieces[-1].end
    refusal = await refused(tail(wire, job.name, attempt=3))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    refusal = await refused(tail(wire, job.name, index=1))
    assert refusal.code is grpc.StatusCode.NOT_FOUND


async def test_a_wrong_place_in_a_log_is_refused(
    wire: Wire, pusher: Pusher, launch: worker_pb2.LaunchAttempt
) -> None:
    await pusher.push(0, b"12345")
    refusal = await refused(tail(wire, launch.job, stream="stdout", offset=6))
    assert refusal.code is grpc.StatusCode.OUT_OF_RANGE
    refusal = await refused(tail(wire, launch.job, offset=1))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["offset"])
    refusal = await refused(tail(wire, launch.job, stream="stdin"))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["stream"])


async def test_without_an_attempt_only_an_ended_job_has_an_end(wire: Wire, project: str) -> None:
    job = await submit(wire, held(), project)
    assert await tail(wire, job.name) == []
    async with asyncio.TaskGroup() as group:
        following = group.create_task(tail(wire, job.name, follow=True), name="follow")
        await cancel(wire, job.name)
    assert [piece.end for piece in following.result()] == [True]
    assert [piece.end for piece in await tail(wire, job.name)] == [True]


# -- metrics ---------------------------------------------------------------------------------------


async def test_metrics_are_read_back_as_series(
    wire: Wire, host: Host, launch: worker_pb2.LaunchAttempt
) -> None:
    await host.started(launch)
    report = runner_pb2.ReportMetricsRequest(attempt=launch.attempt, fence=launch.fence, report=4)
    for step in range(100):
        sample = report.samples.add(key="loss", step=step, value=1 / (step + 1))
        sample.time.seconds = 1_800_000_000 + step
    odd = {1: math.nan, 2: math.inf, 3: -math.inf}
    for step, value in odd.items():
        report.samples.add(key="acc", step=step, value=value)
    for _ in range(2):
        reply = await wire.once(report, runner_pb2.ReportMetricsResponse)
        assert reply.acked_report == 4
    request = job_pb2.QueryMetricsRequest(job=launch.job)
    series = (await wire.once(request, job_pb2.QueryMetricsResponse)).series
    assert [(one.key, one.index, len(one.points)) for one in series] == [
        ("acc", 0, 3),
        ("loss", 0, 100),
    ]
    assert math.isnan(series[0].points[0].value)
    assert [point.value for point in series[0].points[1:]] == [math.inf, -math.inf]
    assert [point.step for point in series[1].points] == list(range(100))
    assert series[1].points[5].time.seconds == 1_800_000_005
    assert series[1].points[5].attempt == 1
    for limit in (1, 2, 7, 99, 100, 1000):
        request = job_pb2.QueryMetricsRequest(job=launch.job, keys=["loss"], max_points=limit)
        (one,) = (await wire.once(request, job_pb2.QueryMetricsResponse)).series
        steps = [point.step for point in one.points]
        assert len(steps) == min(limit, 100)
        assert steps[-1] == 99
        assert limit == 1 or steps[0] == 0
        gaps = {after - before for before, after in itertools.pairwise(steps)}
        assert not gaps or max(gaps) - min(gaps) <= 1
    request = job_pb2.QueryMetricsRequest(job=launch.job, index=3)
    assert not (await wire.once(request, job_pb2.QueryMetricsResponse)).series


async def test_the_later_attempts_point_counts(wire: Wire, host: Host) -> None:
    wanted = job_on(host.name)
    wanted.retries.user = 1
    job = await submit(wire, wanted)
    for number in (1, 2):
        launch = await host.launched()
        await host.started(launch)
        report = runner_pb2.ReportMetricsRequest(attempt=launch.attempt, fence=launch.fence)
        for step in range(3 if number == 1 else 2):
            report.samples.add(key="loss", step=step, value=number)
        await wire.once(report, runner_pb2.ReportMetricsResponse)
        await host.commit(launch, exit_code=1)
    request = job_pb2.QueryMetricsRequest(job=job.name)
    (series,) = (await wire.once(request, job_pb2.QueryMetricsResponse)).series
    assert [(point.value, point.attempt) for point in series.points] == [(2, 2), (2, 2), (1, 1)]
