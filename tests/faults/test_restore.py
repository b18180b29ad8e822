"""A store put back to what it was before a hundred jobs ran: none is killed, none runs twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest
from command_line import server_command
from server_process import HatobaServer, running_server
from waiting import until
from wire import Wire, shell

from hatoba.v1 import admin_pb2, common_pb2, job_pb2
from hatoba_worker.keeper.ask import ask

JOBS = 100
ENDED = 20
LATER = 5
PATIENCE = 120.0


class Work:
    """Jobs that say in files when they begin and end, and wait until they may."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()

    def spec(self, number: int) -> job_pb2.JobSpec:
        said, gate = self._folder / f"said-{number}", self._folder / self._gate(number)
        spec = shell(
            f"echo start >> {said}; until [ -e {gate} ]; do sleep 0.3; done; echo end >> {said}",
            f"work-{number}",
        )
        spec.resources.memory_bytes = 16 << 20
        return spec

    def _gate(self, number: int) -> str:
        return "first" if number < ENDED else "rest"

    def open(self, gate: str) -> None:
        (self._folder / gate).touch()

    def said(self) -> list[list[str]]:
        """What each job said, by number."""
        files = [self._folder / f"said-{number}" for number in range(JOBS + LATER)]
        return [file.read_text().split() if file.exists() else [] for file in files]

    async def until(self, wanted: list[list[str]]) -> None:
        await until(lambda: self.said() == wanted, PATIENCE)


async def done(server: HatobaServer, *arguments: str) -> str:
    """A command that succeeds; what it wrote."""
    found = await asyncio.to_thread(server_command, server, *arguments)
    assert found.code == 0, found.err
    return found.out


def running(data: Path) -> int:
    """Attempts that the keeper has running."""
    (reply,) = ask(data, [{"op": "list"}], timeout=10.0)
    return len([one for one in reply["attempts"] if one.get("exit") is None])


async def phase(wire: Wire) -> str:
    found = await wire.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    return found.phase


@pytest.mark.faults
@pytest.mark.timeout(500)
async def test_a_hundred_jobs_that_the_backup_does_not_know_of(tmp_path: Path) -> None:
    work = await asyncio.to_thread(Work, tmp_path / "work")
    async with running_server(tmp_path / "data", worker=False) as server, Wire(server) as wire:
        names = [(await wire.submit(work.spec(number))).name for number in range(JOBS)]
        place = str(tmp_path / "backup")
        assert place in await done(server, "backup", place)
        server.worker = True
        await server.terminate()
        await server.start()
        later = [(await wire.submit(work.spec(JOBS + n))).name for n in range(LATER)]
        await work.until([["start"]] * (JOBS + LATER))
        await asyncio.to_thread(work.open, "first")
        for name in names[:ENDED]:
            assert (await wire.ended(name)).state == common_pb2.JOB_STATE_SUCCEEDED
        await server.kill()

        refused = await asyncio.to_thread(server_command, server, "restore", place)
        assert refused.code == 1
        assert "--replace" in refused.err
        await done(server, "restore", place, "--replace")
        await server.start()
        assert await phase(wire) == "restored"
        await changes_are_refused(wire, names[-1])
        # It stays so over a restart, and nobody has been told to end.
        await server.restart()
        assert await phase(wire) == "restored"
        assert await wire.job(names[0]) is not None
        first = [["start", "end"]] * ENDED + [["start"]] * (JOBS + LATER - ENDED)
        assert await asyncio.to_thread(work.said) == first

        would = await done(server, "adopt", "--dry-run")
        assert await phase(wire) == "restored"
        adopted = await done(server, "adopt")
        assert adopted.count("adopted  ") == JOBS, adopted
        assert adopted.count("left alone  ") == LATER, adopted
        assert would.count("would be adopted") == JOBS
        assert await phase(wire) == "serving"
        for name in names[:ENDED]:
            assert (await wire.ended(name)).state == common_pb2.JOB_STATE_SUCCEEDED

        await asyncio.to_thread(work.open, "rest")
        for name in names:
            assert (await wire.ended(name)).state == common_pb2.JOB_STATE_SUCCEEDED
        await work.until([["start", "end"]] * (JOBS + LATER))
        for name in later:
            with pytest.raises(grpc.aio.AioRpcError) as gone:
                await wire.once(job_pb2.GetJobRequest(name=name), job_pb2.Job)
            assert gone.value.code() is grpc.StatusCode.NOT_FOUND
        assert (await asyncio.to_thread(server_command, server, "doctor")).code == 0
        again = await asyncio.to_thread(server_command, server, "adopt")
        assert again.code == 1
        assert "nothing to adopt" in again.err


async def changes_are_refused(wire: Wire, name: str) -> None:
    for request, reply in (
        (job_pb2.SubmitJobRequest(spec=shell("true", "new")), job_pb2.Job),
        (job_pb2.CancelJobsRequest(jobs=[name]), job_pb2.CancelJobsResponse),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await wire.once(request, reply)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "hatoba server adopt" in (refused.value.details() or "")
