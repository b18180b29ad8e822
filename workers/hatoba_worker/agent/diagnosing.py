"""What is to be said of a device on the device itself, without a link or the agent. Blocks."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hatoba.units import say_bytes
from hatoba_worker import key_files
from hatoba_worker.agent import disk, journal, lock, status
from hatoba_worker.agent.blobs import SPARE
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.engines import DeviceEngine
from hatoba_worker.agent.identity import Identity, NotEnrolled
from hatoba_worker.agent.names import resource_name
from hatoba_worker.agent.settings import BadSettings, Settings
from hatoba_worker.agent.slots import Slot, Slots, Wanted, replayed
from hatoba_worker.keeper import cgroups

ENROLL = "`hatoba agent enroll` with the line that `hatoba devices add` prints on the server"
CLOCK_OFF = 300.0
"""Seconds by which the machine's clock may differ without a word."""
ENGINE_SECONDS = 3.0


class Level(Enum):
    """How a finding is to be taken."""

    GOOD = "ok"
    ODD = "note"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: in words how it is, and what to do about it."""

    about: str
    level: Level
    text: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A data directory and the time. `clock` is as the agent's after its start."""

    data: Path
    clock: FloorClock

    @property
    def told(self) -> dict[str, Any]:
        """What the agent wrote last."""
        return status.read(self.data)


def findings(place: Place) -> list[Finding]:
    """All that can be said, in the order in which it is best read."""
    parts = (_agent, _identity, _clock, _link, _journal, _slots, _engine, _disk, _memory)
    return [found for part in parts for found in part(place)]


def _agent(place: Place) -> Iterator[Finding]:
    told = place.told
    if not lock.is_held(place.data):
        yield Finding(
            "agent",
            Level.BAD,
            "no agent runs here; what it had running may go on without it",
            f"`systemctl start hatoba-agent`, or `hatoba agent run --data {place.data}`",
        )
    else:
        yield Finding("agent", Level.GOOD, f"runs as process {told.get('pid', '?')}")
    for problem in told.get("problems", ()):
        yield Finding("agent", Level.BAD, str(problem))


def _identity(place: Place) -> Iterator[Finding]:
    try:
        settings = Settings.load(place.data)
        identity = Identity(key_files.directory(place.data))
        current, candidate = identity.current(), identity.candidate()
    except (NotEnrolled, BadSettings) as error:
        yield Finding("identity", Level.BAD, str(error), ENROLL)
        return
    if settings is None:
        yield Finding("identity", Level.BAD, "it is not known where the server is", ENROLL)
        return
    end = current.validity.ends
    name = f"device {settings.device}, dials {settings.address}"
    if place.clock.now() > end:
        text = f"{name}; its certificate ended on {_date(end)}"
        remedy = f"it asks for another as soon as it reaches the server; else {ENROLL}"
        yield Finding("identity", Level.BAD, text, remedy)
    else:
        yield Finding("identity", Level.GOOD, f"{name}, good until {_date(end)}")
    if candidate is not None:
        text = "a newer certificate waits to be shown to the server"
        yield Finding("identity", Level.ODD, text)


def _clock(place: Place) -> Iterator[Finding]:
    own, told = time.time(), place.told
    certain = bool(told.get("certain")) and lock.is_held(place.data)
    now = place.clock.now()
    source = "the server has said so since the start" if certain else "no server has said so yet"
    if certain:
        now = max(now, float(told.get("time", 0.0)))
    if abs(own - now) > CLOCK_OFF:
        yield Finding(
            "clock",
            Level.ODD,
            f"the machine says {_date(own)}, the agent goes by {_date(now)} ({source})",
            "nothing of ours needs the machine's clock; `timedatectl` sets it for others",
        )
    else:
        yield Finding("clock", Level.GOOD, f"{_date(now)}; {source}")


def _link(place: Place) -> Iterator[Finding]:
    link = place.told.get("link", {})
    last = float(link.get("last_contact", 0.0))
    when = f"heard last on {_date(last)}" if last else "never heard"
    if not lock.is_held(place.data):
        yield Finding("link", Level.BAD, f"not connected, {when}: no agent runs")
    elif link.get("connected"):
        yield Finding("link", Level.GOOD, f"connected; {when}")
    else:
        problem = str(link.get("problem", "")) or "nothing was written of it yet"
        yield Finding("link", Level.BAD, f"not connected, {when}: {problem}", _way_out(problem))
    if link:
        carried = f"{say_bytes(link['up'])} up, {say_bytes(link['down'])} down"
        many = _many(link["connections"], "connection", "connections")
        text = f"{carried} in {many} since the agent began"
        yield Finding("link", Level.GOOD, f"{text}{_left(link)}")


def _way_out(problem: str) -> str:
    """What to do about why there is no link."""
    for words, remedy in (
        ("was good until", "the server's certificate has ended, or this machine's date is wrong"),
        ("good from", "the server's certificate is for later: is its clock right?"),
        ("certificate verify failed", f"another server answers there; if ours is new: {ENROLL}"),
        ("without a word", f"where it has ended it is renewed at the ordinary port; else {ENROLL}"),
        ("UNAUTHENTICATED", f"the server does not know this device any more: {ENROLL}"),
        ("Not authorized", "AWS IoT does not take this certificate, or its policy is not attached"),
        ("closed the connection", "is its certificate active and a thing's, and nobody else's?"),
        ("may not listen", "the policy of its certificate at AWS IoT does not allow that"),
        ("PERMISSION_DENIED", f"the device was revoked, or is no more: {ENROLL}"),
        ("ABORTED", "another machine shows this device's certificate: one of them is a copy"),
        ("Name or service not known", "this machine does not find the server's name: its DNS"),
        ("Temporary failure in name", "this machine does not find the server's name: its DNS"),
        ("Connect call failed", "is the network up, and may this machine reach that port?"),
    ):
        if words in problem:
            return remedy
    return "it tries again by itself, at most a minute after each try"


