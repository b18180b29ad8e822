"""One backend's loops over a running ledger, with a backend that is away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest
from domain_rows import CANCEL, NOW, intent, new_job

from hatoba_plugins.backend import Backend
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import (
    Capabilities,
    FindOutcome,
    Gap,
    Health,
    HealthStatus,
    NotYet,
    Observation,
    Phase,
    Ref,
    Released,
    ReleaseOutcome,
    StopResult,
    Synced,
    Unsure,
    WatchItem,
)
from hatoba_scheduler.control.backend_loop import BackendLoop
from hatoba_scheduler.control.ending import STOP_AGAIN
from hatoba_scheduler.control.instance import LoopContext
from hatoba_scheduler.control.observe import Step, of_attempt
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.records import Attempt, Change
from hatoba_scheduler.domain.states import AttemptState, CauseCode
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    cancel,
    claimed,
    ended,
    launch,
    launched,
    running,
)

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books

NAME = "h1-job-1-0-1"
GAPS = 7.3


@dataclass
class Away:
    """A backend that has all there is and cannot be reached, until it is known to have nothing."""

    clock: FakeClock = field(default_factory=FakeClock)
    gone: bool = False
    stops: list[str] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    """Whom it was asked after, call by call."""
    gap: str = ""
    """The pool of which it says that something may have been missed."""
    recall: Callable[[Attempt], None] = lambda _: None
    """Its loop's, while that runs."""

    @property
    def jobs(self) -> Away:
        return self

    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def health(self) -> Health:
        return Health(HealthStatus.HEALTHY)

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        return [Unsure(ref.name, 1.0) for ref in refs]

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        self.asked.append([ref.name for ref in refs])
        phase = Phase.GONE if self.gone else Phase.EXISTS
        return [
            Observation(ref.name, phase, exists=not self.gone, reachable=self.gone) for ref in refs
        ]

    async def watch(self) -> AsyncIterator[WatchItem]:
        yield Synced()
        while True:
            await self.clock.sleep(GAPS)
            yield Gap(self.gap)

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        del grace
        self.stops += [ref.name for ref in refs]
        return [StopResult(ref.name, known=True) for ref in refs]

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        if self.gone:
            return [Released(ref.name) for ref in refs]
        return [NotYet(ref.name, 1.0) for ref in refs]


@asynccontextmanager
async def looping(books: Books, backend: Away) -> AsyncIterator[FakeClock]:
    specs = SpecCache(books.store.as_store())
    ctx = LoopContext(
        books.ledger,
        books.store.as_store(),
        specs,
        backend.clock,
        random.Random(1),
        "cluster",
        lambda *_: None,
    )
    loop = BackendLoop("null", cast(Backend, backend), ctx)
    loop.recover()
    backend.recall = loop.recall
    async with asyncio.TaskGroup() as group:
        task = group.create_task(loop.run(), name="backend")
        yield backend.clock
        task.cancel()


async def launching(books: Books, *steps: Step) -> None:
    """A job whose first attempt went through these steps."""
    await books.submit(new_job())
    await books.ledger.decide("job-1", lambda rows: launch(rows, intent(rows, fenced=True), NOW))
    for step in steps:
        await books.ledger.decide("job-1", of_attempt(0, NAME, step))


async def moved(clock: FakeClock, seconds: int) -> None:
    for _ in range(seconds):
        await clock.advance(1.0)


async def test_a_stop_is_asked_for_again_at_one_pace_however_long_it_takes(books: Books) -> None:
    backend = Away()
    await launching(books, lambda view: launched(view, b"1:host"))
    async with looping(books, backend) as clock:
        await clock.advance(0.5)
        await books.ledger.decide("job-1", lambda rows: cancel(rows, CANCEL, NOW))
        await moved(clock, 300)
        early = len(backend.stops)
        await moved(clock, 300)
        late = len(backend.stops) - early
    assert 300 / STOP_AGAIN <= late <= early + 2


async def test_what_was_claimed_before_its_handle_was_stored_is_looked_after(books: Books) -> None:
    await launching(books, lambda view: claimed(view, "nonce", NOW))
    assert books.rows().attempts[0].state is AttemptState.STARTING
    async with looping(books, Away(gone=True)) as clock:
        await moved(clock, 3)
    assert books.rows().attempts[0].state is AttemptState.LOST


def cut_off(gone: bool) -> Step:
    lost = causes.lost("It could not be reached.", CauseCode.DISCONNECTED)
    return lambda view: ended(view, Outcome(AttemptState.LOST, lost, wait=60.0, gone=gone), NOW)


@pytest.mark.parametrize("released", [True, False])
async def test_what_was_taken_for_lost_is_stopped_until_nothing_of_it_is_left(
    books: Books, released: bool
) -> None:
    backend = Away()
    await launching(books)
    async with looping(books, backend) as clock:
        await books.ledger.decide("job-1", of_attempt(0, NAME, cut_off(released)))
        backend.recall(books.store.kept_attempts[NAME])
        await moved(clock, 1)
        assert backend.stops == [NAME]
        await moved(clock, round(2 * STOP_AGAIN) + 1)
        assert backend.stops == [NAME] * 3
        backend.gone = True
        await moved(clock, round(STOP_AGAIN) + 1)
        asked = len(backend.stops)
        await moved(clock, round(3 * STOP_AGAIN))
        assert len(backend.stops) == asked


async def test_after_a_gap_of_one_pool_only_those_there_are_asked_after(books: Books) -> None:
    backend = Away(gap="two")
    for uid, host in (("a", "one"), ("b", "two"), ("c", "two")):
        await books.submit(new_job(uid))
        there = partial(placed_on, host=host)
        await books.ledger.decide(uid, there)
        name = books.rows(uid).attempts[0].name
        await books.ledger.decide(uid, of_attempt(0, name, lambda view: running(view, 5, "", NOW)))
    released = books.rows("c").attempts[0].name
    gone = Outcome(AttemptState.SUCCEEDED, None, gone=True)
    async with looping(books, backend) as clock:
        await books.ledger.decide("c", of_attempt(0, released, lambda view: ended(view, gone, NOW)))
        await moved(clock, 3)
        everybody, backend.asked = backend.asked, []
        await moved(clock, round(GAPS) + 1)
    kept = [books.rows(uid).attempts[0].name for uid in ("a", "b")]
    assert everybody == [kept]
    assert backend.asked == [[kept[1]]]


def placed_on(rows: Rows, host: str) -> Change | None:
    return launch(rows, replace(intent(rows), host=host), NOW)
