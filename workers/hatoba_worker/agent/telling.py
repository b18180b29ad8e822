"""What the server is told of the device: one whole report, whenever something in it has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import structlog

from hatoba.v1 import common_pb2, device_pb2
from hatoba_worker.agent.conductor import Phase, Status
from hatoba_worker.agent.names import resource_name
from hatoba_worker.agent.slots import Json, Slots
from hatoba_worker.agent.watchdog import Beat

log = structlog.get_logger(__name__)

GATHER = 0.2
"""Seconds in which changes come together to one report."""
LOOK_EVERY = 30.0
"""Seconds after which it is looked at unasked: a disk fills up without saying so."""
MOVED = 0.1
"""Share by which the free disk has to change before that alone is told."""
MIB = 1 << 20
MOST_SLOTS, MOST_PROBLEMS = 256, 32
MOST_TEXT = 1_024
_PHASES = {
    Phase.WAITING: device_pb2.SLOT_PHASE_WAITING,
    Phase.FETCHING: device_pb2.SLOT_PHASE_FETCHING,
    Phase.STARTING: device_pb2.SLOT_PHASE_STARTING,
    Phase.BAKING: device_pb2.SLOT_PHASE_BAKING,
    Phase.GOOD: device_pb2.SLOT_PHASE_GOOD,
    Phase.BAD: device_pb2.SLOT_PHASE_BAD,
    Phase.REMOVED: device_pb2.SLOT_PHASE_REMOVED,
}
_ORIGINS = {
    "IMAGE_UNREACHABLE": common_pb2.ORIGIN_INFRASTRUCTURE,
    "NO_CAPACITY": common_pb2.ORIGIN_CAPACITY,
    "STAGING_FAILED": common_pb2.ORIGIN_INFRASTRUCTURE,
    "LOST": common_pb2.ORIGIN_INFRASTRUCTURE,
}
Tell = Callable[[device_pb2.DeviceReport], None]


class Told(Protocol):
    """Who knows how the slots are."""

    slots: Slots

    def status(self, name: str) -> Status:
        """How a slot is now."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a report comes from. `disk` blocks."""

    conductor: Told
    address: Callable[[str], str]
    disk: Callable[[], int]
    problems: Callable[[], list[str]]


class _Seen(NamedTuple):
    """A slot as it was last looked at."""

    status: Status
    address: str


class Telling:
    """Makes reports. `tell` gets each that is another one than the last, `happened` what became of
    a slot: a word and a sentence.
    """

    def __init__(
        self,
        sources: Sources,
        tell: Tell,
        happened: Callable[[str, str], None],
        beat: Beat,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._sources = sources
        self._tell = tell
        self._happened = happened
        self._beat = beat
        self._sleep = sleep
        self._changed = asyncio.Event()
        self._seen: dict[str, _Seen] = {}
        self._begun = False
        self.report = device_pb2.DeviceReport()
        """The newest."""
        self.free: int | None = None
        """Bytes of the disk when it was looked at last."""

    def changed(self, name: str = "") -> None:
        """Something may be another way now; with a name: about that slot."""
        slots = self._sources.conductor.slots
        gone = name not in slots.wanted and name not in slots.slots
        if gone or self._now(name) != self._seen.get(name):
            self._changed.set()

    def look(self) -> None:
        """Something else than a slot may be another way now."""
        self._changed.set()

    def _now(self, name: str) -> _Seen:
        return _Seen(self._sources.conductor.status(name), self._sources.address(name))

    async def run(self) -> None:
        """Tell, until cancelled."""
        while True:
            self._beat()
            await self._look()
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._changed.wait()
                await self._sleep(GATHER)
            except TimeoutError:
                pass
            self._changed.clear()

    async def _look(self) -> None:
        sources = self._sources
        self.free = await asyncio.to_thread(sources.disk)
        slots = sources.conductor.slots
        seen = {name: self._now(name) for name in slots.names}
        self._note(seen)
        report = device_pb2.DeviceReport(
            generation=slots.generation,
            settled=slots.settled,
            slots=[_slot(one) for one in list(seen.values())[:MOST_SLOTS]],
            problems=[text[:MOST_TEXT] for text in sources.problems()[:MOST_PROBLEMS]],
            disk_bytes=self._disk(self.free),
        )
        if report != self.report:
            self.report = report
            self._tell(report)

    def _disk(self, now: int) -> int:
        told = self.report.disk_bytes
        return told if abs(now - told) < MOVED * told else now - now % MIB

    # -- what happened --------------------------------------------------------------------------

    def _note(self, now: Mapping[str, _Seen]) -> None:
        before, self._seen = self._seen, dict(now)
        if not self._begun:
            # How it was when the agent began is no news.
            self._begun = True
            return
        for name, seen in now.items():
            former = before[name].status if name in before else None
            if (told := happening(former, seen.status)) is not None:
                self._happened(*told)
        for name in before.keys() - now.keys():
            self._happened("removed", f"{resource_name(name)} is not on this device any more.")


def _slot(seen: _Seen) -> device_pb2.DeviceSlot:
    status = seen.status
    return device_pb2.DeviceSlot(
        deployment=resource_name(status.name),
        revision=status.release.revision if status.release is not None else 0,
        tries=status.release.tries if status.release is not None else 0,
        phase=_PHASES[status.phase],
        running=status.running.revision if status.running is not None else 0,
        cause=cause_message(status.cause) if status.cause is not None else None,
        inconsistent=status.inconsistent,
        address=seen.address,
    )


def happening(before: Status | None, now: Status) -> tuple[str, str] | None:
    """What became of a slot, a word and a sentence; None: nothing that is worth it."""
    known = before is not None and before.release == now.release
    phase = before.phase if before is not None and known else None
    if now.release is None or now.phase is phase:
        return None
    what = f"{resource_name(now.name)} revision {now.release.revision}"
    match now.phase:
        case Phase.STARTING | Phase.BAKING if phase not in (Phase.STARTING, Phase.BAKING):
            return "switched", f"{what} is tried."
        case Phase.GOOD:
            return "good", f"{what} stayed healthy."
        case Phase.BAD:
            return "bad", f"{what} was given up: {(now.cause or {}).get('message', '')}"
        case _:
            return None


def cause_message(told: Json) -> common_pb2.Cause:
    """A cause of the journal as the contract has it; a code of another version is UNSPECIFIED."""
    code = str(told.get("code", ""))
    return common_pb2.Cause(
        code=_code(code),
        origin=_ORIGINS.get(code, common_pb2.ORIGIN_USER),
        message=str(told.get("message", "")),
        retryable=bool(told.get("passing", False)),
        last_log_lines=[str(line) for line in told.get("lines", ())],
    )


def _code(name: str) -> common_pb2.CauseCode.ValueType:
    try:
        return common_pb2.CauseCode.Value(f"CAUSE_CODE_{name}")
    except ValueError:
        return common_pb2.CAUSE_CODE_UNSPECIFIED
