"""A disk that is full: refused in words, nothing acknowledged is lost, and it goes on with room."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from server_process import running_server
from trees import put_chunks
from waiting import eventually
from wire import Wire, shell

from hatoba.v1 import job_pb2

MEGABYTES = 24


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes; skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.root
@pytest.mark.faults
async def test_a_full_disk(small_disk: Path) -> None:
    async with running_server(small_disk / "data", worker=False) as server, Wire(server) as wire:
        acknowledged = [await filled(wire, number) for number in range(2)]
        ballast = small_disk / "ballast"
        await asyncio.to_thread(fill, ballast)
        error = None
        for number in range(2, 2_000):
            try:
                acknowledged.append(await filled(wire, number))
            except grpc.aio.AioRpcError as found:
                error = found
                break
        assert error is not None
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error.details()
        assert "disk" in (error.details() or "")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await put_chunks(wire, {b"\0" * 32: b"x" * 1000})
        assert refused.value.code() in (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.INVALID_ARGUMENT,
        )
        # Reading goes on, and nothing that was acknowledged is gone.
        counted = await wire.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
        assert counted.total == len(acknowledged)

        await asyncio.to_thread(ballast.unlink)

        async def goes_on() -> str:
            return await filled(wire, len(acknowledged))

        acknowledged.append(await eventually(goes_on, 5, despite=(grpc.aio.AioRpcError,)))
        await server.restart()
        counted = await wire.call(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
        assert counted.total == len(acknowledged)
        for name in acknowledged:
            assert (await wire.job(name)).name == name
        assert "Traceback" not in server.log_text()


async def filled(wire: Wire, number: int) -> str:
    """Submit a held job of some 100 KB; its name."""
    spec = shell("true", f"big-{number}")
    spec.hold = True
    spec.env.update({f"V{n}": "x" * 30_000 for n in range(3)})
    return (await wire.submit(spec)).name


def fill(path: Path) -> None:
    """Take all but a little of the room."""
    block = b"\0" * (256 << 10)
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(block) == len(block):
                pass
    except OSError:
        return