def _left(link: dict[str, Any]) -> str:
    parts = [
        f"{say_bytes(left)} {way}"
        for way in ("up", "down")
        if (left := link.get(f"{way}_left")) is not None
    ]
    return f"; today it may carry {' and '.join(parts)} more" if parts else ""


def _journal(place: Place) -> Iterator[Finding]:
    try:
        read = journal.read(place.data / "journal")
        slots = replayed(read.entries)
    except FileNotFoundError:
        yield Finding("journal", Level.ODD, "there is none: nothing was ever wanted of this device")
        return
    except (OSError, ValueError) as error:
        yield Finding("journal", Level.BAD, f"it cannot be read: {error}", "look at the disk")
        return
    many = _many(len(read.entries), "entry", "entries")
    text = f"{many}, generation {slots.generation}"
    if read.damage:
        text = f"{text}; {read.damage}"
        yield Finding("journal", Level.BAD, text, "look at the disk; the agent mends it at a start")
    else:
        yield Finding("journal", Level.GOOD, text)


def _slots(place: Place) -> Iterator[Finding]:
    try:
        slots = replayed(journal.read(place.data / "journal").entries)
    except (OSError, ValueError):
        return
    now = {one.get("deployment"): one for one in place.told.get("report", {}).get("slots", ())}
    for name in slots.names:
        deployment = resource_name(name)
        address = now.get(deployment, {}).get("address", "")
        yield _slot(deployment, slots.slot(name), slots.wanted.get(name), address)
    if not slots.names:
        yield Finding("models", Level.ODD, _nothing(slots))


def _nothing(slots: Slots) -> str:
    return "none is wanted" if slots.generation else "nothing was wanted of this device yet"


def _slot(deployment: str, slot: Slot, wanted: Wanted | None, address: str) -> Finding:
    if wanted is None:
        return Finding("models", Level.ODD, f"{deployment} is wanted no more, and is being ended")
    newest = wanted.release
    runs = f"answers at {address}" if address else "does not answer now"
    what = f"{deployment} revision {newest.revision}"
    if newest == slot.good:
        level = Level.BAD if slot.inconsistent or not address else Level.GOOD
        return Finding("models", level, f"{what} is good, and {runs}")
    before = f"revision {slot.good.revision} before it {runs}" if slot.good else "nothing runs"
    if newest == slot.refused:
        why = (slot.cause or {}).get("message", "")
        text = f"{what} was given up: {why}; {before}"
        again = f"unless its roll-out does by itself, `hatoba deployments retry {deployment}`"
        again += " has it tried again, on any machine that may call the server"
        return Finding("models", Level.BAD, text, again)
    if newest == slot.trial:
        return Finding("models", Level.ODD, f"{what} is tried, for the {_times(slot)}; it {runs}")
    return Finding("models", Level.ODD, f"{what} is being fetched; {before}")


def _times(slot: Slot) -> str:
    if slot.starts <= 1:
        return "first time"
    return f"{'second' if slot.starts == 2 else 'third'} start of the machine"


def _engine(place: Place) -> Iterator[Finding]:
    settings: Settings | None = None
    with contextlib.suppress(BadSettings):
        settings = Settings.load(place.data)
    told = settings.engine if settings is not None else ""
    engine = DeviceEngine.of(place.data, told, os.environ)
    if lacks := engine.lacks():
        yield Finding("engine", Level.GOOD, f"models run as processes: {lacks}")
        return
    many = _many(len(engine.book.all()), "image", "images")
    try:
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(ENGINE_SECONDS)
            asked.connect(engine.socket)
    except OSError as error:
        remedy = "does it run, and is the agent's user in its group? `usermod -aG docker USER`"
        text = f"{engine.socket} does not answer: {error}; it was given {many}"
        yield Finding("engine", Level.BAD, text, remedy)
    else:
        yield Finding("engine", Level.GOOD, f"{engine.socket} answers; it was given {many}")


def _disk(place: Place) -> Iterator[Finding]:
    free = disk.free_bytes(place.data)
    names = ("trees", "blobs", "layers", "ring", "venvs")
    parts = ", ".join(f"{say_bytes(_size(place.data / name))} {name}" for name in names)
    text = f"{say_bytes(free)} free; of ours {parts}"
    if free < SPARE:
        remedy = "remove what is not ours; nothing new can be brought in before"
        yield Finding("disk", Level.BAD, text, remedy)
    else:
        yield Finding("disk", Level.GOOD, text)


def _size(root: Path) -> int:
    """Bytes that a directory takes, as far as it can be looked at."""
    total = 0
    for directory, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total


def _memory(place: Place) -> Iterator[Finding]:
    del place
    if cgroups.may_limit():
        yield Finding("memory", Level.GOOD, "limits of models are enforced by the kernel")
    else:
        yield Finding(
            "memory",
            Level.ODD,
            "limits of models are not enforced: the kernel's memory controller is off, or not ours",
            "on a Raspberry Pi add `cgroup_enable=memory` to /boot/firmware/cmdline.txt; under "
            "systemd the unit needs `Delegate=yes`",
        )


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"


def _date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(" ", "seconds")
