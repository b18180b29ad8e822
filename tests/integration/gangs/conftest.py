"""A server whose host has eight places, and jobs that leave word of themselves."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from server_process import HatobaServer, running_server
from waiting import until
from wire import Wire

from hatoba.v1 import job_pb2

SIZE = 8
SCRIPT = Path(__file__).with_name("member.py")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """One with a host of eight places."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "worker.json").write_text(json.dumps({"cpus": SIZE, "slots": 4, "name": "host-1"}))
    async with running_server(data) as one:
        yield one


@pytest.fixture
async def wire(server: HatobaServer) -> AsyncIterator[Wire]:
    """Calls to it."""
    async with Wire(server) as one:
        yield one


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where jobs leave word."""
    made = tmp_path / "marks"
    made.mkdir()
    return made


def spec(marks: Path, mode: str, **fields: object) -> job_pb2.JobSpec:
    """A job that does what `member.py` does in this mode, on one core."""
    made = job_pb2.JobSpec(
        name=mode,
        command=[sys.executable, str(SCRIPT), str(marks), mode],
        **fields,  # type: ignore[arg-type]
    )
    made.resources.cpus = 1
    made.environment.caller_interpreter = sys.executable
    made.stop_grace.FromSeconds(5)
    return made


def gang(marks: Path, mode: str) -> job_pb2.JobSpec:
    """Eight of these, which begin anew when one fails."""
    made = spec(marks, mode, replicas=SIZE)
    made.gang.policy = job_pb2.GANG_POLICY_RESTART
    made.retries.user = 1
    made.retries.backoff.SetInParent()
    return made


async def seen(marks: Path, pattern: str, count: int) -> list[Path]:
    """The files of that name, once there are so many."""
    await until(lambda: len(list(marks.glob(pattern))) >= count)
    return await found(marks, pattern)


async def found(marks: Path, pattern: str) -> list[Path]:
    """The files of that name."""
    return await asyncio.to_thread(lambda: sorted(marks.glob(pattern)))


async def explained(wire: Wire, name: str) -> job_pb2.Explanation:
    """Why a job is where it is."""
    return await wire.call(job_pb2.ExplainJobRequest(name=name), job_pb2.Explanation)
