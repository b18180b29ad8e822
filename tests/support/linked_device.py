"""A device's link to a `DeviceSite`: the agent's own parts, without anything that runs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

from authority import DAY
from device_site import DEVICE, HOST, DeviceSite
from waiting import News

from hatoba.v1 import device_pb2
from hatoba_worker import key_files, keys
from hatoba_worker.agent.budget import Budget
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.identity import Identity
from hatoba_worker.agent.link import Link
from hatoba_worker.agent.records import Records
from hatoba_worker.agent.redial import Parts
from hatoba_worker.agent.renewing import SERVER, Shown
from hatoba_worker.agent.ring import Ring
from hatoba_worker.agent.settings import Settings
from hatoba_worker.agent.tunnel import Tunnel
from hatoba_worker.agent.watchdog import Watchdog

LONG = 120.0
"""Who sleeps longer than any wait between two tries sleeps until the test's end."""


class LinkedDevice:
    """One agent's link. Its waits are remembered, and last no time."""

    def __init__(
        self,
        site: DeviceSite,
        data: Path,
        *,
        records_limit: int = 0,
        built: dt.datetime | None = None,
    ) -> None:
        data.mkdir(exist_ok=True)
        self.site, self.data = site, data
        self.date = site.today.timestamp()
        """What the machine's clock says."""
        floor = (built or site.today - DAY).timestamp()
        self.clock = FloorClock(data / "clock", floor, lambda: self.date, time.monotonic)
        self.identity = Identity(data / "tls")
        self.shown = Shown(data, self.clock)
        self.wake = asyncio.Event()
        self.records = Records(Ring(data / "ring"), self.clock.now, self.wake)
        self.tunnel = Tunnel(data, self.shown.peer, self.clock)
        self.watchdog = Watchdog({})
        self.waits: list[float] = []
        self.dials = 0
        self.ups: list[bool] = []
        self.works = 0
        self.desired_of: list[device_pb2.DeviceDesired] = []
        self.news = News()
        parts = Parts(
            tunnel=self.tunnel,
            shown=self.shown,
            clock=self.clock,
            records=self.records,
            budget=Budget(data / "budget", records_limit, time.monotonic),
            before_dial=self._before_dial,
            listener=self,
            wake=self.wake,
            beat=self.watchdog.beat("link"),
        )
        self.link = Link(parts, self._sleep, random.Random(7))

    async def _sleep(self, seconds: float) -> None:
        if seconds > LONG:
            await asyncio.Event().wait()
        self.waits.append(seconds)
        self.news.tell()
        await asyncio.sleep(0)

    async def _before_dial(self, _size: int) -> None:
        self.dials += 1

    def enroll(self) -> None:
        """Have an identity of the site; blocks."""
        csr = keys.request_for(self.identity.pending_key())
        given = self.site.identity(csr)
        Settings(DEVICE, given.address, HOST, server=self.site.api).save(self.data)
        key_files.write_secret(key_files.directory(self.data) / SERVER, given.authority)
        self.identity.enrolled(given.certificate, given.authority)

    # -- the listener ---------------------------------------------------------------------------

    async def hello(self) -> device_pb2.DeviceHello:
        return device_pb2.DeviceHello(device=self.shown.device, incarnation="0123456789")

    def linked(self, *, up: bool) -> None:
        self.ups.append(up)
        self.news.tell()

    def desired(self, desired: device_pb2.DeviceDesired) -> None:
        self.desired_of.append(desired)
        self.news.tell()

    def work(self) -> None:
        self.works += 1
        self.news.tell()

    # -- its life -------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LinkedDevice]:
        """It dials, until it is left."""
        await self.records.open()
        async with self.tunnel.open(), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.link.run(), name="link")
            yield self
            running.cancel()

    async def connected(self) -> None:
        """Wait until the server has welcomed it."""
        await self.news.until(lambda: self.link.connected)

    async def tried(self, count: int = 1) -> None:
        """Wait until so many more tries were over."""
        target = len(self.waits) + count
        await self.news.until(lambda: len(self.waits) >= target)
