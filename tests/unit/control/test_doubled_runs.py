"""A platform that may run an attempt twice, and whatever is seen of either run, in any order.

The truth of each run is kept here; the core sees what a backend would tell: each run by itself, all
of them as one, now or late. What must hold is checked after every step.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from domain_rows import CANCEL, NOW, intent, new_job
from hypothesis import example, given, settings
from memory_store import MemoryStore

from hatoba.runs import nonce_for, run_mark
from hatoba.v1 import runner_pb2
from hatoba_plugins.runner import CLAIM_REFUSED
from hatoba_plugins.values import Exit, ExitKind, Observation, Phase
from hatoba_scheduler.control.awaited_ends import COMMIT_BUDGET, AwaitedEnds, Place
from hatoba_scheduler.control.exits import Exits
from hatoba_scheduler.control.launches import ref_of
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logged_models import LoggedModels
from hatoba_scheduler.control.observe import Grounds, observation_step, of_attempt
from hatoba_scheduler.control.runners import GRANTED, RunnerDesk
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.records import Attempt, Job
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now, cancel, launch, launched
from tests.unit.control.conftest import submission

TICK = 5
BEAT = 10
NAME = "h1-job-1-0-1"


class Moment:
    """A clock that nobody sleeps by."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return 1_700_000_000.0 + self.now

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits for the time")


class Life(Enum):
    """Where a run stands in truth."""

    BORN = 0
    ALIVE = 1
    """It was granted the attempt, and runs."""
    REFUSED = 2
    DEAD = 3


@dataclass
class Run:
    """One run of the platform's."""

    id: str
    nonce: str
    life: Life = Life.BORN
    exit: Exit | None = None
    beats: bool = True
    """It reaches the server."""
    hidden: bool = False
    """The backend does not see it."""
    granted: bool = False

    @property
    def ended(self) -> bool:
        return self.life in (Life.REFUSED, Life.DEAD)


class Act(NamedTuple):
    """Something that happens: to one of the runs, or so many seconds pass."""

    what: str
    run: int = 0
    pick: int = 0


EXITS = (
    Exit(ExitKind.EXITED, 0),
    Exit(ExitKind.EXITED, 3),
    Exit(ExitKind.SIGNALED, signal=9),
    Exit(ExitKind.OUT_OF_MEMORY),
    Exit(ExitKind.PREEMPTED),
)
WAITS = (5, 15, 35, 120, 700)
WORDS: tuple[str, ...] = (
    "claim",
    "begin",
    "commit",
    "die",
    "cut",
    "mend",
    "hide",
    "show",
    "see",
    "see_all",
)
WORDS += ("late", "wait", "stop")
acts = st.lists(
    st.builds(Act, st.sampled_from(WORDS), st.integers(0, 1), st.integers(0, 4)), max_size=14
)


