"""A job does not notice that the server or the worker beside it is killed; a keeper's death is
the end of an attempt and of everything it started.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import field_mask_pb2
from server_process import (
    ColdLauncher,
    HatobaServer,
    kill9,
    living,
    running_server,
    runs,
)
from waiting import eventually, until
from wire import Wire, shell

from hatoba.v1 import common_pb2, job_pb2

LINES = 100_000
EXPECTED = b"".join(b"%d\n" % number for number in range(LINES))
# About two seconds of lines; what starts leaves a mark in a file of its own.
NUMBERS = """
import os, sys, time
with open(sys.argv[1], "a") as starts:
    starts.write(os.environ["HATOBA_ATTEMPT"] + chr(10))
for number in range(100_000):
    os.write(1, b"%d\\n" % number)
    if number % 1000 == 0:
        time.sleep(0.015)
sys.exit(int(sys.argv[2]))
"""


def numbers(starts: Path, code: int = 0) -> job_pb2.JobSpec:
    """A job that prints numbered lines, notes each of its starts, and ends with `code`."""
    python = [sys.executable, "-I", "-S", "-c", NUMBERS]
    return job_pb2.JobSpec(name="numbers", command=[*python, str(starts), str(code)])


async def printed(wire: Wire, name: str, lines: int) -> None:
    """Wait until the server has so many lines of a job."""
    request = job_pb2.TailLogsRequest(job=name, stream="stdout", follow=True)
    seen = 0
    async for piece in wire.stream(request, job_pb2.TailLogsResponse):
        seen += piece.data.count(b"\n")
        if seen >= lines:
            return
    raise AssertionError(f"{name} ended after {seen} lines")


async def ran_once(wire: Wire, name: str, starts: Path) -> None:
    """Nothing started twice, and every line is there once."""
    assert len(await wire.attempts(name)) == 1
    assert (await asyncio.to_thread(starts.read_text)).count("\n") == 1
    assert await wire.log(name) == EXPECTED


async def test_the_server_is_killed(own_server: HatobaServer, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    async with Wire(own_server) as wire:
        job = await wire.submit(numbers(starts))
        for lines in (1_000, 40_000):
            async with Wire(own_server) as reader:
                await printed(reader, job.name, lines)
            await own_server.restart()
        ended = await wire.ended(job.name)
        assert ended.state == common_pb2.JOB_STATE_SUCCEEDED
        await ran_once(wire, job.name, starts)
        ends = [event.job_terminal for event in await wire.events(job.name)]
        assert ends.count(True) == 1


@pytest.mark.parametrize("code", [0, 3])
async def test_the_worker_is_killed(
    code: int, own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    starts = tmp_path / "starts"
    job = await own_wire.submit(numbers(starts, code))
    for lines in (1_000, 30_000):
        await printed(own_wire, job.name, lines)
        await own_server.kill_worker()
    ended = await own_wire.ended(job.name)
    if code:
        assert ended.state == common_pb2.JOB_STATE_FAILED
        assert ended.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE
    else:
        assert ended.state == common_pb2.JOB_STATE_SUCCEEDED
    assert ended.cause.exit_code == code
    await ran_once(own_wire, job.name, starts)


async def test_a_job_ends_while_the_worker_is_dead(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    job = await own_wire.submit(
        shell(f"while [ ! -e {go} ]; do sleep 0.01; done; echo last words; exit 7")
    )
    await own_wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    # Several deaths in a row, so that the keeper waits before it starts the next one.
    for _ in range(3):
        await own_server.kill_worker()
    go.touch()
    ended = await own_wire.ended(job.name)
    assert ended.cause.exit_code == 7
    assert await own_wire.log(job.name) == b"last words\n"


async def test_a_job_ends_while_the_server_is_dead(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    go, over = tmp_path / "go", tmp_path / "over"
    job = await own_wire.submit(
        shell(f"while [ ! -e {go} ]; do sleep 0.01; done; echo last words; touch {over}; exit 7")
    )
    await own_wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await own_server.kill()
    go.touch()
    await until(over.exists)
    await own_server.start()
    ended = await own_wire.ended(job.name)
    assert ended.cause.exit_code == 7
    assert await own_wire.log(job.name) == b"last words\n"


# A child of a child with a session of its own that is deaf to SIGTERM and wears no mark.
HIDING = (
    "import os, signal, time; signal.signal(15, signal.SIG_IGN); "
    "print(os.getpid(), flush=True); time.sleep(600)"
)
FAMILY = f"""
echo $$
setsid setsid env -i {sys.executable} -I -S -c '{HIDING}' &
wait
sleep 600
"""


async def pids_of(wire: Wire, name: str, attempt: int) -> list[int]:
    """The two pids that an attempt of FAMILY prints."""
    await attempts_until(wire, name, attempt)
    request = job_pb2.TailLogsRequest(job=name, stream="stdout", attempt=attempt, follow=True)
    text = b""
    async for piece in wire.stream(request, job_pb2.TailLogsResponse):
        text += piece.data
        if text.count(b"\n") >= 2:
            return [int(line) for line in text.split()[:2]]
    raise AssertionError(f"{name} ended early: {text!r}")


async def test_the_keeper_is_killed(own_server: HatobaServer, own_wire: Wire) -> None:
    spec = shell(FAMILY)
    spec.retries.infrastructure = 3
    spec.retries.backoff.FromMilliseconds(1)
    spec.stop_grace.FromMilliseconds(100)
    job = await own_wire.submit(spec)
    first = await pids_of(own_wire, job.name, 1)
    assert len(await living(first)) == 2
    old = await own_server.kill_keeper()

    second = await pids_of(own_wire, job.name, 2)
    attempts = await own_wire.attempts(job.name)
    # The second attempt began, so nothing of the first one may be there.
    assert await living(first) == []
    assert attempts[0].state == common_pb2.ATTEMPT_STATE_LOST
    assert attempts[0].cause.origin == common_pb2.ORIGIN_INFRASTRUCTURE
    assert len(await living(second)) == 2
    assert await asyncio.to_thread(own_server.keeper_pid) not in (0, old)

    await own_wire.cancel(job.name)
    assert (await own_wire.ended(job.name)).state == common_pb2.JOB_STATE_CANCELLED
    await until(lambda: not any(runs(pid) for pid in second))


async def attempts_until(wire: Wire, name: str, count: int) -> list[job_pb2.Attempt]:
    """The attempts of a job once there are so many."""

    async def there() -> list[job_pb2.Attempt] | None:
        attempts = await wire.attempts(name)
        return attempts if len(attempts) >= count else None

    return await eventually(there)


async def test_without_a_retry_budget_a_dead_keeper_fails_the_job(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    spec = shell("sleep 600")
    spec.retries.infrastructure = 0
    job = await own_wire.submit(spec)
    await own_wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await own_server.kill_keeper()
    ended = await own_wire.ended(job.name)
    assert ended.state == common_pb2.JOB_STATE_FAILED
    assert ended.cause.origin == common_pb2.ORIGIN_INFRASTRUCTURE
    assert ended.cause.retryable


async def test_a_cancel_outlives_the_server(own_server: HatobaServer, own_wire: Wire) -> None:
    spec = shell("trap '' TERM; echo deaf; while true; do sleep 0.05; done")
    spec.stop_grace.FromMilliseconds(800)
    job = await own_wire.submit(spec)
    await printed(own_wire, job.name, 1)
    result = await own_wire.cancel(job.name)
    assert result.outcome == job_pb2.CANCEL_OUTCOME_CANCELLING
    await own_server.restart()
    ended = await own_wire.ended(job.name)
    assert ended.state == common_pb2.JOB_STATE_CANCELLED
    await until(lambda: not own_server.marked())


async def test_a_cancel_while_the_worker_is_dead_reaches_it(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    job = await own_wire.submit(shell("sleep 600"))
    await own_wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    await own_server.kill_worker()
    await own_wire.cancel(job.name)
    assert (await own_wire.ended(job.name)).state == common_pb2.JOB_STATE_CANCELLED
    await until(lambda: not own_server.marked())


async def test_queued_jobs_outlive_the_server(own_server: HatobaServer, own_wire: Wire) -> None:
    held = shell("true", "held")
    held.hold = True
    request = job_pb2.SubmitJobRequest(spec=held, request_id="the-same")
    job = await own_wire.call(request, job_pb2.Job)
    await own_server.restart()
    again, repeated = await own_wire.answer(request, job_pb2.Job)
    assert (again.name, again.uid, repeated) == (job.name, job.uid, True)
    assert again.state == common_pb2.JOB_STATE_HELD
    mask = field_mask_pb2.FieldMask(paths=["hold"])
    release = job_pb2.UpdateJobRequest(name=job.name, hold=False, update_mask=mask)
    await own_wire.call(release, job_pb2.Job)
    assert (await own_wire.ended(job.name)).state == common_pb2.JOB_STATE_SUCCEEDED


# -- the server process itself -----------------------------------------------------------------


@pytest.fixture
async def idle(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server without a worker."""
    async with running_server(tmp_path / "data", worker=False) as one:
        yield one


