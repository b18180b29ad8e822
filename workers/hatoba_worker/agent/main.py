"""The agent as a process: what runs on the device first, then all that needs somebody else."""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog

from hatoba_worker import host
from hatoba_worker.agent import elf, failpoints
from hatoba_worker.agent.blobs import BlobStore
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.conductor import Conductor
from hatoba_worker.agent.content import Library, ModelContent
from hatoba_worker.agent.engines import DeviceEngine
from hatoba_worker.agent.facts import Facts, platform_of
from hatoba_worker.agent.images import DeviceImages
from hatoba_worker.agent.journal import Journal
from hatoba_worker.agent.library import ServerLibrary, Way
from hatoba_worker.agent.link import Link
from hatoba_worker.agent.lock import AlreadyRuns, hold
from hatoba_worker.agent.ordinary import socket_directory
from hatoba_worker.agent.outside import Budgets, Inside, Outside
from hatoba_worker.agent.redial import Redialled
from hatoba_worker.agent.registries import Registries
from hatoba_worker.agent.registry import Platform
from hatoba_worker.agent.servers import Servers
from hatoba_worker.agent.settings import FILE, BadSettings, RegistryAccess, Settings
from hatoba_worker.agent.trees import DeviceTrees
from hatoba_worker.agent.watchdog import Watchdog, notify
from hatoba_worker.process_log import configure_log

log = structlog.get_logger(__name__)

HELD = 75
AGAIN = 30.0
"""Seconds until what has to do with the server is begun anew, after a fault in it."""
BUILT = dt.datetime(2026, 11, 1, tzinfo=dt.UTC).timestamp()
"""It is not earlier than this, whatever a machine says that has no clock."""
JOURNAL = "journal"


