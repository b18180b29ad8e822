"""Does what `slots` says is next, for every deployment on the device, one task each.

What is decided is in the journal before it is done. A link that is away is waited for as long as it
takes; what can never be fetched, or is not what it is called, is told to be bad at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import structlog

from hatoba_worker.agent.blobs import Cut, Full, Gone, NoEngine, Unusable, Wrong
from hatoba_worker.agent.journal import Journal
from hatoba_worker.agent.pausing import until_heard
from hatoba_worker.agent.slots import (
    STARTS_MOST,
    Health,
    Json,
    Release,
    Slot,
    Slots,
    Step,
    Wanted,
    after,
    bad_entry,
    good_entry,
    in_doubt,
    inconsistent_entry,
    next_step,
    removed_entry,
    replayed,
    snapshot,
    spoiled_entry,
    staged_entry,
    switched_entry,
    wanted_entry,
)
from hatoba_worker.agent.watchdog import Beat

log = structlog.get_logger(__name__)

FIRST_WAIT, LONGEST_WAIT = 2.0, 300.0
"""Seconds between two tries to fetch; a link may be away for weeks."""
LOOK_EVERY = 1.0
DISK_AGAIN = 30.0
STOP_AGAIN = 30.0
"""Seconds until the end of what did not end in its time is waited for again."""
_DOUBTFUL = ("CRASH_LOOP", "STAGING_FAILED")
"""Causes that damage on the disk may have."""
_PASSING = "passing"


class Phase(Enum):
    """Where a slot stands, as the server is told."""

    WAITING = "waiting"
    """Nothing was done about the newest release yet."""
    FETCHING = "fetching"
    STARTING = "starting"
    BAKING = "baking"
    GOOD = "good"
    BAD = "bad"
    """It runs what was good before, or nothing."""
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Status:
    """How a slot is. `release` is what is wanted, `running` what runs; `cause` is why it is BAD, or
    what it waits for."""

    name: str
    phase: Phase
    release: Release | None
    running: Release | None
    cause: Json | None = None
    inconsistent: bool = False


class StillRuns(Exception):
    """What ran did not end in its time, and nothing may take its place yet."""


class Content(Protocol):
    """Brings releases in. All block no loop."""

    async def fetch(self, name: str, release: Release) -> None:
        """Have all of a release here. Raises Cut, Gone, Wrong, Full, Unusable, OSError."""
        ...

    async def check(self, name: str, release: Release) -> bool:
        """Whether what is here of it is what was fetched; what is not is removed."""
        ...

    async def collect(self, keep: Mapping[str, frozenset[Release]]) -> None:
        """Remove what is of no release of these."""
        ...


class Runtime(Protocol):
    """Runs releases."""

    news: asyncio.Event
    """Set whenever the health of something may have changed."""

    async def run(self, name: str, release: Release) -> None:
        """Have this release running under this name, and nothing else; again is the same. Raises
        StillRuns: what ran before does, and this one was not begun.
        """
        ...

    async def stop(self, name: str) -> None:
        """Have nothing running under this name any more. Raises StillRuns: it is told to end, and
        this may be asked again.
        """
        ...

    def health(self, name: str) -> Health:
        """How what runs under a name is."""
        ...


@dataclass(slots=True)
class _Work:
    """What goes on about a slot."""

    beat: Beat
    task: asyncio.Task[None] | None = None
    fetching: bool = False
    doubted: bool = False
    """The good one was looked at again since it ran last."""
    waits_for: Json | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Conductor:
    """One device's. `told` hears the name of each slot whose status changed; `beat` gives each slot
    its sign of life.
    """

    def __init__(
        self,
        journal: Journal,
        content: Content,
        runtime: Runtime,
        boot: str,
        *,
        told: Callable[[str], None] = lambda _: None,
        beat: Callable[[str], Beat] = lambda _: Beat(time.monotonic),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._journal = journal
        self._content = content
        self._runtime = runtime
        self._boot = boot
        self._told = told
        self._beat = beat
        self._sleep = sleep
        self._work: dict[str, _Work] = {}
        self._writing = asyncio.Lock()
        self._changed = asyncio.Event()
        self.slots = Slots()
        self.damage = ""
        """What of the journal could not be trusted at the start, in words; empty: nothing."""

    async def load(self) -> None:
        """Know what was known before. Raises OSError."""
        read = await asyncio.to_thread(self._journal.open)
        self.slots, self.damage = replayed(read.entries), read.damage
        if read.gap:
            self.slots = in_doubt(self.slots)
            await asyncio.to_thread(self._journal.rewrite, snapshot(self.slots))

    async def run(self) -> None:
        """Conduct until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pass_on_news(), name="runtime-news")
            while True:
                for name in self.slots.names:
                    work = self._work_of(name)
                    if work.task is None or work.task.done():
                        work.task = tasks.create_task(self._conduct(name), name=f"slot {name}")
                await self._changed.wait()
                self._changed.clear()

    def _work_of(self, name: str) -> _Work:
        if name not in self._work:
            self._work[name] = _Work(self._beat(f"slot {name}"))
        return self._work[name]

    async def _pass_on_news(self) -> None:
        while True:
            await self._runtime.news.wait()
            self._runtime.news.clear()
            self._poke_all()

    def _poke_all(self) -> None:
        for work in self._work.values():
            work.news.set()

    def reachable(self) -> None:
        """The link is there again: what waits for it is tried now."""
        self._poke_all()

    # -- what is wanted -------------------------------------------------------------------------

    async def want(self, generation: int, wanted: Mapping[str, Wanted]) -> bool:
        """The server wants this set; False for one that is not newer, which changes nothing. It is
        in the journal when this returns. Raises OSError: a disk that is full keeps the former set.
        """
        if generation <= self.slots.generation:
            return False
        await self._write(wanted_entry(generation, wanted))
        self._poke_all()
        return True

    def status(self, name: str) -> Status:
        """How a slot is now."""
        slot, wanted = self.slots.slots.get(name), self.slots.wanted.get(name)
        release = wanted.release if wanted is not None else None
        running = self._runtime.health(name).release
        if wanted is None or release is None:
            return Status(name, Phase.REMOVED, None, running)
        known = slot or Slot(name)
        given = known.inconsistent or release == known.refused
        cause = known.cause if given else self._waits_for(name)
        phase = self._phase(name, known, release)
        return Status(name, phase, release, running, cause, known.inconsistent)

    def _waits_for(self, name: str) -> Json | None:
        work = self._work.get(name)
        return work.waits_for if work is not None else None

    def _phase(self, name: str, slot: Slot, release: Release) -> Phase:
        health = self._runtime.health(name)
        if slot.trial == release:
            return Phase.BAKING if health.release == release and health.well else Phase.STARTING
        if release == slot.good:
            return Phase.GOOD
        if release == slot.refused:
            return Phase.BAD
        work = self._work.get(name)
        return Phase.FETCHING if work is not None and work.fetching else Phase.WAITING

    # -- one slot -------------------------------------------------------------------------------

    async def _conduct(self, name: str) -> None:
        """Until nothing of the slot is left."""
        work = self._work[name]
        while True:
            work.beat()
            work.news.clear()
            step, release = next_step(self.slots, name, self._runtime.health(name), self._boot)
            try:
                if step is Step.REMOVE:
                    await self._remove(name)
                    return
                await self._do(name, step, release)
            except OSError as error:
                # A full or broken disk: what runs, runs on.
                log.error("agent.disk", slot=name, error=str(error))
                await self._pause(work, DISK_AGAIN)
            except StillRuns as error:
                # Two of them at once are more than the device may have room for.
                log.error("agent.still_runs", slot=name, error=str(error))
                await self._pause(work, STOP_AGAIN)

    async def _do(self, name: str, step: Step, release: Release | None) -> None:
        work = self._work[name]
        if step is Step.REST or release is None:
            await self._pause(work, LONGEST_WAIT)
            return
        match step:
            case Step.FETCH:
                await self._fetch(name, release)
            case Step.VERIFY:
                await self._verify(name, release)
            case Step.SWITCH:
                await self._write(switched_entry(self.slots.slot(name), release, self._boot))
            case Step.COMMIT:
                await self._commit(name, release)
            case Step.BACK:
                await self._back(name, release)
            case _:
                await self._keep_running(name, release)
        self._told(name)

    async def _keep_running(self, name: str, release: Release) -> None:
        slot, health = self.slots.slot(name), self._runtime.health(name)
        if release == slot.trial and slot.boot != self._boot:
            await self._write(switched_entry(slot, release, self._boot))
        if health.release != release:
            with _resting(self._work[name]):
                await self._runtime.run(name, release)
            return
        if release == slot.good and await self._was_spoiled(name, release, health):
            return
        await self._note_consistency(slot, health)
        await self._pause(self._work[name], LOOK_EVERY)

    async def _was_spoiled(self, name: str, release: Release, health: Health) -> bool:
        """Look again, once, at what was good and does not come up any more; what is damaged is
        fetched anew."""
        work = self._work[name]
        work.doubted &= health.well == 0
        if work.doubted or health.failed is None or health.failed["code"] not in _DOUBTFUL:
            return False
        work.doubted = True
        if await self._is_whole(name, release):
            return False
        # Written first: it is to be fetched anew also where it does not end in its time.
        await self._write(spoiled_entry(name, release))
        await self._stop(name)
        return True

    async def _stop(self, name: str) -> None:
        with _resting(self._work[name]):
            await self._runtime.stop(name)

    async def _is_whole(self, name: str, release: Release) -> bool:
        # All of it is read, which a card of flash memory takes its time for.
        with _resting(self._work[name]):
            return await self._content.check(name, release)

    async def _note_consistency(self, slot: Slot, health: Health) -> None:
        """Say it where the good one does not come up again after a trial that failed."""
        if slot.trial is not None or health.release != slot.good:
            return
        broken = health.failed is not None and slot.refused is not None
        if broken != slot.inconsistent and (broken or health.well > 0):
            await self._write(inconsistent_entry(slot.name, health.failed if broken else None))

    async def _commit(self, name: str, release: Release) -> None:
        await self._write(good_entry(name, release))
        await self._collect()

    async def _back(self, name: str, release: Release) -> None:
        slot, wanted = self.slots.slot(name), self.slots.wanted.get(name)
        cause: Json | None = None
        if wanted is not None and wanted.release == release:
            cause = self._runtime.health(name).failed or _begun_too_often(slot)
        await self._write(bad_entry(name, release, cause))
        if self.slots.slot(name).good is None:
            await self._stop(name)

    async def _remove(self, name: str) -> None:
        await self._stop(name)
        await self._write(removed_entry(name))
        work = self._work.pop(name)
        await self._collect()
        work.beat.rest()
        self._told(name)

    # -- content --------------------------------------------------------------------------------

    async def _fetch(self, name: str, release: Release) -> None:
        """Until it is here, cannot be had, or something else is wanted."""
        work, wait = self._work[name], FIRST_WAIT
        work.fetching = True
        self._told(name)
        try:
            while self._is_wanted(name, release):
                try:
                    await self._interruptible(name, release)
                except Cut as error:
                    work.waits_for = _cause("IMAGE_UNREACHABLE", str(error), passing=True)
                    self._told(name)
                    await self._pause(work, wait)
                    wait = min(2 * wait, LONGEST_WAIT)
                    continue
                except (Gone, Wrong, Unusable, Full) as error:
                    await self._refuse(name, release, error)
                return
        finally:
            work.fetching, work.waits_for = False, None

    def _is_wanted(self, name: str, release: Release) -> bool:
        wanted, slot = self.slots.wanted.get(name), self.slots.slot(name)
        return release in (wanted.release if wanted is not None else None, slot.good)

    async def _interruptible(self, name: str, release: Release) -> None:
        """Fetch, and stop at once when something else is wanted: what came so far is kept."""
        async with asyncio.TaskGroup() as tasks:
            fetching = tasks.create_task(_outcome(self._content.fetch(name, release)), name="fetch")
            newer = tasks.create_task(self._until_unwanted(name, release), name="newer")
            with _resting(self._work[name]):
                await asyncio.wait((fetching, newer), return_when=asyncio.FIRST_COMPLETED)
            newer.cancel()
            fetching.cancel()
        if fetching.cancelled():
            return
        if (error := fetching.result()) is not None:
            raise error
        await self._write(staged_entry(name, release, self._boot))

    async def _until_unwanted(self, name: str, release: Release) -> None:
        work = self._work[name]
        while self._is_wanted(name, release):
            work.news.clear()
            await work.news.wait()

    async def _refuse(self, name: str, release: Release, error: Exception) -> None:
        """It cannot be here: told at once, and nothing that runs is touched."""
        codes = {
            Gone: "IMAGE_MISSING",
            Unusable: "IMAGE_ARCHITECTURE",
            NoEngine: "NO_CAPACITY",
            Full: "NO_CAPACITY",
        }
        code = codes.get(type(error), "STAGING_FAILED")
        log.warning("agent.refused", slot=name, revision=release.revision, error=str(error))
        cause = _cause(code, str(error), passing=isinstance(error, Full))
        if release == self.slots.slot(name).good:
            # It was good before it was damaged: nothing else could take its place.
            self._work[name].waits_for = cause
            self._told(name)
            await self._pause(self._work[name], LONGEST_WAIT)
            return
        await self._write(bad_entry(name, release, cause))

    async def _verify(self, name: str, release: Release) -> None:
        if await self._is_whole(name, release):
            await self._write(staged_entry(name, release, self._boot))
            return
        await self._write(spoiled_entry(name, release))
        if self.slots.slot(name).trial == release:
            await self._stop(name)
            # It is fetched anew, if it is still wanted; meanwhile what was good runs.
            await self._write(bad_entry(name, release, None))

    async def _collect(self) -> None:
        slots = self.slots
        keep = {name: slot.kept | frozenset(slot.staged) for name, slot in slots.slots.items()}
        for name, wanted in slots.wanted.items():
            keep[name] = keep.get(name, frozenset()) | {wanted.release}
        await self._content.collect(keep)

    # -- the journal ----------------------------------------------------------------------------

    async def _write(self, entry: Json) -> None:
        """Have it on the disk, and act by it from then on. Raises OSError."""
        async with self._writing:
            await asyncio.to_thread(self._journal.add, entry)
            self.slots = after(self.slots, entry)
            if self._journal.large:
                await asyncio.to_thread(self._journal.rewrite, snapshot(self.slots))
        self._changed.set()

    async def _pause(self, work: _Work, seconds: float) -> None:
        """For so long, or until there is news."""
        with _resting(work):
            await until_heard(work.news, seconds, self._sleep)


@contextlib.contextmanager
def _resting(work: _Work) -> Iterator[None]:
    """It waits for what may take as long as it takes, or has a bound of its own."""
    work.beat.rest()
    try:
        yield
    finally:
        work.beat()


async def _outcome(fetching: Awaitable[None]) -> Exception | None:
    """What a fetch raised, which a task group would wrap."""
    try:
        await fetching
    except (Cut, Gone, Wrong, Full, Unusable, OSError) as error:
        return error
    return None


def _cause(code: str, message: str, *, passing: bool = False) -> dict[str, Any]:
    return {"code": code, "message": message, _PASSING: passing}


def _begun_too_often(slot: Slot) -> Json:
    return _cause(
        "CRASH_LOOP",
        f"It was begun in {max(slot.starts, STARTS_MOST)} boots and never stayed healthy.",
    )