async def test_a_second_server_on_the_same_directory_exits_75(idle: HatobaServer) -> None:
    command = [sys.executable, "-m", "hatoba", "server", "start", "--data", str(idle.data)]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 75, said
    assert str(idle.pid) in said.decode()
    assert b"Traceback" not in said
    async with Wire(idle) as wire:
        request = job_pb2.CountJobsRequest()
        assert (await wire.once(request, job_pb2.CountJobsResponse)).total == 0


async def test_sigterm_drains_in_under_ten_seconds(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    job = await own_wire.submit(shell("echo begun; sleep 600"))
    await printed(own_wire, job.name, 1)
    async with Wire(own_server) as reader:
        watch = reader.stream(
            job_pb2.WatchJobsRequest(jobs=[job.name], cursor="0"), job_pb2.WatchJobsResponse
        )
        tail = reader.stream(
            job_pb2.TailLogsRequest(job=job.name, follow=True), job_pb2.TailLogsResponse
        )
        await anext(watch)
        await anext(tail)
        async with asyncio.TaskGroup() as group:
            stopped = group.create_task(own_server.terminate(), name="stop")
            messages = [message async for message in watch]
            _ = [piece async for piece in tail]
    assert stopped.result() < 10
    assert messages[-1].end.reason == "shutdown"
    # The job went on, and the next server finds it running.
    assert await asyncio.to_thread(own_server.marked)
    await own_server.start()
    assert (await own_wire.job(job.name)).state == common_pb2.JOB_STATE_RUNNING
    assert len(await own_wire.attempts(job.name)) == 1


async def test_stop_all_ends_everything(own_server: HatobaServer, own_wire: Wire) -> None:
    job = await own_wire.submit(shell(FAMILY))
    pids = await pids_of(own_wire, job.name, 1)
    command = [sys.executable, "-m", "hatoba", "server", "stop", "--all"]
    process = await asyncio.create_subprocess_exec(
        *command, "--grace", "0.2", "--data", str(own_server.data)
    )
    assert await process.wait() == 0
    await until(lambda: not own_server.left())
    assert await living(pids) == []


async def test_starts_that_were_killed_leave_a_directory_that_serves(tmp_path: Path) -> None:
    launcher = ColdLauncher()
    server = HatobaServer(tmp_path / "data", False, (), launcher)
    try:
        # The first traces of a start, each of which is followed by a kill.
        for trace in ("hatoba.db", "hatoba.db-wal", "admin.token", "traces.db"):
            server.launch()
            await until((server.data / trace).exists)
            await asyncio.to_thread(kill9, server.pid)
        await server.start()
        async with Wire(server) as wire:
            await wire.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
    finally:
        await server.close()
        await asyncio.to_thread(launcher.close)
