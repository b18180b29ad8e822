"""From waiting jobs to committed intents, with a backend that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from domain_rows import CANCEL, NOW, new_job

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control import ledger as ledger_module
from hatoba_scheduler.control.dispatch import Dispatcher, Site
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.observe import Step, of_attempt
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.dependencies import Upstream, upstream_ended
from hatoba_scheduler.domain.records import Attempt, Change, Job, Queue, Resources, RetryPolicy
from hatoba_scheduler.domain.states import AttemptState, JobState, WaitReason
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Settings,
    View,
    cancel,
    ended,
    hold,
    released,
    running,
    updated,
)

if TYPE_CHECKING:
    from hatoba_scheduler.store.base import Submission
    from tests.unit.control.conftest import Books

J = JobState
GOOD = Outcome(AttemptState.SUCCEEDED, None)
LOST = Outcome(*causes.judge(Ending(ExitKind.LOST)), gone=True)


class Broken(Exception):
    """A store that cannot write."""


@dataclass
class Yard:
    """A dispatcher over a running ledger, one pool, and the intents that reached its backend."""

    books: Books
    ledger: Ledger
    clock: FakeClock = field(default_factory=FakeClock)
    arrived: list[Attempt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dispatcher = Dispatcher(self.ledger, self.clock, epoch=1)
        self.dispatcher.add_site("null", Site(fenced=False, launch=self.arrived.append))

    def room(self, slots: int = 10, **more: float) -> None:
        total = Resources(slots=slots, cpus=more.get("cpus", 0.0))
        self.dispatcher.describe("null", [PoolRoom("pool", total)])

    def queue(self, *, max_running: int) -> None:
        queue = Queue("default", "default", 1, "tester", 0, max_running=max_running)
        self.dispatcher.set_queue(queue)

    def free_slots(self) -> int:
        (pool,) = self.dispatcher.planner.pools("null")
        return pool.free().slots

    async def settle(self) -> None:
        """Let everybody act until nothing more happens at this moment."""
        await self.clock.advance(0.0)

    async def say(self, attempt: Attempt, outcome: Outcome) -> None:
        """The attempt ended so; where it left something, that is gone too."""
        await self.tell(attempt, lambda view: running(view, 5, "", NOW))
        await self.tell(attempt, lambda view: ended(view, outcome, NOW))
        await self.tell(attempt, released)
        await self.settle()

    async def tell(self, attempt: Attempt, step: Step) -> Change | None:
        decide = of_attempt(attempt.index, attempt.name, step)
        return await self.ledger.decide(attempt.job_uid, decide)

    def why(self, uid: str) -> WaitReason:
        """Why a job that waits in line does not run."""
        now = round(self.clock.time() * 1e6)
        return self.dispatcher.explain(self.books.rows(uid).job, now).reason

    def who(self) -> list[tuple[str, int, int]]:
        return [(one.job_uid, one.index, one.number) for one in self.arrived]


@asynccontextmanager
async def dispatching(yard: Yard) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(yard.dispatcher.run(), name="dispatch"),
            group.create_task(yard.dispatcher.run_timer(), name="timer"),
        ]
        yield
        for task in tasks:
            task.cancel()


@pytest.fixture
async def yard(books: Books) -> AsyncIterator[Yard]:
    made = Yard(books, books.ledger)
    async with dispatching(made):
        yield made


def numbered(uid: str, **fields: object) -> Job:
    return replace(new_job(uid), **fields)  # type: ignore[arg-type]


async def test_a_job_goes_all_the_way(yard: Yard) -> None:
    yard.room()
    await yard.books.submit(new_job())
    await yard.settle()
    (attempt,) = yard.arrived
    assert attempt.name == "h1-job1-0-1"
    assert (attempt.host, attempt.reserved) == ("pool", Resources(slots=1))
    assert yard.free_slots() == 9
    await yard.say(attempt, GOOD)
    assert yard.free_slots() == 10
    assert yard.books.store.jobs["job-1"].state is J.SUCCEEDED
    reasons = [event.reason for event in yard.books.told]
    assert reasons == ["submit", "launch", "run", "end"]


async def test_the_intent_is_stored_before_the_backend_hears_of_it(yard: Yard) -> None:
    yard.room()
    await yard.books.submit(new_job())
    yard.books.store.open.clear()
    yard.books.store.reached.clear()
    await yard.settle()
    assert yard.books.store.reached.is_set()
    assert yard.arrived == []
    yard.books.store.open.set()
    await yard.settle()
    (attempt,) = yard.arrived
    assert yard.books.store.kept_attempts[attempt.name] == attempt


async def test_what_has_no_room_waits_for_it(yard: Yard) -> None:
    yard.room(slots=1)
    await yard.books.submit(new_job("a"), new_job("b"))
    await yard.settle()
    assert yard.who() == [("a", 0, 1)]
    assert yard.why("b") is WaitReason.NO_ROOM
    await yard.say(yard.arrived[0], GOOD)
    assert yard.who() == [("a", 0, 1), ("b", 0, 1)]


async def test_room_is_free_only_once_it_is_released(yard: Yard) -> None:
    yard.room(slots=1)
    await yard.books.submit(new_job("a"), new_job("b"))
    await yard.settle()
    await yard.tell(yard.arrived[0], lambda view: ended(view, GOOD, NOW))
    await yard.settle()
    assert len(yard.arrived) == 1
    await yard.tell(yard.arrived[0], released)
    await yard.settle()
    assert len(yard.arrived) == 2


async def test_a_retry_waits_for_its_back_off(yard: Yard) -> None:
    yard.room()
    await yard.books.submit(new_job())
    await yard.settle()
    later = round(yard.clock.time() * 1e6)
    (attempt,) = yard.arrived

    def step(view: View) -> Change | None:
        return ended(view, replace(LOST, wait=30.0), replace(NOW, time=later))

    await yard.tell(attempt, step)
    await yard.clock.advance(29.0)
    assert yard.who() == [("job-1", 0, 1)]
    await yard.clock.advance(2.0)
    assert yard.who() == [("job-1", 0, 1), ("job-1", 0, 2)]


async def test_an_array_runs_no_more_at_once_than_it_may(yard: Yard) -> None:
    yard.room(slots=50)
    await yard.books.submit(replace(new_job(size=5), max_parallel=2))
    peak = 0
    for turn in range(5):
        await yard.settle()
        under_way = len(yard.arrived) - turn
        peak = max(peak, under_way)
        await yard.say(yard.arrived[turn], GOOD)
    assert peak == 2
    assert yard.books.store.jobs["job-1"].state is J.SUCCEEDED


async def test_an_array_larger_than_a_slice_fills_what_it_may(yard: Yard) -> None:
    yard.room(slots=1000)
    await yard.books.submit(replace(new_job(size=400), max_parallel=250))
    await yard.settle()
    assert len(yard.arrived) == 250


async def test_every_task_of_an_array_is_launched_once(yard: Yard) -> None:
    yard.room(slots=1000)
    await yard.books.submit(new_job(size=350))
    await yard.settle()
    assert [attempt.index for attempt in yard.arrived] == list(range(350))
    assert yard.free_slots() == 650


async def test_priority_then_age(yard: Yard) -> None:
    await yard.books.submit(
        numbered("1"), numbered("2", priority=3), numbered("3", priority=9), numbered("4")
    )
    yard.room(slots=3)
    await yard.settle()
    assert [uid for uid, _, _ in yard.who()] == ["3", "2", "1"]


async def test_a_job_that_can_not_fit_holds_nobody_up(yard: Yard) -> None:
    yard.room(slots=4, cpus=2.0)
    await yard.books.submit(
        numbered("big", priority=9, resources=Resources(cpus=8.0)), numbered("small")
    )
    await yard.settle()
    assert yard.who() == [("small", 0, 1)]
    assert yard.why("big") is WaitReason.NEVER_FITS


async def test_a_queue_runs_no_more_than_it_may(yard: Yard) -> None:
    yard.queue(max_running=1)
    yard.room()
    await yard.books.submit(new_job("a"), new_job("b"))
    await yard.settle()
    assert yard.who() == [("a", 0, 1)]
    assert yard.why("b") is WaitReason.QUOTA
    await yard.say(yard.arrived[0], GOOD)
    assert len(yard.arrived) == 2
    yard.queue(max_running=0)
    await yard.books.submit(new_job("c"))
    await yard.settle()
    assert len(yard.arrived) == 3


async def test_held_and_blocked_jobs_go_when_they_may(yard: Yard) -> None:
    yard.room()
    await yard.books.submit(new_job("held", hold=True), new_job("after", blocked_on=("x",)))
    await yard.settle()
    assert yard.arrived == []
    await yard.ledger.decide("held", lambda rows: hold(rows, False, NOW))
    ended = Upstream("x", "x-1", JobState.SUCCEEDED)
    await yard.ledger.decide("after", lambda rows: upstream_ended(rows, ended, NOW))
    await yard.settle()
    assert sorted(yard.who()) == [("after", 0, 1), ("held", 0, 1)]


async def test_what_waits_may_be_held_and_let_go_again_and_again(yard: Yard) -> None:
    await yard.books.submit(new_job("a"), new_job("b"))
    for held in (True, False, True, False):
        await yard.ledger.decide("a", partial(hold, held=held, now=NOW))
        hurried = partial(updated, settings=Settings(priority=int(held)), now=NOW)
        await yard.ledger.decide("b", hurried)
    yard.room()
    await yard.settle()
    assert sorted(yard.who()) == [("a", 0, 1), ("b", 0, 1)]


async def test_a_cancelled_job_is_not_launched_and_leaves_its_place(yard: Yard) -> None:
    yard.queue(max_running=1)
    await yard.books.submit(new_job("a"), new_job("b"))
    yard.books.store.open.clear()
    cancelling = yard.ledger.ask("a", lambda rows: cancel(rows, CANCEL, NOW))
    await asyncio.sleep(0)
    yard.room()
    await yard.settle()
    yard.books.store.open.set()
    await cancelling
    await yard.settle()
    assert yard.who() == [("b", 0, 1)]
    assert yard.free_slots() == 9
    await yard.say(yard.arrived[0], GOOD)
    await yard.books.submit(new_job("c"))
    await yard.settle()
    assert yard.who() == [("b", 0, 1), ("c", 0, 1)]


async def test_a_job_that_changes_queues_is_counted_where_it_was_launched(yard: Yard) -> None:
    yard.queue(max_running=1)
    await yard.books.submit(new_job("a"))
    yard.books.store.open.clear()
    move = Settings(queue="night")
    moving = yard.ledger.ask("a", lambda rows: updated(rows, move, NOW))
    await asyncio.sleep(0)
    yard.room()
    await yard.settle()
    yard.books.store.open.set()
    await moving
    await yard.settle()
    await yard.say(yard.arrived[0], GOOD)
    await yard.books.submit(new_job("b"), new_job("c"))
    await yard.settle()
    assert yard.who() == [("a", 0, 1), ("b", 0, 1)]


async def test_a_store_that_fails_delays_and_loses_nothing(yard: Yard) -> None:
    yard.room(slots=3)
    await yard.books.submit(new_job("a"), new_job("array", size=5))
    yard.books.store.fail_with = Broken("disk full")
    await yard.clock.advance(3.0)
    assert yard.arrived == []
    assert yard.free_slots() == 3
    yard.books.store.fail_with = None
    await yard.clock.advance(2.0)
    assert yard.who() == [("a", 0, 1), ("array", 0, 1), ("array", 1, 1)]
    assert yard.free_slots() == 0


async def test_a_store_that_fails_is_not_asked_all_the_time(
    yard: Yard, logs: list[dict[str, object]]
) -> None:
    yard.room()
    await yard.books.submit(new_job())
    yard.books.store.fail_with = Broken("disk full")
    logs.clear()
    await yard.clock.advance(5.5)
    failures = [line for line in logs if line["event"] == "commit.failed"]
    assert 2 <= len(failures) <= 6


async def test_too_many_changes_at_once_delay_a_launch(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    await yard.books.submit(new_job())
    monkeypatch.setattr(ledger_module, "QUEUE", 0)
    yard.room()
    await yard.settle()
    assert yard.arrived == []
    monkeypatch.undo()
    await yard.clock.advance(2.0)
    assert len(yard.arrived) == 1


async def test_a_parked_job_that_was_held_and_let_go_meanwhile_waits_again(
    books: Books, submission_of: Callable[[Job], Submission]
) -> None:
    ledger = Ledger(books.store.as_store(), keep=0)
    yard = Yard(books, ledger)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.run())
        async with dispatching(yard):
            await ledger.submit([submission_of(numbered(uid)) for uid in "az"])
            books.store.open.clear()
            hurried = ledger.ask("z", partial(updated, settings=Settings(priority=9), now=NOW))
            await yard.settle()
            # All three are decided together once the store takes writes again.
            ledger.ask("a", partial(hold, held=True, now=NOW))
            yard.room()
            await yard.settle()
            ledger.ask("a", partial(hold, held=False, now=NOW))
            books.store.open.set()
            assert await hurried is not None
            await yard.settle()
            assert sorted(yard.who()) == [("a", 0, 1), ("z", 0, 1)]
        task.cancel()


async def test_after_a_restart_what_is_held_is_held(yard: Yard) -> None:
    yard.room(slots=2)
    yard.queue(max_running=2)
    await yard.books.submit(new_job("a"), new_job("b"), new_job("c"), new_job("d"))
    await yard.settle()
    await yard.tell(yard.arrived[0], lambda view: ended(view, GOOD, NOW))

    ledger = Ledger(yard.books.store.as_store())
    await ledger.recover()
    again = Yard(yard.books, ledger)
    again.dispatcher.recover()
    again.queue(max_running=2)
    again.room(slots=2)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.run())
        async with dispatching(again):
            await again.settle()
            assert again.arrived == []
            await again.tell(yard.arrived[0], released)
            await again.settle()
            assert again.who() == [("c", 0, 1)]
        task.cancel()


async def test_attempts_follow_each_other_up_to_the_budget(yard: Yard) -> None:
    yard.room()
    await yard.books.submit(new_job(retries=RetryPolicy(infrastructure=2)))
    await yard.settle()
    for number in range(3):
        await yard.say(yard.arrived[number], LOST)
    assert yard.who() == [("job-1", 0, 1), ("job-1", 0, 2), ("job-1", 0, 3)]
    assert yard.books.store.jobs["job-1"].state is J.FAILED
    assert yard.free_slots() == 10
