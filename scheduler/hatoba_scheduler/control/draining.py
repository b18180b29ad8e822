"""Drains: what runs on a host or backend, or of a queue, goes elsewhere, at nobody's charge."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.domain.device_jobs import speaker
from hatoba_scheduler.domain.preempting import drained, give_way
from hatoba_scheduler.domain.records import (
    Attempt,
    BackendNote,
    Cause,
    Change,
    Host,
    Job,
    Queue,
)
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.failpoints import hit

Within = Callable[[Job, Attempt], bool]
"""Whether a job's attempt is in what is drained."""
AT_ONCE = 1_000
"""Attempts that are looked at, and told, at the same time."""
CARRY_ON = 5.0
"""Seconds between two looks at whether anything is left in what is drained."""
OPERATOR = "an operator"
log = structlog.get_logger(__name__)


class Place(NamedTuple):
    """What is drained: its name in a sentence, why, and what is in it."""

    name: str
    reason: str
    within: Within


def host_place(host: Host) -> Place:
    """What runs on a host."""
    return Place(
        f"Host {host.name!r}",
        host.cordon_reason,
        lambda job, attempt: speaker(job, attempt) == host.name,
    )


def backend_place(note: BackendNote) -> Place:
    """What runs on a backend."""
    return Place(
        f"Backend {note.name!r}",
        note.cordon_reason,
        lambda _, attempt: attempt.backend == note.name,
    )


def queue_place(book: QueueBook, queue: Queue) -> Place:
    """What runs of a queue and those below it."""
    names = {queue.name, *book.below(queue)}
    return Place(
        f"Queue {queue.name!r}",
        queue.cordon_reason,
        lambda job, _: job.project == queue.project and job.queue in names,
    )


def queue_places(book: QueueBook) -> Iterator[Place]:
    """All queues that are drained."""
    return (queue_place(book, queue) for queue in book.all() if queue.draining)


class Drainer:
    """Makes attempts give way; `live` names those that have not ended."""

    def __init__(self, ledger: Ledger, clock: Clock, live: Callable[[], Iterable[str]]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._live = live

    async def drain(self, place: Place, actor: str) -> int:
        """Have all of it give way, and return how many jobs that is; they end in their own time.

        Raises StorageFull, StorageFailed, Unavailable: then some of it may not have been told, and
        the call can be made again.
        """
        cause = drained(place.name, actor, place.reason)
        names = list(self._live())
        told = 0
        hit("drain.before")
        for start in range(0, len(names), AT_ONCE):
            found = self._found(names[start : start + AT_ONCE], place.within)
            told += await self._tell(found, place.within, cause, actor)
            await asyncio.sleep(0)
        hit("drain.after")
        return told

    def _found(self, names: Sequence[str], within: Within) -> list[str]:
        """Jobs of those of these attempts that are to give way."""
        places = (self._ledger.find_attempt(name) for name in names)
        uids = dict.fromkeys(place[0] for place in places if place is not None)
        return [uid for uid in uids if (rows := self._ledger.rows(uid)) and _affected(rows, within)]

    async def _tell(self, uids: Sequence[str], within: Within, cause: Cause, actor: str) -> int:
        now = Now(round(self._clock.time() * 1e6), actor)
        decide = partial(_decide, within=within, cause=cause, now=now)
        answers = await asyncio.gather(*[self._ledger.ask(uid, decide) for uid in uids])
        return sum(change is not None for change in answers)


def _affected(rows: Rows, within: Within) -> list[int]:
    """Tasks of a job that are to give way, for where they are now."""
    return [
        index
        for index, attempt in rows.attempts.items()
        if attempt.state < AttemptState.STOPPING and within(rows.job, attempt)
    ]


def _decide(rows: Rows, within: Within, cause: Cause, now: Now) -> Change | None:
    indices = _affected(rows, within)
    return give_way(rows, indices, cause, now) if indices else None


class Drains:
    """Carries drains on until nothing is left in what is drained.

    That something is drained is remembered with it; so what came there while that was decided, and
    what could not be told because a disk was full or the server ended, gives way all the same.
    `places` give what is drained now.
    """

    def __init__(
        self, drainer: Drainer, clock: Clock, *places: Callable[[], Iterable[Place]]
    ) -> None:
        self._drainer = drainer
        self._clock = clock
        self._places = places

    async def run(self) -> None:
        """Look now and then; ends by cancellation."""
        while True:
            await self._clock.sleep(CARRY_ON)
            for place in [place for places in self._places for place in places()]:
                await self._carry_on(place)

    async def _carry_on(self, place: Place) -> None:
        try:
            count = await self._drainer.drain(place, OPERATOR)
        except Exception as error:  # noqa: BLE001 - it is looked at again
            log.warning("drain.not_told", place=place.name, error=repr(error))
        else:
            if count:
                log.info("drain.carried_on", place=place.name, jobs=count)
