"""One server with a platform for pods and one for images, and runners played by hand."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio
from house_fixtures import own_wire, wire
from server_process import HatobaServer, configured, running_server
from waiting import eventually
from wire import Wire

from hatoba.runs import nonce_for
from hatoba.v1 import job_pb2, runner_pb2, worker_pb2
from hatoba_plugins.backends.mock import read_ledger

__all__ = ["own_wire", "wire"]

CONFIG = """
[defaults]
train = "pods"

[backends.pods]
type = "mock"
options = {{ runner = "pod", ledger = "{root}/pods.jsonl" }}

[backends.images]
type = "mock"
options = {{ runner = "image", ledger = "{root}/images.jsonl" }}
"""


def house(root: Path) -> Path:
    """A data directory whose platforms keep their ledgers beside it."""
    return configured(root / "data", CONFIG.format(root=root))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HatobaServer]:
    """The server that all tests share."""
    root = tmp_path_factory.mktemp("runners")
    async with running_server(house(root), worker=False) as one:
        yield one


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server for one test alone."""
    async with running_server(house(tmp_path), worker=False) as one:
        yield one


def job_on(backend: str, **script: Any) -> job_pb2.JobSpec:
    """A job whose container does what `script` says."""
    made = job_pb2.JobSpec(name="job", command=["train", "--fast"], backend=backend)
    made.backend_options.update({"mock": script})
    return made


class Runner:
    """A runner with what its platform gave it, and nothing else."""

    def __init__(self, server: HatobaServer, given: dict[str, str], run: str = "") -> None:
        self.given = given
        self.nonce = nonce_for(run, uuid.uuid4().hex)
        self.attempt, self.fence = given["HATOBA_ATTEMPT"], int(given["HATOBA_FENCE"])
        self._server = server
        self.launching = Wire(server, token=given["HATOBA_CREDENTIAL"])
        self.session = self.launching

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.launching.__aexit__(None, None, None)
        await self.session.__aexit__(None, None, None)

    async def claim(self) -> runner_pb2.ClaimAttemptResponse:
        """Claim; from then on every call shows the session's credential."""
        request = runner_pb2.ClaimAttemptRequest(
            attempt=self.attempt, fence=self.fence, nonce=self.nonce, want_assignment=True
        )
        reply = await self.launching.call(request, runner_pb2.ClaimAttemptResponse)
        if reply.credential:
            self.session = Wire(self._server, token=reply.credential)
        return reply

    async def heartbeat(self, started: float = 0.0) -> runner_pb2.HeartbeatResponse:
        """Say that it lives and, with a time, since when the code runs."""
        request = runner_pb2.HeartbeatRequest(attempt=self.attempt, fence=self.fence)
        if started:
            request.start_time.FromSeconds(round(started))
        return await self.session.call(request, runner_pb2.HeartbeatResponse)

    async def exit(self) -> runner_pb2.AwaitExitResponse:
        """How the container ended, asked for until it is known."""
        request = runner_pb2.AwaitExitRequest(attempt=self.attempt, fence=self.fence)
        while True:
            reply = await self.session.once(request, runner_pb2.AwaitExitResponse, timeout=40.0)
            if reply.known == runner_pb2.EXIT_KNOWN_ENDED:
                return reply

    async def commit(self, **how: Any) -> bool:
        """Commit an end, by default a good one."""
        told = {"kind": runner_pb2.EXIT_KIND_EXITED, **how}
        request = runner_pb2.CommitAttemptRequest(
            attempt=self.attempt, fence=self.fence, nonce=self.nonce, **told
        )
        return (await self.session.call(request, runner_pb2.CommitAttemptResponse)).accepted


def assignment_of(reply: runner_pb2.ClaimAttemptResponse) -> worker_pb2.LaunchAttempt:
    """What there is to run."""
    launch = worker_pb2.LaunchAttempt()
    assert reply.assignment.Unpack(launch)
    return launch


async def given_to(server: HatobaServer, job: job_pb2.Job, number: int = 1) -> dict[str, str]:
    """What the platform was told to give the runner of a job's attempt."""
    path = server.data.parent / f"{job.spec.backend}.jsonl"

    def look() -> dict[str, str] | None:
        for entry in read_ledger(path):
            data: dict[str, Any] = entry.data
            owner = data.get("owner", {"job_uid": "", "number": 0})
            if (owner["job_uid"], owner["number"]) == (job.uid, number):
                given: dict[str, str] = data["environment"]
                return given
        return None

    async def looked() -> dict[str, str] | None:
        return await asyncio.to_thread(look)

    return await eventually(looked)
