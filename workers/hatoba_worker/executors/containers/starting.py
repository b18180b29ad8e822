"""From a spawn to a container that was started, once."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from hatoba_worker import tinyfiles
from hatoba_worker.executors.containers import manifest, output, states
from hatoba_worker.executors.containers.engine import Engine, EngineRefused, Json
from hatoba_worker.executors.containers.spec import ContainerSpawn
from hatoba_worker.keeper.messages import FailureKind, SpawnFailed

STARTING = ".starting"
"""Stands in a home once a start of its container may be under way."""
STOPPED = ".stopped"
"""Stands in a home once its container was asked to end."""
_TAKEN = 409
_INIT = "docker-init"


@dataclass(slots=True)
class Abilities:
    """What an engine turned out to have: `init`, a small one of its own to put before commands."""

    init: bool = True


class Starting:
    """One container's start. Steps are taken until one answers; at most one of them starts it."""

    def __init__(self, spawn: ContainerSpawn, host: str, abilities: Abilities) -> None:
        self._spawn = spawn
        self._host = host
        self._abilities = abilities
        self._tried = False

    async def step(self, engine: Engine) -> Json | SpawnFailed:
        """The container as it is once it runs or ran, or why there is none. Raises EngineAway."""
        name = self._spawn.attempt
        config = manifest.config_of(self._spawn, self._host, init=self._abilities.init)
        try:
            await engine.create(name, config)
        except EngineRefused as error:
            if error.status != _TAKEN:
                return self._failed("other", str(error))
        try:
            seen = await engine.inspect(name)
            if not self._is_ours(seen):
                return self._failed("other", f"there is a container {name}, and it is not ours")
            return await self._started(engine, seen)
        except EngineRefused as error:
            return self._failed("other", str(error))

    def _is_ours(self, seen: Json) -> bool:
        labels = seen["Config"].get("Labels") or {}
        ours = (self._host, self._spawn.attempt)
        return (labels.get(manifest.HOST), labels.get(manifest.ATTEMPT)) == ours

    async def _started(self, engine: Engine, seen: Json) -> Json | SpawnFailed:
        if not states.never_ran(seen):
            return seen
        if self._tried:
            # Its start may still be carried out: what is removed cannot run.
            await engine.remove(seen["Id"])
            return self._failed("lost", "the container engine went away while it was started")
        try:
            self._mark()
        except OSError as error:
            await engine.remove(seen["Id"])
            return self._failed("other", f"its directory cannot be written: {error}")
        self._tried = True
        try:
            await engine.start(seen["Id"])
        except EngineRefused as error:
            await engine.remove(seen["Id"])
            if _INIT in str(error) and self._abilities.init:
                # Nothing ran: the engine says that it has it, and looks for it only now.
                self._abilities.init, self._tried = False, False
                return await self.step(engine)
            return self._failed(states.of_start(str(error)), str(error))
        return await engine.inspect(seen["Id"])

    def _mark(self) -> None:
        home = self._spawn.home
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{home}/{STOPPED}")
        output.begin(home)
        tinyfiles.write(f"{home}/{STARTING}", b"")

    def _failed(self, kind: FailureKind, message: str) -> SpawnFailed:
        return SpawnFailed(self._spawn.attempt, 0, kind, message)
