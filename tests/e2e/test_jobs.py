"""What a job gets, what becomes of it, and what is told of it, over the wire."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
from google.protobuf import field_mask_pb2
from server_process import living, running_server, runs
from trees import get_tree, put_tree
from waiting import eventually, until
from wire import TERMINAL, Wire, shell

from hatoba.v1 import common_pb2, job_pb2, queue_pb2, worker_pb2

SUCCEEDED = common_pb2.JOB_STATE_SUCCEEDED
FAILED = common_pb2.JOB_STATE_FAILED


def script(text: str, name: str = "script", *arguments: str) -> job_pb2.JobSpec:
    """A job that runs Python code with the client at hand."""
    spec = job_pb2.JobSpec(name=name, command=["python", "-c", text, *arguments])
    spec.environment.python = sys.executable
    return spec


async def succeeds(wire: Wire, spec: job_pb2.JobSpec) -> job_pb2.Job:
    """Run a job to its good end."""
    job = await wire.ended((await wire.submit(spec)).name)
    assert job.state == SUCCEEDED, job.cause
    return job


# -- how it ends -------------------------------------------------------------------------------

ENDS = {
    "exit code": (shell("echo some; echo words >&2; exit 9"), "FAILED", "EXIT_CODE", "9"),
    "signal": (shell("kill -SEGV $$"), "FAILED", "SIGNAL", "SIGSEGV"),
    "not found": (
        job_pb2.JobSpec(name="job", command=["no-such-program"]),
        "FAILED",
        "COMMAND_NOT_FOUND",
        "no-such-program",
    ),
    "not executable": (
        job_pb2.JobSpec(name="job", command=["/etc/hostname"]),
        "FAILED",
        "COMMAND_NOT_EXECUTABLE",
        "/etc/hostname",
    ),
}


@pytest.mark.parametrize("case", ENDS)
async def test_an_end_is_told_as_it_was(case: str, wire: Wire) -> None:
    spec, state, code, words = ENDS[case]
    job = await wire.ended((await wire.submit(spec)).name)
    assert common_pb2.JobState.Name(job.state) == f"JOB_STATE_{state}"
    assert common_pb2.CauseCode.Name(job.cause.code) == f"CAUSE_CODE_{code}"
    assert job.cause.origin == common_pb2.ORIGIN_USER
    assert words in job.cause.message
    (attempt,) = await wire.attempts(job.name)
    assert attempt.cause == job.cause


async def test_the_last_lines_stand_in_the_cause(wire: Wire) -> None:
    job = await wire.submit(shell("for i in $(seq 30); do echo line $i; done; exit 1"))
    cause = (await wire.ended(job.name)).cause
    assert cause.exit_code == 1
    assert cause.last_log_lines[-3:] == ["line 28", "line 29", "line 30"]


async def test_a_time_limit_ends_all_of_it(wire: Wire) -> None:
    spec = shell("sleep 601 & echo $! $$; wait")
    spec.timeout.FromMilliseconds(400)
    spec.stop_grace.FromMilliseconds(100)
    job = await wire.ended((await wire.submit(spec)).name)
    assert job.state == common_pb2.JOB_STATE_TIMED_OUT
    assert job.cause.code == common_pb2.CAUSE_CODE_RUN_TIMEOUT
    pids = [int(word) for word in (await wire.log(job.name)).split()]
    assert len(pids) == 2
    assert await living(pids) == []


async def test_a_memory_limit_is_enforced_and_told(wire: Wire) -> None:
    grow = "import sys\nblocks = []\nwhile True: blocks.append(bytearray(1 << 20))"
    spec = job_pb2.JobSpec(name="grow", command=[sys.executable, "-I", "-S", "-c", grow])
    spec.resources.memory_bytes = 96 << 20
    job = await wire.ended((await wire.submit(spec)).name)
    assert job.state == FAILED
    assert job.cause.code == common_pb2.CAUSE_CODE_OUT_OF_MEMORY, job.cause
    (attempt,) = await wire.attempts(job.name)
    assert attempt.usage.memory_limit_by in ("cgroup", "rlimit")


async def test_what_a_job_leaves_running_ends_with_it(wire: Wire) -> None:
    spec = shell("setsid setsid sh -c 'trap \"\" TERM; echo $$; sleep 602' & sleep 0.2")
    spec.stop_grace.FromMilliseconds(200)
    job = await succeeds(wire, spec)
    (pid,) = [int(word) for word in (await wire.log(job.name)).split()]
    await until(lambda: not runs(pid))


async def test_a_cancelled_job_may_clean_up(wire: Wire, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    spec = shell(
        f"trap 'echo cleaned > {trace}; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    )
    job = await wire.submit(spec)
    await wire.in_state(job.name, common_pb2.JOB_STATE_RUNNING)
    while not (await logged(wire, job.name)).startswith(b"up"):
        pass
    result = await wire.cancel(job.name)
    assert result.outcome in (
        job_pb2.CANCEL_OUTCOME_CANCELLING,
        job_pb2.CANCEL_OUTCOME_CANCELLED,
    )
    ended = await wire.ended(job.name)
    assert ended.state == common_pb2.JOB_STATE_CANCELLED
    assert ended.cause.code == common_pb2.CAUSE_CODE_CANCELLED
    assert await asyncio.to_thread(trace.read_text) == "cleaned\n"
    again = await wire.cancel(job.name)
    assert again.outcome == job_pb2.CANCEL_OUTCOME_ALREADY_TERMINAL


async def logged(wire: Wire, name: str) -> bytes:
    """What is there of a log by now."""
    request = job_pb2.TailLogsRequest(job=name, stream="stdout")
    stream = wire.stream(request, job_pb2.TailLogsResponse)
    return b"".join([piece.data async for piece in stream])


# -- dependencies, arrays, retries, queues -----------------------------------------------------


async def test_a_job_waits_for_those_it_depends_on(wire: Wire, tmp_path: Path) -> None:
    order, go = tmp_path / "order", tmp_path / "go"
    first = await wire.submit(
        shell(f"while [ ! -e {go} ]; do sleep 0.01; done; echo first >> {order}")
    )
    spec = shell(f"echo second >> {order}")
    spec.after_ok.append(first.name)
    second = await wire.submit(spec)
    assert second.state == common_pb2.JOB_STATE_BLOCKED
    waiting = (await wire.job(second.name)).waiting_reason
    assert first.name.rpartition("/")[2] in waiting
    await asyncio.to_thread(go.touch)
    assert (await wire.ended(second.name)).state == SUCCEEDED
    assert await asyncio.to_thread(order.read_text) == "first\nsecond\n"


async def test_a_job_whose_dependency_fails_never_runs(wire: Wire) -> None:
    held = shell("exit 4")
    held.hold = True
    first = await wire.submit(held)
    spec = shell("true")
    spec.after_ok.append(first.uid)
    second = await wire.submit(spec)
    third_spec = shell("true")
    third_spec.after_ok.append(second.name)
    third = await wire.submit(third_spec)
    mask = field_mask_pb2.FieldMask(paths=["hold"])
    await wire.call(job_pb2.UpdateJobRequest(name=first.name, update_mask=mask), job_pb2.Job)
    for job in (second, third):
        ended = await wire.ended(job.name)
        assert ended.state == common_pb2.JOB_STATE_UPSTREAM_FAILED
        assert ended.cause.code == common_pb2.CAUSE_CODE_UPSTREAM_FAILED
        assert await wire.attempts(job.name) == []


async def test_an_array_runs_each_index_once_and_few_at_a_time(wire: Wire, tmp_path: Path) -> None:
    size, at_once, log = 24, 3, tmp_path / "log"
    spec = shell(
        f"echo start $HATOBA_INDEX of $HATOBA_TASK_COUNT >> {log}; sleep 0.05; "
        f"echo end $HATOBA_INDEX >> {log}"
    )
    spec.array.size, spec.array.max_parallel = size, at_once
    job = await succeeds(wire, spec)
    assert job.counts.by_state["SUCCEEDED"] == job.counts.total == size
    lines = (await asyncio.to_thread(log.read_text)).splitlines()
    starts = sorted(int(line.split()[1]) for line in lines if line.startswith("start"))
    assert starts == list(range(size))
    assert all(line.endswith(f"of {size}") for line in lines if line.startswith("start"))
    running = most = 0
    for line in lines:
        running += 1 if line.startswith("start") else -1
        most = max(most, running)
    assert most == at_once
    tasks = await wire.tasks(job.name)
    assert [(task.index, task.state) for task in tasks] == [(i, SUCCEEDED) for i in range(size)]


async def test_the_first_failure_of_an_array_may_cancel_the_rest(wire: Wire) -> None:
    spec = shell("[ $HATOBA_INDEX = 0 ] && exit 5; sleep 603")
    spec.array.size, spec.array.max_parallel, spec.array.fail_fast = 50, 4, True
    spec.stop_grace.FromMilliseconds(100)
    job = await wire.ended((await wire.submit(spec)).name)
    assert job.state == FAILED
    assert job.counts.by_state["FAILED"] == 1
    assert job.counts.by_state["CANCELLED"] == 49


async def test_retries_back_off_and_each_attempt_keeps_its_log(wire: Wire) -> None:
    spec = shell("echo attempt $HATOBA_ATTEMPT_NUMBER; [ $HATOBA_ATTEMPT_NUMBER = 3 ] || exit 6")
    spec.retries.user = 2
    spec.retries.backoff.FromMilliseconds(100)
    job = await succeeds(wire, spec)
    attempts = await wire.attempts(job.name)
    states = [common_pb2.AttemptState.Name(attempt.state) for attempt in attempts]
    assert states == [f"ATTEMPT_STATE_{word}" for word in ("FAILED", "FAILED", "SUCCEEDED")]
    for number, attempt in enumerate(attempts, 1):
        assert attempt.number == number
        assert await wire.log(job.name, attempt=number) == b"attempt %d\n" % number
    for before, after in itertools.pairwise(attempts):
        assert after.create_time.ToNanoseconds() >= before.end_time.ToNanoseconds()
        assert after.fence > before.fence


async def test_a_budget_that_is_spent_fails_the_job(wire: Wire) -> None:
    spec = shell("exit 6")
    spec.retries.user = 1
    spec.retries.backoff.FromMilliseconds(1)
    job = await wire.ended((await wire.submit(spec)).name)
    assert (job.state, job.cause.exit_code) == (FAILED, 6)
    assert len(await wire.attempts(job.name)) == 2


async def test_a_queue_bounds_what_runs_and_priority_goes_first(wire: Wire, tmp_path: Path) -> None:
    order, go = tmp_path / "order", tmp_path / "go"
    queue = queue_pb2.CreateQueueRequest(queue_id="narrow", queue=queue_pb2.Queue(max_running=1))
    await wire.once(queue, queue_pb2.Queue)

    def spec(name: str, priority: int, wait: bool = False) -> job_pb2.JobSpec:
        waiting = f"while [ ! -e {go} ]; do sleep 0.01; done; " if wait else ""
        made = shell(f"{waiting}echo {name} >> {order}")
        made.queue, made.priority = "narrow", priority
        return made

    first = await wire.submit(spec("first", 0, wait=True))
    await wire.in_state(first.name, common_pb2.JOB_STATE_RUNNING)
    jobs = [await wire.submit(spec(f"job{n}", p)) for n, p in enumerate([0, 5, 0, 9])]
    assert "narrow" in (await wire.job(jobs[0].name)).waiting_reason
    await asyncio.to_thread(go.touch)
    for job in jobs:
        assert (await wire.ended(job.name)).state == SUCCEEDED
    text = await asyncio.to_thread(order.read_text)
    assert text.split() == ["first", "job3", "job1", "job0", "job2"]


# -- what a job gets -----------------------------------------------------------------------------


async def test_parameters_variables_and_a_fresh_directory(wire: Wire) -> None:
    spec = script(
        "import hatoba, json, os, sys; job = hatoba.current_job(); "
        "print(json.dumps([job.params, sys.argv[1:], os.environ['MINE'], os.listdir('.'), "
        "os.environ['TRACEPARENT'], os.environ['HATOBA_JOB']]))",
        "params",
        "--lr=${params.lr}",
        "${params.name}",
    )
    spec.params["lr"].number_value = 0.01
    spec.params["name"].string_value = "a b"
    spec.params["fast"].bool_value = True
    spec.env["MINE"] = "yes\nindeed"
    job = await succeeds(wire, spec)
    params, arguments, mine, files, traceparent, name = json.loads(await wire.log(job.name))
    assert params == {"lr": 0.01, "name": "a b", "fast": True}
    assert arguments == ["--lr=0.01", "a b"]
    assert (mine, files, name) == ("yes\nindeed", [], job.name)
    assert traceparent.split("-")[1] == job.trace_id


async def test_code_and_inputs_come_in_and_outputs_go_out(wire: Wire) -> None:
    big = os.urandom(9 << 20)
    code = await put_tree(wire, {"run.sh": b'#!/bin/sh\nexec ./sub/tool "$@"\n', "sub/tool": TOOL})
    data = await put_tree(wire, {"big.bin": big, "deep/er/empty": b""})
    spec = job_pb2.JobSpec(name="trees", command=["./run.sh", "faces"])
    spec.code.CopyFrom(code)
    spec.inputs.add(name="faces", manifest=data)
    job = await succeeds(wire, spec)
    assert job.outputs.files == 3
    found = await get_tree(wire, job.outputs.digest)
    assert found == {
        "copy/big.bin": big,
        "copy/empty": b"",
        "copy/link": b"-> big.bin",
        "sum": hashlib.sha256(big).hexdigest().encode(),
    }


TOOL = b"""#!/bin/sh
mkdir "$HATOBA_OUTPUTS/copy"
cp "$HATOBA_INPUTS/$1/big.bin" "$HATOBA_INPUTS/$1/deep/er/empty" "$HATOBA_OUTPUTS/copy"
ln -s big.bin "$HATOBA_OUTPUTS/copy/link"
printf %s "$(sha256sum "$HATOBA_INPUTS/$1/big.bin" | cut -d ' ' -f 1)" > "$HATOBA_OUTPUTS/sum"
"""


async def test_a_retried_task_goes_on_from_its_checkpoint(wire: Wire) -> None:
    spec = script(
        "import hatoba, sys\n"
        "job = hatoba.current_job()\n"
        "found = job.latest_checkpoint\n"
        "step = int((found / 'step').read_text()) if found else 0\n"
        "print('from', step, flush=True)\n"
        "for step in range(step + 1, step + 4):\n"
        "    with job.checkpoint(step, {'loss': 1 / step}) as directory:\n"
        "        (directory / 'step').write_text(str(step))\n"
        "sys.exit(0 if step == 9 else 1)\n"
    )
    spec.retries.user = 5
    spec.retries.backoff.FromMilliseconds(1)
    job = await succeeds(wire, spec)
    attempts = await wire.attempts(job.name)
    assert [attempt.checkpoint.step for attempt in attempts] == [3, 6, 9]
    logs = [await wire.log(job.name, attempt=attempt.number) for attempt in attempts]
    assert logs == [b"from 0\n", b"from 3\n", b"from 6\n"]
    assert attempts[1].checkpoint.metrics["loss"] == pytest.approx(1 / 6)

    rerun = job_pb2.RerunJobRequest(job=job.name, from_checkpoint=True)
    again = await wire.once(rerun, job_pb2.Job)
    assert again.rerun_of == job.name
    await wire.ended(again.name)
    assert (await wire.log(again.name, attempt=1)) == b"from 9\n"


async def test_metrics_and_progress_are_read_back(wire: Wire, tmp_path: Path) -> None:
    go = tmp_path / "go"
    spec = script(
        "import hatoba, pathlib, sys, time\n"
        "job = hatoba.current_job()\n"
        "for step in range(200):\n"
        "    job.log_metrics({'loss': 1 / (step + 1), 'odd': float('nan')}, step)\n"
        "job.progress(200, 400, 'half way')\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n",
        "metrics",
        str(go),
    )
    job = await wire.submit(spec)

    async def told() -> job_pb2.Progress | None:
        progress = (await wire.job(job.name)).progress
        return progress if progress.total else None

    found = await eventually(told)
    assert (found.done, found.message) == (200, "half way")
    await asyncio.to_thread(go.touch)
    await wire.ended(job.name)
    request = job_pb2.QueryMetricsRequest(job=job.name, keys=["loss"])
    (series,) = (await wire.once(request, job_pb2.QueryMetricsResponse)).series
    assert [point.step for point in series.points] == list(range(200))
    assert [point.value for point in series.points] == [1 / (step + 1) for step in range(200)]
    every = job_pb2.QueryMetricsRequest(job=job.name, max_points=10)
    found_series = (await wire.once(every, job_pb2.QueryMetricsResponse)).series
    assert [one.key for one in found_series] == ["loss", "odd"]
    assert all(len(one.points) <= 10 for one in found_series)


# -- environments and secrets --------------------------------------------------------------------


def tiny_wheel(directory: Path) -> Path:
    """A wheel with one module, written by hand: building an environment needs no network."""
    path = directory / "tinymod-1.0-py3-none-any.whl"
    info = "tinymod-1.0.dist-info"
    files = {
        "tinymod.py": "GREETING = 'hello from tinymod'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinymod\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


async def test_requirements_become_a_cached_environment(wire: Wire, tmp_path: Path) -> None:
    wheel = await asyncio.to_thread(tiny_wheel, tmp_path)
    prefixes = []
    for _ in range(2):
        text = "import sys, tinymod; print(tinymod.GREETING); print(sys.prefix)"
        spec = job_pb2.JobSpec(name="env", command=["python", "-c", text])
        spec.environment.requirements = f"tinymod @ file://{wheel}\n"
        job = await succeeds(wire, spec)
        greeting, prefix = (await wire.log(job.name)).decode().splitlines()
        assert greeting == "hello from tinymod"
        prefixes.append(prefix)
    assert prefixes[0] == prefixes[1] != sys.prefix


async def test_requirements_that_do_not_resolve_are_the_users(wire: Wire) -> None:
    spec = shell("true")
    spec.environment.requirements = "gone @ file:///nowhere/gone-1.0-py3-none-any.whl\n"
    job = await wire.ended((await wire.submit(spec)).name)
    assert job.state == FAILED
    assert job.cause.code == common_pb2.CAUSE_CODE_ENVIRONMENT_FAILED
    assert job.cause.origin == common_pb2.ORIGIN_USER
    assert any("gone" in line for line in job.cause.last_log_lines), job.cause
    assert b"gone" in await wire.log(job.name, stream="build")


async def test_a_secret_reaches_the_job_and_nothing_else(tmp_path: Path) -> None:
    data, value = tmp_path / "data", "s3cr3t-value-of-the-test"
    secrets = data / "secrets"
    await asyncio.to_thread(secrets.mkdir, parents=True, mode=0o700)
    await asyncio.to_thread(put_private, secrets / "api-key", value)
    async with running_server(data) as server, Wire(server) as wire:
        spec = shell('[ "$MY_KEY" = "$API_KEY" ] && printf %s "$MY_KEY" | sha256sum')
        spec.secrets.add(name="api-key", env="MY_KEY")
        spec.secrets.add(name="api-key")
        await a_host_is_there(wire)
        job = await wire.submit(spec)
        assert (await wire.ended(job.name)).state == SUCCEEDED
        log = (await wire.log(job.name)).decode()
        assert log.split()[0] == hashlib.sha256(value.encode()).hexdigest()
    assert await asyncio.to_thread(files_with, data, value) == [str(secrets / "api-key")]


async def a_host_is_there(wire: Wire) -> None:
    """Wait for the worker, whose secrets are known from then on."""
    request = worker_pb2.ListHostsRequest()

    async def there() -> bool:
        return bool((await wire.once(request, worker_pb2.ListHostsResponse)).hosts)

    await eventually(there)


def put_private(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def files_with(directory: Path, text: str) -> list[str]:
    """The files below a directory that hold a text."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return sorted(str(path) for path in files if text.encode() in path.read_bytes())


# -- following -----------------------------------------------------------------------------------


async def test_events_come_once_and_in_order_and_end(wire: Wire) -> None:
    job = await succeeds(wire, shell("true"))
    events = await wire.events(job.name)
    assert [event.job_seq for event in events] == list(range(1, len(events) + 1))
    assert [event.job_terminal for event in events].count(True) == 1
    assert events[-1].job_terminal or events[-1].job_to in TERMINAL
    assert events[0].reason == "submit"


async def test_a_host_tells_what_it_has(wire: Wire) -> None:
    reply = await wire.once(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
    (host,) = reply.hosts
    assert host.connected
    assert host.embedded
    assert host.cpus >= 1
    assert host.slots >= 32