class Agent:
    """One run of the agent of a data directory."""

    def __init__(
        self,
        data: Path,
        settings: Settings | None,
        environ: Mapping[str, str],
        watchdog: Watchdog,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._data = data
        self._environ = environ
        self._runtime = Path(environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or data)
        self._watchdog = watchdog
        self._sleep = sleep
        # What runs on the device runs without any, too.
        known = settings or Settings(device="device", address="", server_name="")
        self._budgets = Budgets.of(data, known)
        self._jobs_idle = known.jobs_idle
        self._clock = clock_of(data)
        budgets = self._budgets
        # What does not go over the link's tunnel is not counted there.
        pay = budgets.content.pay if known.aws_iot is None else budgets.pay_for_image
        blobs = BlobStore(data / "blobs", pay)
        trees = DeviceTrees(data / "trees", blobs)
        library = self._library(known)
        engine = DeviceEngine.of(data, known.engine, environ)
        images = self._images(engine)
        machine = elf.of_file(Path(sys.executable))
        self._content = ModelContent(data / "specs", trees, blobs, library, images, machine)
        self._servers = Servers(
            data,
            environ,
            trees,
            self._content.spec_of,
            name=known.device,
            engine=engine,
            pulse=watchdog.inner_beat("replicas"),
        )
        journal = Journal(data / JOURNAL, failpoints.passing(environ))
        boot = host.boot_id()
        self._conductor = Conductor(
            journal,
            self._content,
            self._servers,
            boot,
            told=self._changed,
            beat=watchdog.inner_beat,
            sleep=sleep,
        )
        self._outside: Outside | None = None

    def _images(self, engine: DeviceEngine) -> DeviceImages:
        def accesses() -> Mapping[str, RegistryAccess]:
            # As they are now: who mends them need not start the agent again.
            known = Settings.load(self._data)
            return known.registries if known is not None else {}

        layers = BlobStore(self._data / "layers", self._budgets.pay_for_image)
        told = platform_of(os.uname().machine)
        platform = Platform(told.architecture, told.variant)
        registries = Registries(accesses, self._clock)
        return DeviceImages(self._data, layers, engine, registries, platform)

    def _library(self, settings: Settings) -> Library:
        """Where models come from."""
        if settings.aws_iot is None:
            return ServerLibrary(self._way)
        from hatoba_worker.agent.bucket import BucketLibrary

        return BucketLibrary(self._data, settings.aws_iot, self._clock)

    def _way(self) -> Way | None:
        return self._outside.way() if self._outside is not None else None

    def _changed(self, name: str) -> None:
        if self._outside is not None:
            self._outside.changed(name)

    async def run(self) -> None:
        """Keep running what is to run, until cancelled; it goes on without us. Raises OSError."""
        await asyncio.to_thread(self._content.prepare)
        await self._conductor.load()
        async with asyncio.TaskGroup() as tasks:
            await self._servers.begin(tasks)
            known = set(self._conductor.slots.names)
            tasks.create_task(self._conductor.run(), name="conductor")
            tasks.create_task(self._watchdog.beat_of_loop(), name="event loop")
            notify("READY=1", self._environ)
            log.info("agent.runs", slots=sorted(known), damage=self._conductor.damage)
            tasks.create_task(self._servers.keep_only(known), name="unknown servers")
            await self._have_to_do_with_others()

    async def _have_to_do_with_others(self) -> None:
        """Whatever goes wrong in it is begun anew: what runs on the device is not touched by it."""
        while True:
            try:
                async with socket_directory(self._runtime / "link") as directory:
                    await self._begin_outside(directory)
            except Exception:
                log.exception("agent.outside")
            self._outside = None
            self._watchdog.rest_all()
            await self._sleep(AGAIN)

    async def _begin_outside(self, directory: Path) -> None:
        known = await asyncio.to_thread(Facts.read, self._data)
        inside = Inside(
            self._data,
            self._conductor,
            self._content,
            self._servers,
            self._clock,
            self._watchdog,
            self._jobs_idle,
            self._environ,
        )
        make_link = await asyncio.to_thread(_link_of, self._data)
        self._outside = Outside(inside, self._budgets, known, directory, self._sleep, make_link)
        await self._outside.run()


async def run(
    data: Path, stop: asyncio.Event, environ: Mapping[str, str], watchdog: Watchdog
) -> None:
    """Be the agent of a data directory until `stop` is set; what runs goes on without us. Raises
    OSError.
    """
    settings = await asyncio.to_thread(_settings, data)
    agent = await asyncio.to_thread(Agent, data, settings, environ, watchdog)
    async with asyncio.TaskGroup() as tasks:
        living = tasks.create_task(agent.run(), name="agent")
        await stop.wait()
        notify("STOPPING=1", environ)
        living.cancel()


def clock_of(data: Path) -> FloorClock:
    """The dates of a data directory; to be loaded."""
    return FloorClock(data / "clock", BUILT, time.time, time.monotonic)


def is_device(data: Path) -> bool:
    """Whether a directory has anything of a device: who lost the one still runs by the other.
    Blocks.
    """
    return (data / FILE).exists() or (data / JOURNAL).exists()


def _settings(data: Path) -> Settings | None:
    """What is known of the link; without, what is on the device runs all the same."""
    try:
        return Settings.load(data)
    except BadSettings as error:
        log.error("agent.settings", error=str(error))
        return None


def _link_of(data: Path) -> Callable[..., Redialled]:
    """How the device is linked; what the other way needs is not imported. Blocks."""
    settings = _settings(data)
    if settings is None or settings.aws_iot is None:
        return Link
    from hatoba_worker.agent.mqtt_link import MqttLink

    return MqttLink


def main(data: Path) -> int:
    """Run until SIGTERM or SIGINT; the exit code. 75: another agent has the directory."""
    configure_log()
    # What lives here lives long: frequent full collections would only walk it.
    gc.set_threshold(20_000, 20, 50)
    try:
        handle = hold(data)
    except (AlreadyRuns, OSError) as error:
        sys.stderr.write(f"hatoba agent: {error}\n")
        return HELD
    watchdog = Watchdog(os.environ)
    watchdog.begin()
    try:
        asyncio.run(_until_told(data, watchdog))
    finally:
        watchdog.end_looking()
        os.close(handle)
    return 0


async def _until_told(data: Path, watchdog: Watchdog) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(data, stop, os.environ, watchdog)
