"""Launches of one backend over a running ledger: groups, gangs, doubts, holds and budgets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from domain_rows import CANCEL, NOW, intent, new_job

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import Backend
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.errors import Throttled
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    Capabilities,
    Exit,
    ExitKind,
    FindOutcome,
    GroupKind,
    Handle,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    Observation,
    Phase,
    Rate,
    Ref,
    Refused,
)
from hatoba_scheduler.control.calls import CallSettings
from hatoba_scheduler.control.instance import Instance, LoopContext
from hatoba_scheduler.control.launching import Launcher
from hatoba_scheduler.control.ledger import Decide
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.control.supply import Supply
from hatoba_scheduler.domain.planning.model import BackendSettings
from hatoba_scheduler.domain.records import Change, Job, Terms
from hatoba_scheduler.domain.states import AttemptState, JobState
from hatoba_scheduler.domain.transitions import Rows, cancel, launch

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books


@dataclass
class Desk:
    """A backend that answers as it is told, and notes how it was asked."""

    limits: tuple[tuple[str, Rate], ...] = ()
    answers: list[Exception | type[Ambiguous]] = field(default_factory=list)
    """How the next launches fail; then all succeed."""
    sights: dict[str, Observation] = field(default_factory=dict)
    """What launches see already, by attempt."""
    groups: list[tuple[GroupKind, list[str]]] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)

    @property
    def jobs(self) -> Desk:
        return self

    def capabilities(self) -> Capabilities:
        return Capabilities(limits=self.limits)

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        names = [member.name for member in group.members]
        self.groups.append((group.kind, names))
        wrong = self.answers.pop(0) if self.answers else None
        if isinstance(wrong, Throttled):
            return [Refused(name, wrong) for name in names]
        if isinstance(wrong, Exception):
            raise wrong
        if wrong is not None:
            return [Ambiguous(name, "no reply") for name in names]
        return [Launched(name, Handle(1, name), None, self.sights.get(name)) for name in names]

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        self.looked_up += [ref.name for ref in refs]
        return [Absent(ref.name) for ref in refs]


@dataclass
class Room:
    """A launcher at work."""

    clock: FakeClock
    launcher: Launcher
    told: list[BackendSettings]

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        await self.clock.advance(0.001)


@asynccontextmanager
async def working(books: Books, desk: Desk) -> AsyncIterator[Room]:
    clock = FakeClock()
    told: list[BackendSettings] = []
    store = books.store.as_store()
    ctx = LoopContext(
        ledger=books.ledger,
        store=store,
        specs=SpecCache(store),
        clock=clock,
        rng=random.Random(1),
        cluster_id="cluster",
        describe=lambda *_: None,
        set_backend=told.append,
    )
    instance = Instance("null", cast(Backend, desk), ctx, CallSettings())
    supply = Supply(instance, 0.0)
    launcher = Launcher(instance, supply)
    async with asyncio.TaskGroup() as group:
        loops = [
            group.create_task(loop(), name=loop.__name__)
            for loop in (launcher.launch_forever, launcher.look_up_forever, supply.tell_forever)
        ]
        yield Room(clock, launcher, told)
        for task in loops:
            task.cancel()


async def intended(books: Books, job: Job, indices: Sequence[int] = (0,)) -> list[str]:
    """A job with the intents of these tasks; their attempts' names."""
    await books.submit(job)
    books.store.kept_specs[job.uid] = job_pb2.JobSpec(command=["true"]).SerializeToString()
    await more_intents(books, job, indices)
    return [f"h1-{job.uid}-{index}-1" for index in indices]


async def more_intents(books: Books, job: Job, indices: Sequence[int]) -> None:
    """The intents of more tasks of a job."""

    def decided(index: int) -> Decide:
        def decide(rows: Rows) -> Change | None:
            return launch(rows, replace(intent(rows, index), generation=job.generation), NOW)

        return decide

    for index in indices:
        await books.ledger.decide(job.uid, decided(index))


def gang(size: int) -> Job:
    return replace(new_job(size=size), terms=Terms(gang=True), generation=1)


async def test_what_is_ready_together_goes_out_together(books: Books) -> None:
    desk = Desk()
    async with working(books, desk) as room:
        names = [*await intended(books, new_job()), *await intended(books, new_job("job-2"))]
        for name in names:
            room.launcher.launch(name)
        await room.settle()
    assert desk.groups == [(GroupKind.SINGLE, names)]
    assert books.rows().attempts[0].handle


