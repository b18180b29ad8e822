"""A device of AWS IoT: the agent's own link, key and certificate, without anything that runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from waiting import News, until

from hatoba.v1 import device_pb2
from hatoba_worker import key_files
from hatoba_worker.agent.budget import Budget
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.identity import Identity
from hatoba_worker.agent.mqtt_link import MqttLink
from hatoba_worker.agent.records import Records
from hatoba_worker.agent.redial import Parts
from hatoba_worker.agent.renewing import Shown
from hatoba_worker.agent.ring import Ring
from hatoba_worker.agent.settings import AwsIot, Settings
from hatoba_worker.agent.tunnel import Tunnel
from hatoba_worker.agent.watchdog import Watchdog

BUILT = 1_790_000_000.0


class LinkedThing:
    """One agent's link. Its waits are remembered; the first is its last unless it `redials`."""

    def __init__(self, data: Path, *, redials: bool = False) -> None:
        self.data = data
        self.redials = redials
        self.clock = FloorClock(data / "clock", BUILT, time.time, time.monotonic)
        self.identity = Identity(key_files.directory(data))
        self.shown = Shown(data, self.clock)
        self.wake = asyncio.Event()
        self.records = Records(Ring(data / "ring"), self.clock.now, self.wake)
        self.tunnel = Tunnel(data, self.shown.peer, self.clock)
        self.waits: list[float] = []
        self.ups: list[bool] = []
        self.works = 0
        self.hello_said = device_pb2.DeviceHello()
        self.hellos = 0
        self.heard: list[device_pb2.DeviceDesired] = []
        self.news = News()
        parts = Parts(
            tunnel=self.tunnel,
            shown=self.shown,
            clock=self.clock,
            records=self.records,
            budget=Budget(data / "budget", 0, time.monotonic),
            before_dial=self._before_dial,
            listener=self,
            wake=self.wake,
            beat=Watchdog({}).beat("link"),
        )
        self.link = MqttLink(parts, self._sleep)

    async def _before_dial(self, _size: int) -> None:
        """Connections cost nothing."""

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.news.tell()
        if not self.redials:
            await asyncio.Event().wait()
        await asyncio.sleep(0.05)

    def enroll(self, name: str, address: str, thing: str, certificate: str, authority: str) -> None:
        """Have an identity, for the key that is asked for; blocks."""
        host = address.rpartition(":")[0]
        Settings(name, address, host, aws_iot=AwsIot(thing)).save(self.data)
        self.identity.enrolled(certificate, authority)

    # -- the listener ---------------------------------------------------------------------------

    async def hello(self) -> device_pb2.DeviceHello:
        self.hellos += 1
        return self.hello_said

    def linked(self, *, up: bool) -> None:
        self.ups.append(up)
        self.news.tell()

    def desired(self, desired: device_pb2.DeviceDesired) -> None:
        self.heard.append(desired)
        self.news.tell()

    def work(self) -> None:
        self.works += 1
        self.news.tell()

    # -- its life -------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LinkedThing]:
        """It dials, until it is left; then it says goodbye."""
        async with self.tunnel.open(), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.link.run(), name="link")
            try:
                yield self
            finally:
                running.cancel()

    async def tells(self, report: device_pb2.DeviceReport) -> None:
        """Tell it, and wait until the broker has it."""
        self.link.tell(report)
        await until(lambda: self.link.told)
