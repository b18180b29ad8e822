"""Ten thousand devices on one server: memory, a restart, a new generation; and two thousand by TLS.

Devices are `device_clients.py`, a connection each, in processes of their own on the other core. The
ten thousand come to a port without TLS, which only the rig has. Floors are of the same clients and
a bare server that has nothing but their streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bed_processes import free_port
from bench_house import HATOBA, HERE, LOAD_CORE, NULL, SERVER_CORE, STARTED_WITHIN, server
from bench_idle import cpu_seconds, memory
from bench_report import Figure, Measured
from bench_statistics import percentile
from device_clients import Settings
from server_process import HatobaServer, clean_environment
from trees import put_tree
from waiting import eventually, until
from wire import Wire

from hatoba.v1 import deployment_pb2, job_pb2, model_pb2
from hatoba_scheduler.auth.authority import DEVICES_NAME, Authority, DeviceIdentity, read_request
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState, Platform
from hatoba_scheduler.store.devices import Write, batches
from hatoba_scheduler.store.sqlite import open_store
from hatoba_worker import keys

PLAIN, BY_TLS = 10_000, 2_000
PROCESSES = 4
SETTLE_SECONDS = 3.0
IDLE_SECONDS = 10.0
RSS_MB = 600.0
BACK_SECONDS = 30.0
GENERATION_SECONDS = 10.0

HOST = "127.0.0.1"
DAY = 24 * 3600 * 10**6
RIG = (str(HERE / "device_rig.py"),)
NAME = "reader"
CONFIG = f"""{NULL}
[devices]
listen = "127.0.0.1:{{port}}"
[backends.edge]
type = "iot-edge-arm"
"""


@dataclass(frozen=True, slots=True)
class Came:
    """When devices came as far as was asked, monotonic seconds; how often they dialled in all."""

    times: list[float]
    dials: int

    def last(self, since: float) -> float:
        """Seconds until the last one."""
        return max(self.times) - since

    def words(self, since: float) -> str:
        """For people."""
        half, most = (percentile(self.times, share) - since for share in (0.5, 0.99))
        return f"half after {half:.1f} s, 99 % after {most:.1f} s, all after {self.last(since):.1f} s"


def told(lines: Iterable[bytes]) -> Came:
    """What the clients' processes answered, together. Raises ValueError where one said nothing."""
    found = [json.loads(line) for line in lines]
    times = [time for one in found for time in one["times"]]
    return Came(times, sum(one["dials"] for one in found))


def connections(table: str, port: int) -> int:
    """How many established connections to a port the lines of /proc/net/tcp tell of."""
    end, established = f":{port:04X}", "01"
    rows = (line.split() for line in table.splitlines()[1:])
    return sum(row[1].endswith(end) and row[3] == established for row in rows)


async def devices(work: Path) -> list[Figure]:
    """All figures of devices."""
    _raise_files()
    ours = await _plain(work / "plain")
    return [
        Measured("devices_rss", ours.rss, "MB").at_most(RSS_MB),
        Measured("devices_back", ours.back, "s").at_most(BACK_SECONDS),
        Measured("devices_generation", ours.generation, "s").at_most(GENERATION_SECONDS),
    ]


def _raise_files() -> None:
    """Let this process, and what it starts, have as many connections as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@dataclass(frozen=True, slots=True)
class Found:
    rss: float
    back: float
    generation: float
    over: float


async def _plain(work: Path) -> Found:
    port = free_port(HOST)
    names = await _enrolled(work / "data", PLAIN)
    config = CONFIG.format(port=port)
    async with (
        server(work, config=config, core=SERVER_CORE, program=RIG) as house,
        Wire(house) as wire,
        clients(work, _settings(port, names)) as fleet,
    ):
        print(f"empty {memory(house.pid, 'VmRSS') / 1e6:.0f} MB")
        began = await fleet.dial()
        came = await fleet.ask("back 0")
        print("opened:", came.words(began), came.dials, "connections", await asyncio.to_thread(lambda: connections(Path("/proc/net/tcp6").read_text(), port)))
        print(f"connected {memory(house.pid, 'VmRSS') / 1e6:.0f} MB")
        await create(wire, await model(wire))
        b = time.monotonic()
        print("created:", (await fleet.ask("reached 1")).words(b))
        await settled(wire)
        print("over:", time.monotonic() - b)
        print(f"deployed {memory(house.pid, 'VmRSS') / 1e6:.0f} MB")
        await asyncio.sleep(SETTLE_SECONDS)
        c = cpu_seconds(house.pid)
        await asyncio.sleep(IDLE_SECONDS)
        print("idle cpu", (cpu_seconds(house.pid) - c) / IDLE_SECONDS)
        print(f"settled {memory(house.pid, 'VmRSS') / 1e6:.0f} MB")
        newer = await model(wire)
        await update(wire, newer)
        b = time.monotonic()
        reached = await fleet.ask("reached 2")
        await settled(wire)
        over = time.monotonic() - b
        print("updated:", reached.words(b), "over", over)
        generation = reached.last(b)
        rss = memory(house.pid, "VmRSS") / 1e6
        print("rss", rss, "peak", memory(house.pid, "VmHWM") / 1e6)
        b = time.monotonic()
        await house.restart()
        print("restarted", time.monotonic() - b)
        back = await fleet.ask(f"back {b}")
        print("back:", back.words(b), back.dials)
        await asyncio.sleep(SETTLE_SECONDS)
        print("rss", memory(house.pid, "VmRSS") / 1e6)
    return Found(rss, back.last(b), generation, over)


def _settings(port: int, names: Sequence[str]) -> list[Settings]:
    return [Settings(f"{HOST}:{port}", list(names[n::PROCESSES])) for n in range(PROCESSES)]


# -- devices --------------------------------------------------------------------------------------


async def _enrolled(data: Path, count: int) -> list[str]:
    """Have a new directory's store know so many devices; their names."""
    await asyncio.to_thread(data.mkdir, mode=0o700, parents=True)
    store = await open_store(data, _micros)
    try:
        found = [_device(f"device-{number:05}") for number in range(count)]
        for some in batches([Write(one, 0) for one in found]):
            await store.devices.write(some)
    finally:
        await store.close()
    return [one.name for one in found]


