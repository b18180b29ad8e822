"""Disks that fill up or fail under a real server: what was acknowledged is there, it says what is
wrong, reads go on, and it serves again by itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from bed_processes import free_port
from grpc_health.v1 import health_pb2
from hand_device import HandDevice
from server_process import HatobaServer, configured, running_server, runs
from trees import put_chunks
from waiting import PATIENCE, eventually, until
from wire import Wire, shell

from hatoba.v1 import admin_pb2, common_pb2, device_pb2, job_pb2
from hatoba_scheduler.store.sqlite.database import connect
from hatoba_scheduler.store.sqlite.doctor import check

MEGABYTES = 24
DEVICES = """
[server]
listen = "127.0.0.1:{api}"

[devices]
listen = "127.0.0.1:{devices}"

[backends.edge]
type = "iot-edge-arm"
"""
CONFIG = '[defaults]\ntrain = "null"\n\n[backends.null]\ntype = "null"\n'

pytestmark = [pytest.mark.faults, pytest.mark.root, pytest.mark.timeout(180)]


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


async def status(wire: Wire) -> admin_pb2.ServerStatus:
    return await wire.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)


async def serving(wire: Wire, service: str) -> bool:
    """What health says of one service; empty: of the server."""
    channel = await wire.channel()
    ask = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await ask(health_pb2.HealthCheckRequest(service=service))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def until_phase(wire: Wire, phase: str, patience: float = PATIENCE) -> None:
    async def is_there() -> bool:
        return (await status(wire)).phase == phase

    await eventually(is_there, patience)


async def submitted(wire: Wire, number: int, *, weight: int = 0, hold: bool = False) -> str:
    spec = shell("true", f"job-{number}")
    spec.hold = hold
    if weight:
        spec.env.update({f"V{n}": "x" * 30_000 for n in range(weight)})
    return (await wire.submit(spec)).name


async def until_refused(wire: Wire, acknowledged: list[str]) -> grpc.aio.AioRpcError:
    """Submit until the server refuses; what it took meanwhile is acknowledged."""
    for number in range(len(acknowledged), 3_000):
        try:
            acknowledged.append(await submitted(wire, number, weight=3, hold=True))
        except grpc.aio.AioRpcError as refusal:
            return refusal
    raise AssertionError("it never refused")


async def all_there(wire: Wire, acknowledged: list[str], data: Path) -> None:
    """Every acknowledged job is there, and the store is well."""
    for name in acknowledged:
        assert (await wire.job(name)).name == name
    counted = await wire.call(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
    assert counted.total >= len(acknowledged)
    problems = await asyncio.to_thread(doctor, data)
    assert problems == []


def doctor(data: Path) -> list[str]:
    with closing(connect(data / "hatoba.db", reader=True)) as connection:
        return [problem.text() for problem in check(connection)]


def fill(path: Path) -> None:
    """Take all the room there is."""
    block = b"\0" * (64 << 10)
    try:
        with path.open("wb", buffering=0) as file:
            while file.write(block) == len(block):
                pass
    except OSError:
        return


async def read_only(wire: Wire, words: str) -> None:
    """The server says what is wrong, refuses changes, and answers questions."""
    await until_phase(wire, "read-only")
    assert not await serving(wire, "hatoba.v1.JobService")
    assert await serving(wire, "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await wire.once(job_pb2.CancelJobsRequest(jobs=["job-0-1"]), job_pb2.CancelJobsResponse)
    assert words in (refused.value.details() or "")
    assert "reading works" in (refused.value.details() or "")
    page = await wire.once(job_pb2.ListJobsRequest(page_size=10), job_pb2.ListJobsResponse)
    assert page.jobs


async def ends(wire: Wire, name: str) -> None:
    job = await wire.ended(name)
    assert job.state == common_pb2.JOB_STATE_SUCCEEDED


async def test_a_full_disk(small_disk: Path) -> None:
    data = await asyncio.to_thread(configured, small_disk / "data", CONFIG)
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        acknowledged = [await submitted(wire, 0, hold=True)]
        ballast = small_disk / "ballast"
        await asyncio.to_thread(fill, ballast)
        refusal = await until_refused(wire, acknowledged)
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "free space" in (refusal.details() or "")
        await read_only(wire, "free space")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await put_chunks(wire, {b"\0" * 32: b"x" * 1000})
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await asyncio.to_thread(ballast.unlink)
        await until_phase(wire, "serving", patience=5)
        assert await serving(wire, "hatoba.v1.JobService")
        acknowledged.append(await submitted(wire, 9_999))
        await ends(wire, acknowledged[-1])
        await server.restart()
        await all_there(wire, acknowledged, data)
        assert "Traceback" not in server.log_text()


class Keeper:
    """What a device keeps for the server: lines `1`, `2` and so on, till each is stored."""

    def __init__(self, device: HandDevice) -> None:
        self.stored = self.kept = 0
        self._device = device

    async def sends(self, count: int) -> None:
        """Send so many new lines, and all that are not known to be stored; until these are, or the
        stream ends.
        """
        self.kept += count
        async with self._device.connected() as stream:
            self.stored = stream.welcome.stored
            records = device_pb2.DeviceRecords(first=self.stored + 1)
            for number in range(records.first, self.kept + 1):
                records.records.add().log.text = f"{number}"
            await stream.say(device_pb2.DeviceItem(records=records))
            while self.stored < self.kept:
                told = await stream.next(lambda one: one.HasField("stored"))
                self.stored = told.stored.position


async def lines(wire: Wire) -> list[str]:
    """All that the device said, as far as the server knows."""
    request = device_pb2.ListDeviceLogsRequest(name="reader-1")
    told = await wire.once(request, device_pb2.ListDeviceLogsResponse)
    return [one.text for one in told.lines]


async def test_what_devices_kept_waits_for_room(small_disk: Path) -> None:
    ports = DEVICES.format(api=free_port("127.0.0.1"), devices=free_port("127.0.0.1"))
    data = await asyncio.to_thread(configured, small_disk / "data", ports + CONFIG)
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        token = await wire.once(device_pb2.CreateDeviceTokenRequest(uses=1), device_pb2.DeviceToken)
        device = HandDevice()
        await device.enroll(server.address, token.secret, "reader-1")
        keeper, acknowledged = Keeper(device), [await submitted(wire, 0, hold=True)]
        await keeper.sends(5)
        ballast = small_disk / "ballast"
        await asyncio.to_thread(fill, ballast)
        await until_refused(wire, acknowledged)
        await until_phase(wire, "read-only")
        for _ in range(3):
            with pytest.raises((EOFError, grpc.aio.AioRpcError)):
                await keeper.sends(5)
            assert keeper.stored == 5
        assert await lines(wire) == [f"{number}" for number in range(1, 6)]
        await asyncio.to_thread(ballast.unlink)
        await until_phase(wire, "serving", patience=5)
        await keeper.sends(0)
        assert keeper.stored == keeper.kept == 20
        await server.restart()
        assert await lines(wire) == [f"{number}" for number in range(1, 21)]


@contextmanager
def failing_syncs(pid: int) -> Iterator[None]:
    """While inside, every fdatasync of the process fails with EIO."""
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    inject = ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO"]
    command = ["strace", "-f", "-o", "/dev/null", *inject, "-p", str(pid)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.readline()
    if "attached" not in said:
        process.wait(10)
        pytest.skip(f"strace may not attach here: {said.strip()}")
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(10)
        process.stderr.close()


async def test_a_disk_that_fails(tmp_path: Path) -> None:
    data = await asyncio.to_thread(configured, tmp_path / "data", CONFIG)
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        acknowledged = [await submitted(wire, 0, hold=True)]
        for round_ in range(3):
            faults = failing_syncs(server.pid)
            await asyncio.to_thread(faults.__enter__)
            try:
                refusal = await until_refused(wire, acknowledged)
                assert refusal.code() is grpc.StatusCode.UNAVAILABLE
                assert "could not be written" in (refusal.details() or "")
                await read_only(wire, "could not be written")
                if round_ == 1:
                    await server.kill()
            finally:
                await asyncio.to_thread(faults.__exit__, None, None, None)
            if round_ == 1:
                await server.start()
            await until_phase(wire, "serving", patience=10)
            acknowledged.append(await submitted(wire, 9_000 + round_))
            await ends(wire, acknowledged[-1])
        await server.restart()
        await all_there(wire, acknowledged, data)
        assert "Traceback" not in server.log_text()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda file: os.truncate(file, 40_000),
    "emptied": lambda file: os.truncate(file, 0),
    "header": lambda file: overwrite(file, 0, b"garbage" * 20),
    "pages": lambda file: overwrite(file, 4096 * 2, bytes(4096 * 30)),
}


def overwrite(file: Path, place: int, data: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(place)
        handle.write(data)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_file_stops_the_start(damage: str, tmp_path: Path) -> None:
    data = await asyncio.to_thread(configured, tmp_path / "data", CONFIG)
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        for number in range(20):
            await submitted(wire, number, hold=True)
        await server.terminate()
        file = data / "hatoba.db"
        before = await asyncio.to_thread(file.read_bytes)
        await asyncio.to_thread(DAMAGES[damage], file)
        spoiled = await asyncio.to_thread(file.read_bytes)
        code, said = await started(server)
        assert code == 65, said
        assert "damaged" in said
        assert "hatoba server doctor" in said
        assert "hatoba server restore" in said
        assert "Traceback" not in said
        assert await asyncio.to_thread(file.read_bytes) == spoiled
        await asyncio.to_thread(file.write_bytes, before)
        await server.start()


async def test_damage_that_shows_later_stops_the_server(tmp_path: Path) -> None:
    data = await asyncio.to_thread(configured, tmp_path / "data", CONFIG)
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        names = [await submitted(wire, number, weight=3) for number in range(20)]
        for name in names:
            await ends(wire, name)
        await server.restart()
        file = data / "hatoba.db"
        pages = await asyncio.to_thread(lambda: file.stat().st_size // 4096)
        await asyncio.to_thread(overwrite, file, 4096 * 2, b"\xff" * 4096 * (pages - 2))
        await asyncio.to_thread((data / "hatoba.db-wal").unlink, missing_ok=True)
        with pytest.raises(grpc.aio.AioRpcError):
            await all_read(wire, names)
        await until(lambda: not runs(server.pid))
        said = server.log_text()
        assert "is damaged" in said
        assert "hatoba server restore" in said
        assert "Traceback" not in said


async def all_read(wire: Wire, names: list[str]) -> None:
    for name in names:
        await wire.once(job_pb2.GetJobRequest(name=name), job_pb2.Job)


async def started(server: HatobaServer) -> tuple[int, str]:
    """Start a server that must not come up: its exit code, and what it said."""
    start = [sys.executable, "-m", "hatoba", "server", "start", "--no-worker"]
    process = await asyncio.create_subprocess_exec(
        *start, "--data", str(server.data), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()
