"""Versions of an edge world's model, what they say, and machines whose power fails while one of
them comes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from bed_device import FarMachine
from edge_world import QUICK_LINKS, World

from hatoba_worker.agent.failpoints import VARIABLE

SIZE = 3 << 20
PATIENCE = 60.0


class Content(NamedTuple):
    """What a model says that is whole."""

    name: str
    weights: str


class Version(NamedTuple):
    """A model's version, and what it says."""

    model: str
    content: Content


async def version(world: World, name: str, *, does: str = "works", size: int = SIZE) -> Version:
    """Another version, with weights of its own."""
    weights = os.urandom(size)
    model = await world.model(name, weights, does=does)
    return Version(model, Content(name, hashlib.sha256(weights).hexdigest()))


async def said(world: World, machine: FarMachine) -> Content:
    """What a machine's model says, once it answers."""
    answer = await world.answer(machine)
    return Content(answer["name"], answer["weights"])


async def cut_link(machine: FarMachine) -> None:
    """It has no network from now on."""
    assert machine.link is not None
    await asyncio.to_thread(machine.link.cut)


async def mend_link(machine: FarMachine) -> None:
    """It has one again."""
    assert machine.link is not None
    await asyncio.to_thread(machine.link.mend)


async def boot_without_link(machine: FarMachine) -> None:
    """Its power comes back, and no network with it."""
    await cut_link(machine)
    await asyncio.to_thread(machine.boot)


async def diagnosed(machine: FarMachine) -> str:
    """What a device says of itself."""
    words = ("agent", "diagnose", "--data", machine.data)
    return (await asyncio.to_thread(machine.hatoba, *words)).stdout


# -- the journal's steps --------------------------------------------------------------------------


async def pointed_device(world: World, name: str, **fields: Any) -> FarMachine:
    """A device whose agent stands still where `stop_at` says."""
    points = {VARIABLE: str(_points(world.root / name))}
    return await world.device(name, environ=QUICK_LINKS | points, **fields)


def stop_at(machine: FarMachine, *points: str) -> None:
    """Have its agent stand still at these points from now on; without any: nowhere."""
    path = _points(machine.root)
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(points))
    fresh.replace(path)


def _points(root: Path) -> Path:
    # Not on its disk: no power cut takes them, or brings them back.
    return root / "points"


def until_stopped(machine: FarMachine, what: str, within: float = PATIENCE) -> None:
    """Wait until its agent stands still. Raises AssertionError."""
    end = time.monotonic() + within
    while not machine.stands_still():
        assert time.monotonic() < end, f"{machine.root.name} did not come to {what}"
        time.sleep(0.01)


def go_on(machine: FarMachine) -> None:
    """Its agent stands still nowhere any more."""
    stop_at(machine)
    machine.resume_agent()


# -- damage ---------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def spoil(machine: FarMachine, content: Content) -> None:
    """Turn one bit of what is on the disk of this content."""
    with machine.opened() as data:
        trees = data / "trees"
        weights = [one for one in trees.glob("*/weights*") if _digest(one) == content.weights]
        assert weights, "it is not on the disk"
        for path in weights:
            flip(path, SIZE // 2)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
