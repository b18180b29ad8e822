"""What the benchmark of devices is made of: devices in a store, processes that play them, and the
servers that they dial.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import stream_floor
from bench_house import HERE, LOAD_CORE, SERVER_CORE, STARTED_WITHIN
from bench_statistics import percentile
from device_clients import Settings
from server_process import HatobaServer, clean_environment
from serving_house import unloaded
from waiting import until
from wire import Wire

from hatoba.v1 import deployment_pb2, job_pb2
from hatoba_scheduler.auth.authority import DEVICES_NAME, Authority, DeviceIdentity, read_request
from hatoba_scheduler.certificates import pem
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState, Platform
from hatoba_scheduler.store.devices import Write, batches
from hatoba_scheduler.store.sqlite import open_store
from hatoba_worker import keys

HOST = "127.0.0.1"
PROCESSES = 4
DAY = 24 * 3600 * 10**6
NAME = "reader"
LABEL = ("site", "tokyo")


# -- devices --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Devices of one installation: with `authority` they come by TLS and show what is in `shown`,
    key and certificate, all in PEM. `port` is what a server shows them."""

    names: list[str]
    authority: str = ""
    shown: Mapping[str, list[str]] = field(default_factory=dict)
    port: tuple[str, str] = ("", "")

    def settings(self, port: int) -> list[Settings]:
        """For the processes that play them."""
        address, ours = f"{HOST}:{port}", [self.names[n::PROCESSES] for n in range(PROCESSES)]
        name = DEVICES_NAME if self.authority else ""
        return [
            Settings(
                address,
                names,
                self.authority,
                name,
                {one: self.shown[one] for one in names if one in self.shown},
            )
            for names in ours
        ]


async def enroll(data: Path, count: int, *, tls: bool) -> Enrolled:
    """Have the store of a new directory know so many devices."""
    await asyncio.to_thread(data.mkdir, mode=0o700, parents=True)
    devices = [_device(f"device-{number:05}") for number in range(count)]
    store = await open_store(data, _micros)
    try:
        for some in batches([Write(one, 0) for one in devices]):
            await store.devices.write(some)
        cluster = store.identity.cluster_id
    finally:
        await store.close()
    names = [one.name for one in devices]
    return await asyncio.to_thread(_certified, data, cluster, devices) if tls else Enrolled(names)


def _device(name: str) -> Device:
    return Device(
        name=name,
        state=DeviceState.ENROLLED,
        labels=(LABEL,),
        platform=Platform("arm64"),
        capacity=Capacity(4.0, 1 << 30, 8 << 30),
        version=1,
        identity=f"identity-of-{name}",
        create_time=_micros(),
        certificate_end=_micros() + 90 * DAY,
    )


def _micros() -> int:
    return round(time.time() * 1e6)


def _certified(data: Path, cluster: str, devices: Sequence[Device]) -> Enrolled:
    authority = Authority.open(data / "tls", cluster, lambda: dt.datetime.now(dt.UTC))
    shown = {}
    for one in devices:
        key = keys.new_key()
        csr = read_request(keys.request_for(key), "csr")
        signed = authority.sign_device(csr, DeviceIdentity(one.name, one.identity))
        shown[one.name] = [keys.key_text(key), signed]
    pair = authority.device_port()
    port = (keys.key_text(pair.key), pem(pair.certificate))
    return Enrolled([one.name for one in devices], authority.pem, shown, port)


# -- what they tell -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Came:
    """When each device came as far as was asked, monotonic seconds; how often all have dialled."""

    times: list[float]
    dials: int

    def last(self, since: float) -> float:
        """Seconds until the last of them."""
        return max(self.times) - since

    def words(self, since: float) -> str:
        """For people."""
        half, most = (percentile(self.times, share) - since for share in (0.5, 0.99))
        return f"half in {half:.1f} s, 99 % in {most:.1f} s, all in {self.last(since):.1f} s"


def told(lines: Iterable[bytes]) -> Came:
    """What all processes answered, together. Raises ValueError where one has ended instead."""
    found = [json.loads(line) for line in lines]
    times = [time for one in found for time in one["times"]]
    return Came(times, sum(one["dials"] for one in found))


def connections(table: str, port: int) -> int:
    """How many connections to a port here are established, by the text of /proc/net/tcp."""
    end, established = f":{port:04X}", "01"
    rows = (line.split() for line in table.splitlines()[1:])
    return sum(row[1].endswith(end) and row[3] == established for row in rows)


