"""All that the agent has to do with the server: what comes from it, and what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import structlog
from google.protobuf import json_format

from hatoba.v1 import device_pb2
from hatoba_worker.agent import disk, facts, figures, status
from hatoba_worker.agent.blobs import SPARE
from hatoba_worker.agent.budget import Budget
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.conductor import Conductor
from hatoba_worker.agent.content import ModelContent
from hatoba_worker.agent.facts import Facts
from hatoba_worker.agent.jobs import DeviceJobs
from hatoba_worker.agent.kept import KeptPredictions
from hatoba_worker.agent.library import Way
from hatoba_worker.agent.link import Link
from hatoba_worker.agent.pausing import until_heard
from hatoba_worker.agent.records import Records, heard_log
from hatoba_worker.agent.redial import PROTOCOL, Parts, Redialled
from hatoba_worker.agent.renewing import Shown
from hatoba_worker.agent.ring import Ring
from hatoba_worker.agent.server_logs import Home, ServerLogs
from hatoba_worker.agent.servers import Servers
from hatoba_worker.agent.settings import BadSettings, Followed, Settings
from hatoba_worker.agent.telling import Sources, Telling
from hatoba_worker.agent.tunnel import Tunnel
from hatoba_worker.agent.wanting import Wanting
from hatoba_worker.agent.watchdog import Watchdog
from hatoba_worker.keeper.ensure import release

log = structlog.get_logger(__name__)

FLUSH_EVERY = 1.0
SAVE_EVERY = 30
"""Rounds of these after which it is put on the disk how far logs were followed."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What runs on the device whether there is a server or not."""

    data: Path
    conductor: Conductor
    content: ModelContent
    servers: Servers
    clock: FloorClock
    watchdog: Watchdog
    jobs_idle: float
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes a day of the whole link, each way, and of what may wait: records, and content."""

    up: Budget
    down: Budget
    records: Budget
    content: Budget

    @classmethod
    def of(cls, data: Path, settings: Settings) -> Budgets:
        """As the settings of a device have them."""
        names = (each.name for each in fields(cls))
        files = {name: data / f"budget-{name}.json" for name in names}
        made = cls(**{name: Budget(file, 0, time.monotonic) for name, file in files.items()})
        made.take_up(settings)
        return made

    def take_up(self, settings: Settings) -> None:
        """From now on they are these. What a server has to hear, and to say, is left a part by what
        is large, and goes over a metered link as well.
        """
        up, down, metered = settings.up_per_day, settings.down_per_day, settings.metered
        self.up.allow(up)
        self.down.allow(down)
        self.records.allow(up // 2, held=metered)
        self.content.allow(down * 4 // 5, held=metered)

    @property
    def all(self) -> tuple[Budget, ...]:
        """Each of them."""
        return (self.up, self.down, self.records, self.content)

    async def pay_for_image(self, size: int) -> None:
        """Wait until so many bytes of an image may come, which do not go over the link's tunnel."""
        await self.content.pay(size)
        await self.down.pay(size)

    async def pay_for_connection(self, size: int) -> None:
        """Wait until a connection may be made that costs so many bytes."""
        await self.up.pay(size // 2)
        await self.down.pay(size // 2)


class Outside:
    """One run of it. Nothing in here keeps what is inside from going on."""

    def __init__(
        self,
        inside: Inside,
        budgets: Budgets,
        known: Facts,
        link_directory: Path,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        make_link: Callable[[Parts, Callable[[float], Awaitable[None]]], Redialled] = Link,
    ) -> None:
        self._inside = inside
        self._budgets = budgets
        self._facts = known
        self._sleep = sleep
        self._incarnation = uuid.uuid4().hex
        data, clock, beat = inside.data, inside.clock, inside.watchdog.beat
        wake = self._wake = asyncio.Event()
        self._settings = Followed(data)
        self._metered = False
        self._records = Records(Ring(data / "ring"), clock.now, wake)
        self._logs = ServerLogs(data / "logs.json", self._records.log)
        self._kept = KeptPredictions(self._records.predicted)
        self._figures = figures.Figures(self._records.figure, inside.servers, self._own_figures)
        self._moved = asyncio.Event()
        self._shown = Shown(data, clock)
        self._tunnel = Tunnel(
            link_directory,
            self._shown.peer,
            clock,
            pay_up=budgets.up.pay,
            pay_down=budgets.down.pay,
        )
        self._jobs = self._made_jobs(sleep)
        self._status = status.StatusFile(data, self._snapshot, beat("status"), sleep)
        sources = Sources(inside.conductor, inside.servers.address, self._free, self._problems)
        happened = self._records.happened
        self._telling = Telling(sources, self._tell, happened, beat("telling"), sleep)
        taken = self._telling.changed
        self._wanting = Wanting(inside.content, inside.conductor, taken, beat("wanting"), sleep)
        parts = Parts(
            tunnel=self._tunnel,
            shown=self._shown,
            clock=clock,
            records=self._records,
            budget=budgets.records,
            before_dial=budgets.pay_for_connection,
            listener=self,
            wake=wake,
            beat=beat("link"),
        )
        self._link = make_link(parts, sleep)
        self._last_contact = 0.0

    def _made_jobs(self, sleep: Callable[[float], Awaitable[None]]) -> DeviceJobs:
        """What runs jobs, and goes out by our one way."""
        inside = self._inside
        return DeviceJobs(
            inside.data,
            lambda: _name_of(inside.data),
            self._tunnel.target,
            idle=inside.jobs_idle,
            environ=inside.environ,
            sleep=sleep,
        )

    # -- what others ask ------------------------------------------------------------------------

    def way(self) -> Way | None:
        """How to fetch what is large; None while there is no link."""
        return self._link.way()

    def changed(self, name: str) -> None:
        """A slot may be another way now."""
        self._telling.changed(name)

    # -- its life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Have to do with the server, until cancelled. Raises OSError."""
        await asyncio.to_thread(self._load)
        await self._records.open()
        await self._note_boot()
        try:
            async with self._tunnel.open(), asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_records(), name="records")
                tasks.create_task(self._take_figures(), name="figures")
                tasks.create_task(self._telling.run(), name="telling")
                tasks.create_task(self._wanting.run(), name="wanting")
                tasks.create_task(self._jobs.run(), name="jobs")
                tasks.create_task(self._status.run(), name="status")
                tasks.create_task(self._link.run(), name="link")
        finally:
            await self._leave()

    def _load(self) -> None:
        self._inside.clock.load()
        self._logs.load()
        for one in self._budgets.all:
            one.load()
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            link = status.read(self._inside.data).get("link", {})
            self._last_contact = float(link.get("last_contact", 0.0))

    async def _note_boot(self) -> None:
        """Tell of a start of the machine once."""
        path, boot = self._inside.data / "boot", self._facts.boot
        if await asyncio.to_thread(_text, path) != boot:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(disk.replace, path, boot.encode())
            self._records.happened("boot", f"The device was started (boot {boot}).")
        if damage := self._inside.conductor.damage:
            self._records.happened("journal", damage)

    async def _keep_records(self) -> None:
        beat, rounds = self._inside.watchdog.beat("records"), 0
        with heard_log(self._records):
            while True:
                beat()
                await self._take_up_settings()
                homes = self._inside.servers.homes()
                await asyncio.to_thread(self._look, homes)
                await self._records.flush()
                if self._kept.heard and not self._records.stuck:
                    await asyncio.to_thread(self._kept.durable)
                rounds += 1
                if rounds % SAVE_EVERY == 0:
                    await asyncio.to_thread(self._logs.save)
                await self._sleep(FLUSH_EVERY)

    async def _take_up_settings(self) -> None:
        """Whoever changes what the link may carry need not start the agent again."""
        known = await asyncio.to_thread(self._settings.newer)
        if known is None:
            return
        self._metered = known.metered
        self._budgets.take_up(known)
        self._telling.look()
        self._wake.set()

    def _look(self, homes: list[Home]) -> None:
        """Hear what model servers wrote; predictions wait where they are for a full disk."""
        self._logs.look(homes)
        if not self._records.stuck:
            self._kept.look(homes)

    async def _take_figures(self) -> None:
        """Again and again, and soon after something has changed."""
        beat = self._inside.watchdog.beat("figures")
        while True:
            beat()
            await self._figures.look()
            beat.rest()
            await until_heard(self._moved, figures.EVERY, self._sleep)
            await self._sleep(figures.SOON)
            self._moved.clear()

    def _own_figures(self) -> dict[str, float]:
        return {
            **figures.of_machine(),
            "free_disk_bytes": self._free(),
            "link_up_bytes": self._tunnel.carried.up,
            "link_down_bytes": self._tunnel.carried.down,
        }

    async def _leave(self) -> None:
        """Have on the disk what an orderly end would cost otherwise."""
        await self._records.flush()
        await asyncio.to_thread(self._logs.save)
        for one in self._budgets.all:
            await asyncio.to_thread(one.save)
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._inside.clock.keep)
        await self._status.write()

    # -- the server -----------------------------------------------------------------------------

    async def hello(self) -> device_pb2.DeviceHello:
        """What a stream begins with."""
        return device_pb2.DeviceHello(
            device=self._shown.device,
            boot_id=self._facts.boot,
            incarnation=self._incarnation,
            installation=self._facts.installation,
            protocol=PROTOCOL,
            version=release(),
            platform=self._facts.platform,
            capacity=await asyncio.to_thread(self._capacity),
            generation=self._inside.conductor.slots.generation,
        )

    def _capacity(self) -> device_pb2.DeviceCapacity:
        return facts.capacity(self._inside.data, images=self._inside.servers.may_contain())

    def linked(self, *, up: bool) -> None:
        """The server has welcomed us, or the link is gone."""
        if up:
            self._inside.conductor.reachable()
        self._status.changed()

    def desired(self, desired: device_pb2.DeviceDesired) -> None:
        """The server wants this."""
        if desired.leaving:
            # It says that nothing runs any more when that is so.
            self._jobs.leave(lambda: self._wanting.take(desired))
        else:
            self._wanting.take(desired)

    def work(self) -> None:
        """There are jobs for this device."""
        self._jobs.told()

    def _tell(self, report: device_pb2.DeviceReport) -> None:
        self._link.tell(report)
        self._status.changed()
        self._moved.set()

    # -- how it is ------------------------------------------------------------------------------

    def _free(self) -> int:
        return disk.free_bytes(self._inside.data)

    def _problems(self) -> list[str]:
        found = [self._wanting.problem, *self._inside.servers.problems()]
        if self._metered:
            found.append(_METERED)
        elif self._budgets.content.waiting or self._budgets.down.waiting:
            found.append("what its link may carry today is used up: the rest comes tomorrow")
        if damage := self._inside.conductor.damage:
            found.append(damage)
        free = self._telling.free
        if free is not None and free < SPARE:
            found.append(f"its disk is full: {free / 1e6:,.1f} MB are left")
        return [text for text in found if text]

    def _snapshot(self) -> status.Json:
        clock, carried = self._inside.clock, self._tunnel.carried
        budgets = self._budgets
        return {
            "pid": os.getpid(),
            "version": release(),
            "boot": self._facts.boot,
            "time": clock.now(),
            "certain": clock.certain,
            "report": json_format.MessageToDict(
                self._telling.report, preserving_proto_field_name=True
            ),
            "problems": self._problems(),
            "link": {
                "connected": self._link.connected,
                "last_contact": self._link.last_contact or self._last_contact,
                "problem": self._link.problem,
                "up": carried.up,
                "down": carried.down,
                "connections": carried.connections,
                "up_left": budgets.up.left,
                "down_left": budgets.down.left,
            },
            "jobs": {"running": self._jobs.running},
            "records": {"newest": self._records.newest, "stored": self._records.durable},
        }


_METERED = (
    "its link is metered: content and all that is kept (logs, figures, events, predictions) wait "
    "for `hatoba agent link --metered off`"
)


def _name_of(data: Path) -> str:
    """The device's name, with a link or without; blocks. Raises OSError."""
    try:
        known = Settings.load(data)
    except BadSettings as error:
        raise OSError(str(error)) from error
    if known is None:
        raise OSError("it is enrolled nowhere")
    return known.device


def _text(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="ascii").strip()
    return ""
