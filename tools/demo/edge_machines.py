"""The machines of the demo: one with a container engine, one for arm64, and one that is away."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import bed_system
import testbed
from bed_device import FarMachine, System
from bed_edge import EdgeNetwork
from bed_edge_registry import EdgeRegistry, edge_registry
from bed_engine import EngineMachine
from bed_place import Broken, Place, Unavailable, default_directory

M = TypeVar("M", bound=FarMachine)
ENGINE, ARM64, AWAY = NAMES = ("shop-1", "shop-2", "shop-3")
PATH = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


class EdgeMachines:
    """All of them, without power but for the one with an engine; closed by the stack. `say` is told
    what takes long, and what cannot be had here.
    """

    def __init__(
        self,
        network: EdgeNetwork,
        work: Path,
        hidden: Path,
        stack: ExitStack,
        say: Callable[[str], None],
    ) -> None:
        self._network = network
        self._work = work
        self._hidden = hidden
        self._stack = stack
        self._say = say
        self.left_out: list[str] = []
        """What cannot be had here, and why."""
        self.registry: EdgeRegistry | None = None
        """Where the image of the machine with an engine is; None: none has one."""
        self._links = {name: network.add(name) for name in NAMES}
        contained = self._with_engine()
        self.all: dict[str, FarMachine] = {
            ENGINE: contained or self._made(FarMachine, ENGINE),
            ARM64: self._made(FarMachine, ARM64, self._arm64()),
            AWAY: self._made(FarMachine, AWAY),
        }

    def _made(self, kind: type[M], name: str, system: System | None = None) -> M:
        root = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._work)) / name
        link, own = self._links[name], system or System(path=PATH)
        machine = kind(root, link, hidden=(self._hidden,), system=own)
        self._stack.callback(machine.close)
        return machine

    def _with_engine(self) -> EngineMachine | None:
        """One whose engine answers, and a registry for it; None where none can be had."""
        try:
            registry = self._stack.enter_context(edge_registry(self._work, self._network))
            machine = self._made(EngineMachine, ENGINE)
            _boot(machine)
        except (Broken, Unavailable, OSError) as reason:
            self._leave_out(f"models in images, {ENGINE} has no container engine", reason)
            return None
        self.registry = registry
        return machine

    def _arm64(self) -> System | None:
        """What is on the disk of a machine for arm64; None where none can be had."""
        if not bed_system.is_made():
            self._say("makes a Debian for arm64 (once, minutes)")
        try:
            testbed.bring_up(Place(default_directory()), ["arm64"])
            return bed_system.system(self._work)
        except (Broken, Unavailable) as reason:
            self._leave_out(f"a device for arm64, {ARM64} is an ordinary one", reason)
            return None

    def _leave_out(self, what: str, reason: Exception) -> None:
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        self.left_out.append(": ".join(dict.fromkeys((what, lines[0], lines[-1]))))
        self._say(f"LEFT OUT: {self.left_out[-1]}")


def _boot(machine: EngineMachine) -> None:
    """Have its engine answer; it has no power where it does not."""
    machine.power_on()
    try:
        machine.until_engine()
    except Broken:
        machine.power_cut()
        raise
