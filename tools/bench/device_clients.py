"""Devices in a process of their own: `device_clients.py SETTINGS`, a JSON file, see `Settings`.

Each has a connection and a stream of its own, opened again as the agent does. A device takes up at
once what is wanted of it, and says that it is good. They dial once the input has a first line. Each
further line asks, and is answered by one: the seconds of the system's monotonic clock at which each
device had come that far, once all have.

    back SINCE          its newest stream was opened after SINCE, and it was told what is wanted;
                        from then on this counts as a link that was good, which takes agents 30 s
    reached REVISION    it was told to run this revision
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from hatoba.v1 import device_pb2
from hatoba_worker.agent.link import ALIVE_EVERY, OPTIONS
from hatoba_worker.agent.redial import Backoff

CONNECT = "/hatoba.v1.DeviceService/Connect"
NAME_SHOWN = "grpc.ssl_target_name_override"
DIALS_AT_ONCE = 50
"""At first; what comes back later keeps to the agent's back-off alone."""
LOOK_SECONDS = 0.05
LOOKS = 8
"""Looks at who has been silent, in the time for which one may be."""

Request = device_pb2.DeviceServiceConnectRequest
Response = device_pb2.DeviceServiceConnectResponse
Item = device_pb2.DeviceItem
Call = Any


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is and which devices these are. With `authority` each shows what it has in
    `shown`, key and certificate in PEM, to a server of the name `server_name`."""

    address: str
    names: list[str]
    authority: str = ""
    server_name: str = ""
    shown: dict[str, list[str]] = field(default_factory=dict)

    def channel(self, name: str) -> grpc.aio.Channel:
        """A connection of its own for a device."""
        if not self.authority:
            return grpc.aio.insecure_channel(self.address, options=OPTIONS)
        key, certificate = (one.encode() for one in self.shown[name])
        credentials = grpc.ssl_channel_credentials(self.authority.encode(), key, certificate)
        options = [*OPTIONS, (NAME_SHOWN, self.server_name)]
        return grpc.aio.secure_channel(self.address, credentials, options=options)


@dataclass(eq=False, slots=True)
class Device:
    """One device, and when it came how far."""

    name: str
    backoff: Backoff
    channel: grpc.aio.Channel | None = None
    call: Call = None
    generation: int = 0
    report: bytes = b""
    spoke: float = 0.0
    pause: float = 0.0
    """Seconds that the server asked to be left alone for."""
    dials: int = 0
    opened: float = 0.0
    told: float = 0.0
    """When it was told what is wanted, on its newest stream; 0: not yet."""
    reached: dict[int, float] = field(default_factory=dict)

    def hello(self) -> bytes:
        """What its stream begins with."""
        hello = device_pb2.DeviceHello(
            device=self.name,
            boot_id="0b8f2a0e-8f6c-4a52-9d5a-1c4be8f0a7d3",
            incarnation="incarnation",
            installation=f"installation-{self.name}",
            protocol=1,
            version="1",
            generation=self.generation,
        )
        hello.platform.architecture = "arm64"
        hello.capacity.cpus, hello.capacity.memory_bytes = 4, 1 << 30
        hello.capacity.disk_bytes, hello.capacity.limits_memory = 8 << 30, True
        return Request(items=[Item(hello=hello)]).SerializeToString()

    def take(self, desired: device_pb2.DeviceDesired, now: float) -> None:
        """Have what is wanted, all of it good."""
        self.generation, self.told = desired.generation, now
        report = device_pb2.DeviceReport(generation=desired.generation, settled=True)
        for want in desired.wants:
            self.reached.setdefault(want.revision, now)
            report.slots.add(
                deployment=want.deployment,
                revision=want.revision,
                tries=want.tries,
                running=want.revision,
                phase=device_pb2.SLOT_PHASE_GOOD,
                address="127.0.0.1:8600",
            )
        self.report = Request(items=[Item(report=report)]).SerializeToString()

    async def say(self, message: bytes) -> None:
        """Send it; of a stream that is over its reader says so."""
        self.spoke = time.monotonic()
        try:
            await self.call.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError):
            return


def _back(since: float) -> Callable[[Device], float]:
    return lambda one: one.told if one.opened > since else 0.0


def _reached(revision: int) -> Callable[[Device], float]:
    return lambda one: one.reached.get(revision, 0.0)


class Yard:
    """All devices of this process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._first = asyncio.Semaphore(DIALS_AT_ONCE)
        self._rng = random.Random()
        self.devices = [Device(name, Backoff(self._rng)) for name in settings.names]

    async def run(self) -> None:
        """Answer until the input ends."""
        await asyncio.to_thread(sys.stdin.readline)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._keep(one), name=one.name) for one in self.devices]
            tasks.append(group.create_task(self._live(), name="signs of life"))
            while line := await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(await self._answer(*line.split())), flush=True)
            for task in tasks:
                task.cancel()

    async def _answer(self, what: str, value: str) -> dict[str, object]:
        came = _back(float(value)) if what == "back" else _reached(int(value))
        while True:
            times = [came(one) for one in self.devices]
            if all(times):
                for one in self.devices:
                    one.backoff.reset()
                return {"times": times, "dials": sum(one.dials for one in self.devices)}
            await asyncio.sleep(LOOK_SECONDS)

    # -- one device -----------------------------------------------------------------------------

    async def _keep(self, device: Device) -> None:
        """Its stream, again and again."""
        async with self._first:
            await self._open(device)
        while True:
            await self._listen(device)
            pause, device.pause = device.pause, 0.0
            await asyncio.sleep(pause + device.backoff.next())
            await self._open(device)

    async def _open(self, device: Device) -> None:
        """Dial, greet, and be welcome; a stream that does not come about has ended."""
        device.dials += 1
        device.told = 0.0
        metadata = (("authorization", f"Bearer dc_{device.name}"),)
        # The channel of before is closed by being dropped: its own `close` looks at every task.
        device.channel = self._settings.channel(device.name)
        device.call = device.channel.stream_stream(CONNECT)(metadata=metadata)
        await device.say(device.hello())
        try:
            raw = await device.call.read()
        except grpc.RpcError:
            return
        if raw is not grpc.aio.EOF:
            device.opened = time.monotonic()
            self._heard(device, raw)
            if device.report:
                await device.say(device.report)

    async def _listen(self, device: Device) -> None:
        try:
            while (raw := await device.call.read()) is not grpc.aio.EOF:
                if self._heard(device, raw):
                    await device.say(device.report)
        except grpc.RpcError:
            return

    def _heard(self, device: Device, raw: bytes) -> bool:
        """Whether something is to be said of it."""
        now, news = time.monotonic(), False
        for order in Response.FromString(raw).items:
            if order.HasField("desired"):
                news = order.desired.generation > device.generation
                device.take(order.desired, now)
            elif order.HasField("going_away"):
                after = order.going_away.after.ToTimedelta().total_seconds()
                device.pause = after * self._rng.uniform(1.0, 1.5)
        return news

    async def _live(self) -> None:
        """Those that have been silent for half of their time say that they live, as agents do."""
        alive = Request(items=[Item(alive=device_pb2.DeviceAlive())]).SerializeToString()
        while True:
            await asyncio.sleep(ALIVE_EVERY / 2 / LOOKS)
            for device in self._silent():
                await device.say(alive)

    def _silent(self) -> Iterator[Device]:
        for device in self.devices:
            if device.told and time.monotonic() - device.spoke > ALIVE_EVERY / 2:
                yield device


async def main(settings: Settings) -> None:
    """Be these devices."""
    await Yard(settings).run()


if __name__ == "__main__":
    asyncio.run(main(Settings(**json.loads(Path(sys.argv[1]).read_text()))))