@dataclass
class Yard:
    """The server's side, and a platform that runs one attempt as two."""

    place: Place
    marked: bool
    clock: Moment = field(default_factory=Moment)
    store: MemoryStore = field(default_factory=MemoryStore)
    told: list[Observation] = field(default_factory=list)
    committed: Exit | None = None
    cancelled: bool = False
    silent_for: float = 0.0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.store.as_store())
        specs = SpecCache(self.store.as_store())
        rng = random.Random(1)
        models = LoggedModels(self.store.as_store(), specs, _no_manifest)
        self.desk = RunnerDesk(self.ledger, self.store.as_store(), self.clock, rng, models)
        self.exits = Exits(self.clock)
        self.ends = AwaitedEnds(self.clock, self.place, self.desk.heard)
        self.grounds = Grounds(rng, self.ends, self.exits)
        self.ledger.listen(self.desk.on_commit)
        self.runs = [self._run(f"run-{n}") for n in (1, 2)]
        self.fence = 0

    def _run(self, run: str) -> Run:
        return Run(run, nonce_for(run if self.marked else "", f"{run:0>32}"))

    @property
    def attempt(self) -> Attempt:
        return self.store.kept_attempts[NAME]

    @property
    def winner(self) -> Run | None:
        return next((run for run in self.runs if run.granted), None)

    async def begin(self) -> None:
        job: Job = new_job()
        await self.ledger.submit([submission(job)])
        await self.ledger.decide(job.uid, lambda rows: launch(rows, intent(rows, fenced=True), NOW))
        step = of_attempt(0, NAME, lambda view: launched(view, b"1:x"))
        await self.ledger.decide(job.uid, step)
        self.fence = self.attempt.fence

    # -- what happens ---------------------------------------------------------------------------

    async def act(self, act: Act) -> None:
        run = self.runs[act.run]
        match act.what:
            case "claim":
                await self.claim(run)
            case "begin" if run.life is Life.ALIVE:
                await self.beat(run, began=True)
            case "commit" if run.life is Life.ALIVE and run.beats:
                await self.commit(run, EXITS[act.pick % 2])
            case "die" if not run.ended:
                run.life, run.exit = Life.DEAD, EXITS[act.pick]
            case "cut" | "mend":
                run.beats = act.what == "mend"
            case "hide" | "show":
                run.hidden = act.what == "hide"
            case "see":
                await self.see(self.sight(run))
            case "see_all":
                await self.see(self.sight_of_all())
            case "late" if self.told:
                await self.see_late(self.told[act.pick % len(self.told)])
            case "wait":
                await self.wait(WAITS[act.pick])
            case "stop":
                await self.stop()

    async def claim(self, run: Run) -> None:
        if run.life is not Life.BORN or not run.beats:
            return
        request = runner_pb2.ClaimAttemptRequest(attempt=NAME, fence=self.fence, nonce=run.nonce)
        verdict = (await self.desk.claim(request)).verdict
        run.granted = verdict == GRANTED
        run.life = Life.ALIVE if run.granted else Life.REFUSED
        if not run.granted:
            run.exit = Exit(ExitKind.EXITED, CLAIM_REFUSED)

    async def beat(self, run: Run, *, began: bool = False) -> None:
        if run.life is not Life.ALIVE or not run.beats:
            return
        request = runner_pb2.HeartbeatRequest(attempt=NAME, fence=self.fence)
        if began:
            request.start_time.FromSeconds(round(self.clock.time()))
        await self.desk.heartbeat(request)

    async def commit(self, run: Run, end: Exit) -> None:
        request = runner_pb2.CommitAttemptRequest(
            attempt=NAME,
            fence=self.fence,
            nonce=run.nonce,
            kind=runner_pb2.EXIT_KIND_EXITED,
            exit_code=end.code,
        )
        over = self.attempt.state.terminal
        if (await self.desk.commit(request)).accepted and not over:
            self.committed = end
        run.life, run.exit = Life.DEAD, end

    async def stop(self) -> None:
        self.cancelled = True
        await self.ledger.decide("job-1", lambda rows: cancel(rows, CANCEL, NOW))

    async def wait(self, seconds: int) -> None:
        """Time passes: who lives and reaches the server says so, and the backend is asked."""
        for passed in range(TICK, seconds + 1, TICK):
            self.clock.now += TICK
            live = [run for run in self.runs if run.life is Life.ALIVE and run.beats]
            self.silent_for = 0.0 if live else self.silent_for + TICK
            if passed % BEAT == 0:
                for run in live:
                    await self.beat(run)
            await self.see_late(self.sight_of_all())
            self.check()

    # -- what is seen of it ---------------------------------------------------------------------

    def sight(self, run: Run) -> Observation:
        id = run.id if self.marked else ""
        if run.ended:
            return Observation(NAME, Phase.ENDED, exists=True, exit=run.exit, run=id)
        phase = Phase.RUNNING if run.life is Life.ALIVE else Phase.STARTING
        return Observation(NAME, phase, exists=True, run=id)

    def sight_of_all(self) -> Observation:
        """As backends tell: of the run that the mark speaks of, else what lives before what ended,
        and that before who was refused."""
        order = {Life.ALIVE: 0, Life.BORN: 1, Life.DEAD: 2, Life.REFUSED: 3}
        mark = ref_of(self.attempt).mark
        visible = [run for run in self.runs if not run.hidden]
        known = [run for run in visible if mark and run_mark(run.id) == mark]
        if not visible:
            return Observation(NAME, Phase.EXISTS, exists=True, reachable=False)
        return self.sight(min(known or visible, key=lambda run: order[run.life]))

    async def see(self, seen: Observation) -> None:
        self.told.append(seen)
        await self.see_late(seen)

    async def see_late(self, seen: Observation) -> None:
        self.ends.saw(seen)
        now = Now(round(self.clock.time() * 1e6))
        step = observation_step(seen, now, self.grounds)
        await self.ledger.decide("job-1", of_attempt(0, NAME, step))

    # -- what must hold -------------------------------------------------------------------------

    def check(self) -> None:
        assert sum(run.granted for run in self.runs) <= 1
        attempt, winner = self.attempt, self.winner
        if attempt.state is AttemptState.SUCCEEDED:
            assert self.committed == EXITS[0]
        if not self.committed and winner is not None and winner.life is Life.ALIVE:
            assert not attempt.state.terminal or self.may_be_given_up()

    def may_be_given_up(self) -> bool:
        """A run that lives and is not heard of: only where nothing tells it from the other, or it
        is to end anyway and was silent for as long as a commit may take."""
        if self.cancelled:
            return self.silent_for >= COMMIT_BUDGET if self.marked else self.silent_for > 0
        other_died = any(run.life is Life.DEAD for run in self.runs)
        return not self.marked and self.silent_for > 0 and other_died


