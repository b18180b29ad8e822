"""What a backend has that nobody wants: who is ended, when, and who never is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

import structlog
from domain_rows import NOW, intent, new_job
from memory_store import MemoryStore
from owning_backend import OwningBackend

from hatoba_plugins.backend import Backend
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import (
    Handle,
    Owned,
    Ref,
    Released,
    ReleaseOutcome,
    StopResult,
)
from hatoba_scheduler.control.calls import CallSettings
from hatoba_scheduler.control.instance import Instance, LoopContext
from hatoba_scheduler.control.launching import Launcher
from hatoba_scheduler.control.reaping import Reaper
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.control.supply import Supply
from hatoba_scheduler.domain.naming import attempt_name
from hatoba_scheduler.domain.transitions import launch
from hatoba_scheduler.store.base import ServerIdentity

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books

UID = "019ac0de-0000-7000-8000-000000000001"
AFTER = 10.0


@dataclass
class Attic(OwningBackend):
    """A backend with things in it; it notes what it is told to end."""

    stopped: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        assert grace > 0
        self.stopped += [ref.name for ref in refs]
        return [StopResult(ref.name, known=True) for ref in refs]

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        self.released += [ref.name for ref in refs]
        return [Released(ref.name) for ref in refs]


class StoreOfEpoch(MemoryStore):
    """A store that was restored once, so that its names begin with `h2`."""

    identity = ServerIdentity("cluster", 2)


def thing(name: str, *, cluster: str = "cluster", ended: bool = False) -> Owned:
    return Owned(name, cluster, UID, 0, 1, Handle(1, name), ended)


def reaper_of(books: Books, attic: Attic, clock: FakeClock) -> Reaper:
    store = StoreOfEpoch(kept_attempts=books.store.kept_attempts)
    return reaper_on(books, attic, clock, store)


def reaper_on(books: Books, attic: Attic, clock: FakeClock, kept: StoreOfEpoch) -> Reaper:
    store = kept.as_store()
    ctx = LoopContext(
        books.ledger, store, SpecCache(store), clock, random.Random(1), "cluster", lambda *_: None
    )
    instance = Instance("attic", cast(Backend, attic), ctx, CallSettings())
    return Reaper(instance, Launcher(instance, Supply(instance, 0.0)), AFTER)


async def looked(books: Books, attic: Attic, *seconds: float) -> None:
    """A look now, and another after each of these pauses."""
    clock = FakeClock()
    reaper = reaper_of(books, attic, clock)
    await reaper.look()
    for pause in seconds:
        await clock.advance(pause)
        await reaper.look()


async def test_an_orphan_is_ended_when_it_was_unwanted_for_long_enough(
    books: Books, logs: list[structlog.typing.EventDict]
) -> None:
    running, over = attempt_name(2, UID, 0, 1), attempt_name(2, UID, 1, 1)
    attic = Attic([thing(running), thing(over, ended=True)])
    await looked(books, attic, AFTER - 1)
    assert (attic.stopped, attic.released) == ([], [])
    await looked(books, attic, AFTER - 1, 2.0)
    assert (attic.stopped, attic.released) == ([running], [over])
    audited = [entry["attempt"] for entry in logs if entry["event"] == "orphan.reaped"]
    assert sorted(audited) == sorted([running, over])


async def test_what_was_gone_in_between_begins_anew(books: Books) -> None:
    name = attempt_name(2, UID, 0, 1)
    attic = Attic([thing(name)])
    clock = FakeClock()
    reaper = reaper_of(books, attic, clock)
    await reaper.look()
    attic.things.clear()
    await clock.advance(AFTER)
    await reaper.look()
    attic.things.append(thing(name))
    await reaper.look()
    assert attic.stopped == []
    await clock.advance(AFTER)
    await reaper.look()
    assert attic.stopped == [name]


async def test_what_is_wanted_is_left_alone(books: Books) -> None:
    job = replace(new_job(), uid="job-1")
    await books.submit(job)
    await books.ledger.decide("job-1", lambda rows: launch(rows, intent(rows), NOW))
    attic = Attic([thing("h1-job-1-0-1")])
    await looked(books, attic, AFTER, AFTER)
    assert (attic.stopped, attic.released) == ([], [])


async def test_what_is_not_ours_or_of_an_earlier_epoch_is_never_touched(books: Books) -> None:
    others = [
        thing(attempt_name(2, UID, 0, 1), cluster="another"),
        thing(attempt_name(1, UID, 0, 1)),
        thing("somebody-elses"),
    ]
    attic = Attic(others)
    await looked(books, attic, AFTER, AFTER)
    assert (attic.stopped, attic.released) == ([], [])


async def test_of_an_earlier_epoch_what_this_store_knows_to_be_over_is_ended(books: Books) -> None:
    name = attempt_name(1, UID, 0, 1)
    await books.submit(new_job())
    await books.ledger.decide("job-1", lambda rows: launch(rows, intent(rows), NOW))
    known = next(iter(books.store.kept_attempts.values()))
    over = replace(known, name=name, job_uid=UID, state=type(known.state).SUCCEEDED)
    books.store.kept_attempts[name] = over
    attic = Attic([thing(name)])
    await looked(books, attic, AFTER, 1.0)
    assert attic.stopped == [name, name]


async def test_the_store_is_asked_for_many_at_once(books: Books) -> None:
    names = [attempt_name(2, UID, index, 1) for index in range(1_200)]
    attic, kept = Attic([thing(name) for name in names]), StoreOfEpoch()
    clock = FakeClock()
    reaper = reaper_on(books, attic, clock, kept)
    await reaper.look()
    assert kept.reads == 3
    await clock.advance(AFTER)
    await reaper.look()
    assert attic.stopped == names
