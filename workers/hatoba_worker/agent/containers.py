"""Releases that run as containers of the device's engine, which outlive agent and engine.

The engine is only spoken to once there is something for it: its client takes a third of the memory
that an agent has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from hatoba_worker.agent.engines import DeviceEngine, ImageBook
from hatoba_worker.executors.containers.contained import Contained
from hatoba_worker.executors.containers.engine import EngineAway, EngineRefused
from hatoba_worker.executors.containers.executor import ContainerExecutor
from hatoba_worker.executors.containers.images import Image, image_of
from hatoba_worker.failures import staging_failed
from hatoba_worker.keeper.messages import AttemptStatus, Exited
from hatoba_worker.replicas.fleet import Fleet

ASK_AGAIN = 1.0
LOG_KEPT = "16m"
"""So much of a container's output its engine keeps: a device has a small disk."""


class LoadedImages:
    """Images that the engine was given: none is pulled."""

    def __init__(self, book: ImageBook, executor: ContainerExecutor) -> None:
        self._book = book
        self._executor = executor

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        self._book.prepare()

    async def resolve(self, reference: str, build_log: str) -> Image:
        """The image; waits while the engine is away. Raises AttemptFailed for one that it has
        not."""
        del build_log
        known = await asyncio.to_thread(self._book.known, reference)
        while known is not None:
            engine, _ = await self._executor.engine()
            try:
                return replace(image_of(await engine.image(known.id), reference), name=reference)
            except EngineAway:
                await asyncio.sleep(ASK_AGAIN)
            except EngineRefused:
                break
        raise staging_failed(f"{reference} is not in the container engine of this device")


class DeviceContainers:
    """Those of a fleet. Containers of ours that belong to none of its replicas are ended."""

    def __init__(
        self,
        engine: DeviceEngine,
        fleet: Fleet,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._book = engine.book
        self._fleet = fleet
        self.executor = ContainerExecutor(
            engine.socket, engine.book.key, self, sleep, expected=True
        )
        self.contained = Contained(LoadedImages(engine.book, self.executor), (), LOG_KEPT)
        self._running: asyncio.Task[None] | None = None
        self._adrift: set[str] = set()

    def are_there(self) -> bool:
        """Whether there may be some of an earlier agent; blocks."""
        return self._fleet.has_containers or self._book.has_any()

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Speak with the engine from now on; again is the same."""
        if self._running is None:
            self._running = tasks.create_task(self.executor.run(), name="engine")

    def containers(self, held: dict[str, AttemptStatus]) -> None:
        """The engine is there: its containers are taken up from where they stand."""
        self._adrift = held.keys() - self._fleet.take_up(held, contained=True)
        for name in list(self._adrift):
            if held[name].gone:
                self.lost(name)
            else:
                self.executor.stop(name, 0.0)

    def engine_changed(self) -> None:
        """Nobody has to hear that."""

    def exited(self, event: Exited) -> None:
        """A container ended."""
        if not self._fleet.exited(event):
            self.lost(event.attempt)

    def lost(self, name: str) -> None:
        """Nothing of a container is left, and nobody saw how it ended."""
        if name in self._adrift:
            self._adrift.discard(name)
            self.executor.forget(name)
        else:
            self._fleet.gone(name)