class Fleet:
    """The processes that play devices, see device_clients.py."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process], port: int) -> None:
        self._processes = processes
        self._port = port

    async def dial(self) -> float:
        """Have them begin; when that was."""
        began = time.monotonic()
        self._say("dial")
        return began

    async def back(self, since: float) -> Came:
        """Wait until all have a stream that is newer."""
        return await self._ask(f"back {since}")

    async def reached(self, revision: int) -> Came:
        """Wait until all were told to run this revision."""
        return await self._ask(f"reached {revision}")

    async def connections(self) -> int:
        """How many there are as the server's machine sees them."""
        # A server that is told to listen on IPv4 does so on a socket of either kind.
        tables = [Path(f"/proc/net/{name}") for name in ("tcp", "tcp6")]
        found = await asyncio.to_thread(lambda: [one.read_text() for one in tables])
        return sum(connections(one, self._port) for one in found)

    async def _ask(self, question: str) -> Came:
        self._say(question)
        return told(await asyncio.gather(*(_line(one) for one in self._processes)))

    def _say(self, line: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n".encode())


async def _line(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


@contextlib.asynccontextmanager
async def fleet(work: Path, enrolled: Enrolled, port: int) -> AsyncIterator[Fleet]:
    """All devices, on the load's core; they dial once they are told to."""
    async with contextlib.AsyncExitStack() as stack:
        processes = []
        for number, settings in enumerate(enrolled.settings(port)):
            path = work / f"devices-{number}.json"
            path.write_text(json.dumps(asdict(settings)))
            process = _process(HERE / "device_clients.py", path, LOAD_CORE)
            processes.append(await stack.enter_async_context(process))
        yield Fleet(processes, port)


@contextlib.asynccontextmanager
async def _process(
    program: Path, settings: Path, core: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), str(settings)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,
        env=clean_environment(),
    )
    os.sched_setaffinity(process.pid, {core})
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# -- servers --------------------------------------------------------------------------------------


class Served(Protocol):
    """A server that devices dial."""

    @property
    def pid(self) -> int:
        """Its process."""
        ...

    async def deploy(self, revision: int) -> float:
        """Have all devices run this, one above the last; when that was taken, monotonic seconds."""
        ...

    async def settled(self) -> None:
        """Wait until it is known that all do. Raises RuntimeError where some do not."""
        ...

    async def restart(self, *, killed: bool) -> None:
        """Another one in its place, after a kill -9 or an orderly stop."""
        ...


class Product:
    """Hatoba's."""

    def __init__(self, house: HatobaServer, wire: Wire) -> None:
        self._house = house
        self._wire = wire

    @property
    def pid(self) -> int:
        """See Served."""
        return self._house.pid

    async def deploy(self, revision: int) -> float:
        """See Served."""
        model = await unloaded(self._wire)
        await (self._create(model) if revision == 1 else self._update(model))
        return time.monotonic()

    async def _create(self, model: str) -> None:
        request = deployment_pb2.CreateDeploymentRequest(deployment=NAME)
        request.spec.model = model
        key, value = LABEL
        request.spec.devices.selector.append(job_pb2.LabelRequirement(key=key, values=[value]))
        await self._wire.once(request, deployment_pb2.Deployment)

    async def _update(self, model: str) -> None:
        request = deployment_pb2.UpdateDeploymentRequest(name=NAME)
        request.update_mask.paths.append("model")
        request.spec.model = model
        await self._wire.once(request, deployment_pb2.Deployment)

    async def settled(self) -> None:
        """See Served."""
        request = deployment_pb2.WatchDeploymentRequest(name=NAME)
        last = deployment_pb2.Deployment()
        async for shown in self._wire.stream(request, deployment_pb2.Deployment):
            last = shown
        devices = last.devices
        if not devices.total or devices.succeeded != devices.total:
            raise RuntimeError(f"the roll-out ended so: {devices}")

    async def restart(self, *, killed: bool) -> None:
        """See Served."""
        await (self._house.kill() if killed else self._house.terminate())
        await self._house.start()


class Bare:
    """The floor, see stream_floor.py."""

    def __init__(self, settings: Path, ready: Path) -> None:
        self._settings = settings
        self._ready = ready
        self._stack = contextlib.AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """See Served."""
        return self._running.pid

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    async def start(self) -> None:
        """Until it listens."""
        self._ready.unlink(missing_ok=True)
        process = _process(HERE / "stream_floor.py", self._settings, SERVER_CORE)
        self._process = await self._stack.enter_async_context(process)
        await until(self._ready.exists, STARTED_WITHIN)

    async def deploy(self, revision: int) -> float:
        """See Served."""
        stdin = self._running.stdin
        assert stdin is not None
        began = time.monotonic()
        stdin.write(f"{revision}\n".encode())
        return began

    async def settled(self) -> None:
        """It never knows."""

    async def restart(self, *, killed: bool) -> None:
        """See Served; it knows no orderly stop."""
        del killed
        await self.close()
        await self.start()

    async def close(self) -> None:
        """kill -9."""
        await self._stack.aclose()


@contextlib.asynccontextmanager
async def bare(work: Path, enrolled: Enrolled, port: int) -> AsyncIterator[Bare]:
    """A floor server that listens where devices dial."""
    await asyncio.to_thread(work.mkdir)
    path, ready = work / "floor.json", work / "floor-listens"
    key, certificate = enrolled.port
    settings = stream_floor.Settings(
        f"{HOST}:{port}", str(ready), enrolled.authority, key, certificate
    )
    path.write_text(json.dumps(asdict(settings)))
    served = Bare(path, ready)
    try:
        await served.start()
        yield served
    finally:
        await served.close()
