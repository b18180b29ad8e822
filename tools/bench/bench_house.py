"""Servers of a benchmark: each on a fresh directory, pinned where asked, gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "testbed")]

from google.protobuf.duration_pb2 import Duration  # noqa: E402
from server_process import HATOBA, ColdLauncher, HatobaServer, clean_environment  # noqa: E402
from waiting import until  # noqa: E402
from wire import Wire  # noqa: E402

from hatoba.v1 import common_pb2, job_pb2  # noqa: E402

SERVER_CORE = 0
LOAD_CORE = 1
STARTED_WITHIN = 30.0

NULL = '[defaults]\ntrain = "null"\n[backends.null]\ntype = "null"\n'


def held_spec() -> job_pb2.JobSpec:
    """A job as small as jobs are, queued without being run."""
    return job_pb2.JobSpec(
        name="bench",
        queue="default",
        backend="null",
        command=["/bin/true"],
        stop_grace=Duration(seconds=10),
        hold=True,
    )


class PinnedLauncher(ColdLauncher):
    """Starts servers that stay on one core."""

    def __init__(self, core: int, program: Sequence[str] = HATOBA) -> None:
        super().__init__(program=program)
        self._core = core

    def start(self, arguments: Sequence[str], log: Path) -> int:
        """See Launcher."""
        pid = super().start(arguments, log)
        os.sched_setaffinity(pid, {self._core})
        return pid


def pin(core: int) -> None:
    """Keep this process, and the threads that it will have, on one core."""
    os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A fresh directory, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="hatoba-bench-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def server(
    work: Path,
    *,
    config: str = "",
    worker: bool = False,
    core: int | None = None,
    program: Sequence[str] = HATOBA,
) -> AsyncIterator[HatobaServer]:
    """A server that is ready; at the end nothing of it is left."""
    launcher = ColdLauncher(program=program) if core is None else PinnedLauncher(core, program)
    data = work / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    (data / "hatoba.toml").write_text(config)
    house = HatobaServer(data, worker, (), launcher)
    try:
        await house.start()
        yield house
    finally:
        await house.close()
        await asyncio.to_thread(launcher.close)


@dataclass(frozen=True, slots=True)
class Floor:
    """A floor server that listens."""

    address: str
    token: str
    pid: int


@contextlib.asynccontextmanager
async def floor_server(
    work: Path, *, core: int | None = None, bare: bool = False
) -> AsyncIterator[Floor]:
    """The server that does nothing, see floor_server.py; `bare`: without interceptors."""
    data, ready = work / "floor", work / "floor-ready.json"
    await asyncio.to_thread(work.mkdir, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "floor_server.py"), str(data), str(ready)),
        *(("bare",) if bare else ()),
        env=clean_environment(),
    )
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        await until(lambda: ready.exists() or process.returncode is not None, STARTED_WITHIN)
        found = json.loads(ready.read_text())
        token = (data / "admin.token").read_text().strip()
        yield Floor(str(found["grpc"]), token, process.pid)
    finally:
        process.terminate()
        await process.wait()


async def count_jobs(wire: Wire) -> int:
    """How many jobs the server has."""
    counted = await wire.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
    return counted.total


async def all_ended(wire: Wire, count: int, cursor: str) -> str:
    """Wait until `count` jobs have ended since a cursor; the cursor then.

    Raises RuntimeError unless all of them succeeded.
    """
    states: Counter[str] = Counter()
    request = job_pb2.WatchJobsRequest(cursor=cursor, jobs_only=True)
    async for message in wire.stream(request, job_pb2.WatchJobsResponse):
        if message.HasField("event") and message.event.job_terminal:
            states[common_pb2.JobState.Name(message.event.job_to)] += 1
        if states.total() == count:
            break
    if states != {"JOB_STATE_SUCCEEDED": count}:
        raise RuntimeError(f"of {count} jobs ended {dict(states)}")
    return message.cursor


async def position(wire: Wire) -> str:
    """The cursor of now."""
    async for message in wire.stream(job_pb2.WatchJobsRequest(), job_pb2.WatchJobsResponse):
        return message.cursor
    raise RuntimeError("the watch said nothing")


def batch(spec: job_pb2.JobSpec, first: int, count: int) -> job_pb2.SubmitJobsRequest:
    """A batch of equal jobs, each with a request id of its own."""
    items = (
        job_pb2.SubmitJobsItem(spec=spec, request_id=f"bench-{number}")
        for number in range(first, first + count)
    )
    return job_pb2.SubmitJobsRequest(items=items)