def _device(name: str) -> Device:
    return Device(
        name=name,
        state=DeviceState.ENROLLED,
        labels=(("site", "tokyo"),),
        platform=Platform("arm64"),
        capacity=Capacity(4.0, 1 << 30, 8 << 30),
        version=1,
        identity=f"identity-of-{name}",
        create_time=_micros(),
        certificate_end=_micros() + 90 * DAY,
    )


def _micros() -> int:
    return round(time.time() * 1e6)


class Fleet:
    """The clients' processes."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def dial(self) -> float:
        """Have them begin; when they did."""
        began = time.monotonic()
        self._say("dial")
        return began

    async def ask(self, question: str) -> Came:
        """See device_clients.py."""
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
async def clients(work: Path, settings: Sequence[Settings]) -> AsyncIterator[Fleet]:
    """Devices, a process for each of the settings; they dial once they are told to."""
    async with contextlib.AsyncExitStack() as stack:
        processes = []
        for number, one in enumerate(settings):
            path = work / f"devices-{number}.json"
            path.write_text(json.dumps(asdict(one)))
            processes.append(await stack.enter_async_context(_client(path)))
        yield Fleet(processes)


@contextlib.asynccontextmanager
async def _client(settings: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(HERE / "device_clients.py"), str(settings)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 28,
        env=clean_environment(),
    )
    os.sched_setaffinity(process.pid, {LOAD_CORE})
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# -- deployments ----------------------------------------------------------------------------------


async def model(wire: Wire) -> str:
    """Another version of a model, ready, as `digits:3`."""
    tree = await put_tree(wire, {"weights.bin": b"w"})
    code = await put_tree(wire, {"serve.py": b"class Model: ..."})
    request = model_pb2.RegisterModelRequest(model="digits", manifest=tree)
    request.serving.handler = "serve:Model"
    request.serving.code.digest = code.digest
    request.serving.example.data, request.serving.example.media_type = b"[1]", "application/json"
    made = await wire.once(request, model_pb2.ModelVersion)
    get = model_pb2.GetModelVersionRequest(name=made.name)

    async def ready() -> bool:
        found = await wire.once(get, model_pb2.ModelVersion)
        return found.state == model_pb2.MODEL_STATE_READY

    await eventually(ready)
    return f"digits:{made.name.rpartition('/')[2]}"


async def create(wire: Wire, version: str) -> None:
    """Deploy it to all devices."""
    request = deployment_pb2.CreateDeploymentRequest(deployment=NAME)
    request.spec.model = version
    request.spec.devices.selector.append(job_pb2.LabelRequirement(key="site", values=["tokyo"]))
    await wire.once(request, deployment_pb2.Deployment)


async def update(wire: Wire, version: str) -> None:
    """Deploy another one."""
    request = deployment_pb2.UpdateDeploymentRequest(name=NAME)
    request.update_mask.paths.append("model")
    request.spec.model = version
    await wire.once(request, deployment_pb2.Deployment)


async def settled(wire: Wire) -> None:
    """Watch the roll-out until it is over. Raises RuntimeError unless it went well everywhere."""
    request = deployment_pb2.WatchDeploymentRequest(name=NAME)
    last = deployment_pb2.Deployment()
    async for last in wire.stream(request, deployment_pb2.Deployment):
        pass
    if last.state != deployment_pb2.DEPLOYMENT_STATE_READY or last.devices.succeeded != last.devices.total:
        raise RuntimeError(f"the roll-out ended so: {last}")