async def test_what_is_over_at_once_ends_with_its_launch(books: Books) -> None:
    desk = Desk()
    async with working(books, desk) as room:
        (name,) = await intended(books, new_job())
        over = Observation(name, Phase.ENDED, exists=False, exit=Exit(ExitKind.EXITED))
        desk.sights[name] = over
        stored: list[bool] = []
        books.ledger.listen(lambda *_: stored.append(room.launcher.stores(over)))
        room.launcher.launch(name)
        await room.settle()
        assert not room.launcher.stores(over)
    assert stored == [True]
    assert books.store.jobs["job-1"].state is JobState.SUCCEEDED


async def test_a_gang_goes_out_whole_once_all_its_intents_are_there(books: Books) -> None:
    desk = Desk()
    async with working(books, desk) as room:
        job = gang(3)
        (first, second) = await intended(books, job, (0, 1))
        room.launcher.launch(first)
        room.launcher.launch(second)
        await room.settle()
        assert desk.groups == []
        await more_intents(books, job, (2,))
        room.launcher.launch("h1-job-1-2-1")
        await room.settle()
    assert desk.groups == [(GroupKind.GANG, [first, second, "h1-job-1-2-1"])]


async def test_a_gang_of_which_one_is_being_ended_does_not_go_out(books: Books) -> None:
    desk = Desk()
    async with working(books, desk) as room:
        names = await intended(books, gang(2), (0, 1))
        await books.ledger.decide("job-1", lambda rows: cancel(rows, CANCEL, NOW))
        for name in names:
            room.launcher.launch(name)
        await room.settle()
    assert desk.groups == []


async def test_what_perhaps_happened_is_looked_up_before_it_is_launched_again(books: Books) -> None:
    desk = Desk(answers=[Ambiguous])
    async with working(books, desk) as room:
        (name,) = await intended(books, new_job())
        room.launcher.launch(name)
        await room.settle()
    assert desk.looked_up == [name]
    assert desk.groups == [(GroupKind.SINGLE, [name])] * 2


async def test_any_other_end_of_a_call_is_a_doubt_too(books: Books) -> None:
    desk = Desk(answers=[OSError("reset")])
    async with working(books, desk) as room:
        (name,) = await intended(books, new_job())
        room.launcher.launch(name)
        await room.settle()
    assert desk.looked_up == [name]
    assert books.rows().attempts[0].state is AttemptState.LAUNCHING


async def test_who_throttles_is_left_alone_for_as_long_as_it_says(books: Books) -> None:
    desk = Desk(answers=[Throttled("too many", after=5.0)])
    async with working(books, desk) as room:
        (name,) = await intended(books, new_job())
        room.launcher.launch(name)
        await room.settle()
        assert books.rows().tasks[0].state is JobState.QUEUED
        assert "too many" in room.told[-1].reason
        (other,) = await intended(books, new_job("job-2"))
        room.launcher.launch(other)
        await room.clock.advance(4.0)
        assert len(desk.groups) == 1
        await room.clock.advance(2.0)
        assert desk.groups[1] == (GroupKind.SINGLE, [other])
        assert room.told[-1].available


async def test_launches_keep_to_the_rate_that_the_backend_declares(books: Books) -> None:
    desk = Desk(limits=(("launch", Rate(per_second=2.0, burst=2)),))
    async with working(books, desk) as room:
        await room.settle()
        assert room.told[-1].slots == 2
        names = []
        for number in range(6):
            names += await intended(books, new_job(f"job-{number}"))
        for name in names:
            room.launcher.launch(name)
        await room.settle()
        sizes = [len(desk.groups)]
        for _ in range(2):
            await room.clock.advance(1.0)
            sizes.append(len(desk.groups))
        assert sizes == [1, 2, 3]
        assert room.told[-1].slots == 0


async def test_while_launches_keep_failing_the_planner_is_told_so(books: Books) -> None:
    desk = Desk(answers=[OSError("reset")] * 9)
    async with working(books, desk) as room:
        (name,) = await intended(books, new_job())
        room.launcher.launch(name)
        await room.clock.advance(0.5)
        assert "keep failing" in room.told[-1].reason
        assert len(desk.groups) == 5
        await room.clock.advance(60.0)
        assert room.told[-1].available
    assert books.rows().attempts[0].handle