async def _no_manifest(digest: str) -> Any:
    raise AssertionError(digest)


async def played(yard: Yard, story: list[Act]) -> None:
    async with asyncio.TaskGroup() as group:
        ledger = group.create_task(yard.ledger.run(), name="ledger")
        await yard.begin()
        for act in story:
            await yard.act(act)
            yard.check()
        await finished(yard)
        ledger.cancel()


async def finished(yard: Yard) -> None:
    """Whatever happened, once all runs are over the attempt is, and nobody's word was twisted."""
    for run in yard.runs:
        run.beats, run.hidden = True, False
        await yard.claim(run)
        if run.life is Life.ALIVE:
            await yard.beat(run)
            await yard.commit(run, EXITS[0])
    yard.check()
    await yard.wait(round(COMMIT_BUDGET) + 100)
    attempt = yard.attempt
    assert attempt.state.terminal
    if yard.committed == EXITS[0] and not yard.cancelled:
        assert attempt.state is AttemptState.SUCCEEDED
    if not yard.committed:
        assert attempt.state is not AttemptState.SUCCEEDED


LOSER_KILLED_FIRST = [Act("claim", 0), Act("die", 1, 2), Act("see", 1), Act("wait", 0, 4)]
LOSER_REFUSED_FIRST = [Act("claim", 0), Act("claim", 1), Act("see", 1), Act("wait", 0, 4)]
CUT_BESIDE_A_LOSER = [
    Act("claim", 1),
    Act("claim", 0),
    Act("cut", 1),
    Act("hide", 1),
    Act("wait", 0, 4),
]
HIDDEN_BESIDE_A_LOSER = [
    Act("claim", 1),
    Act("cut", 1),
    Act("hide", 1),
    Act("die", 0, 2),
    Act("wait", 0, 4),
]
ALL_DEAD = [Act("claim", 1), Act("die", 0), Act("die", 1)]
SILENT_AND_GOOD = [Act("claim", 0), Act("begin", 0), Act("die", 0, 0), Act("wait", 0, 4)]


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("place", [Place.POD, Place.IMAGE])
@given(story=acts)
@example(story=LOSER_KILLED_FIRST)
@example(story=LOSER_REFUSED_FIRST)
@example(story=CUT_BESIDE_A_LOSER)
@example(story=SILENT_AND_GOOD)
@example(story=ALL_DEAD)
@example(story=HIDDEN_BESIDE_A_LOSER)
@settings(max_examples=60, deadline=None)
def test_whatever_is_seen_of_two_runs(place: Place, marked: bool, story: list[Act]) -> None:
    asyncio.run(played(Yard(place, marked), story))
