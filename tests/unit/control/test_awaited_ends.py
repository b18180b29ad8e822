"""How long the runner of a claimed attempt is waited for, and what a sidecar is told meanwhile."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from domain_rows import NOW, after, intent, new_job, rows_of, view_of

from hatoba.runs import mark_of, nonce_for, run_mark, same_run
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.runner import CLAIM_REFUSED, OWN_CODES
from hatoba_plugins.values import Exit, ExitKind, Observation, Phase
from hatoba_scheduler.control.awaited_ends import (
    COMMIT_BUDGET,
    IN_FLIGHT,
    SILENCE,
    AwaitedEnds,
    Place,
)
from hatoba_scheduler.control.exits import LONGEST, Exits
from hatoba_scheduler.control.observe import Grounds, Step, foresee, observation_step
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending
from hatoba_scheduler.domain.states import AttemptState, CauseCode
from hatoba_scheduler.domain.transitions import Rows, claimed, launch, stopping

A = AttemptState
RUN = "6f0c-pod"
NONCE = nonce_for(RUN, "a" * 32)
GOOD, BAD = Exit(ExitKind.EXITED, 0), Exit(ExitKind.EXITED, 3)


class Desk:
    """One attempt, its clock, and what a backend in one place says of it."""

    def __init__(self, place: Place, nonce: str = NONCE) -> None:
        self.clock = FakeClock()
        self.heard = -1.0
        self.ends = AwaitedEnds(self.clock, place, lambda _: self.heard)
        self.exits = Exits(self.clock)
        self.grounds = Grounds(random.Random(1), self.ends, self.exits)
        rows = rows_of(new_job())
        self.rows: Rows = after(rows, launch(rows, intent(rows, fenced=True), NOW))
        if nonce:
            self.take(lambda view: claimed(view, nonce, NOW))

    @property
    def state(self) -> AttemptState:
        return self.rows.attempts[0].state

    @property
    def name(self) -> str:
        return self.rows.attempts[0].name

    def take(self, step: Step) -> None:
        change = step(view_of(self.rows))
        self.rows = after(self.rows, change) if change else self.rows

    def see(
        self, phase: Phase, exit: Exit | None = None, *, run: str = RUN, runner_gone: bool = False
    ) -> AttemptState:
        exists = phase is not Phase.GONE
        seen = Observation(self.name, phase, exists, exit, run=run, runner_gone=runner_gone)
        self.ends.saw(seen)
        self.take(observation_step(seen, NOW, self.grounds))
        return self.state

    async def lasts(self, exit: Exit | None, phase: Phase = Phase.ENDED, **more: object) -> float:
        """Seconds for which this is seen until the attempt is over."""
        while not self.see(phase, exit, **more).terminal:  # type: ignore[arg-type]
            await self.clock.advance(1)
        return self.clock.monotonic()


# -- how long it waits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "more", "seconds"),
    [
        (Place.POD, {}, COMMIT_BUDGET),
        (Place.POD, {"run": ""}, COMMIT_BUDGET),
        (Place.POD, {"runner_gone": True}, IN_FLIGHT),
        (Place.POD, {"runner_gone": True, "run": ""}, SILENCE),
        (Place.POD, {"phase": Phase.GONE, "exit": None}, IN_FLIGHT),
        (Place.IMAGE, {}, IN_FLIGHT),
        (Place.IMAGE, {"run": ""}, SILENCE),
        (Place.IMAGE, {"phase": Phase.GONE, "exit": None, "run": ""}, SILENCE),
        (Place.HOST, {}, 0.0),
    ],
)
async def test_a_claimed_attempt_waits_for_its_commit(
    place: Place, more: dict[str, object], seconds: float
) -> None:
    desk = Desk(place)
    assert await desk.lasts(**{"exit": GOOD, **more}) == seconds  # type: ignore[arg-type]
    cause = desk.rows.attempts[0].cause
    assert cause is not None
    lost = CauseCode.LOST if more.get("phase") else CauseCode.NOT_COMMITTED
    assert (desk.state, cause.code) == (A.LOST, lost)


def test_one_that_no_runner_is_in_ends_as_it_is_seen() -> None:
    desk = Desk(Place.POD, nonce="")
    bare = Observation(desk.name, Phase.RUNNING, True, run=RUN, unfenced=True)
    states = []
    for seen in (bare, replace(bare, phase=Phase.ENDED, exit=GOOD)):
        desk.take(observation_step(seen, NOW, desk.grounds))
        states.append(desk.state)
    assert states == [A.RUNNING, A.SUCCEEDED]


async def test_a_bad_end_that_was_never_committed_is_judged_as_it_was_seen() -> None:
    desk = Desk(Place.IMAGE)
    assert await desk.lasts(BAD) == IN_FLIGHT
    cause = desk.rows.attempts[0].cause
    assert cause is not None
    assert (desk.state, cause.exit_code) == (A.FAILED, 3)


async def test_a_heartbeat_counts_anew() -> None:
    desk = Desk(Place.IMAGE, "b" * 32)
    assert desk.see(Phase.ENDED, GOOD, run="") is A.STARTING
    await desk.clock.advance(SILENCE - 1)
    desk.heard = desk.clock.monotonic()
    assert await desk.lasts(GOOD, run="") == 2 * SILENCE - 1


async def test_what_is_seen_alive_has_not_ended() -> None:
    desk = Desk(Place.POD)
    desk.see(Phase.ENDED, GOOD)
    await desk.clock.advance(COMMIT_BUDGET - 1)
    desk.see(Phase.RUNNING)
    await desk.clock.advance(1)
    assert not desk.see(Phase.ENDED, GOOD).terminal
    assert len(desk.ends) == 1


@pytest.mark.parametrize("exit", [GOOD, BAD, Exit(ExitKind.FAILED, message="no image")])
def test_what_nobody_claimed_is_decided_at_once(exit: Exit) -> None:
    desk = Desk(Place.POD, "")
    assert desk.see(Phase.ENDED, exit) is (A.LOST if exit is GOOD else causes_of(exit))


def causes_of(exit: Exit) -> AttemptState:
    kind = causes.ExitKind.EXITED if exit is BAD else causes.ExitKind.BACKEND_FAILED
    return causes.judge(Ending(kind, exit.code))[0]


async def test_a_refusal_while_nobody_has_it_is_waited_out_and_no_fault_of_the_users() -> None:
    desk = Desk(Place.IMAGE, "")
    assert await desk.lasts(Exit(ExitKind.EXITED, CLAIM_REFUSED)) == SILENCE
    assert desk.state is A.LOST


def test_a_refusal_of_what_is_to_stop_ends_it_as_it_was_meant_to() -> None:
    desk = Desk(Place.POD, "")
    desk.take(lambda view: stopping(view, A.CANCELLED, None, NOW))
    assert desk.see(Phase.ENDED, Exit(ExitKind.EXITED, CLAIM_REFUSED)) is A.CANCELLED


async def test_a_users_own_83_is_an_exit_like_any_other_in_the_run_that_was_granted() -> None:
    desk = Desk(Place.POD)
    assert await desk.lasts(Exit(ExitKind.EXITED, CLAIM_REFUSED)) == COMMIT_BUDGET
    cause = desk.rows.attempts[0].cause
    assert cause is not None
    assert (desk.state, cause.exit_code) == (A.FAILED, CLAIM_REFUSED)


async def test_a_run_that_was_refused_never_ends_the_other() -> None:
    for run in ("another", ""):
        desk = Desk(Place.POD)
        for _ in range(100):
            exit = Exit(ExitKind.EXITED, CLAIM_REFUSED)
            assert not desk.see(Phase.ENDED, exit, run=run).terminal
            await desk.clock.advance(60)
        assert desk.rows.attempts[0].unknown_since
        desk.heard = desk.clock.monotonic()
        desk.see(Phase.ENDED, Exit(ExitKind.EXITED, CLAIM_REFUSED), run=run)
        assert not desk.rows.attempts[0].unknown_since


@pytest.mark.parametrize("code", OWN_CODES)
async def test_a_runners_own_codes_are_never_the_users_fault(code: int) -> None:
    desk = Desk(Place.IMAGE)
    await desk.lasts(Exit(ExitKind.EXITED, code))
    cause = desk.rows.attempts[0].cause
    assert cause is not None
    assert (desk.state, cause.message) == (A.LOST, OWN_CODES[code])


def test_running_means_nothing_before_the_claim() -> None:
    for place, after_claim in ((Place.POD, A.RUNNING), (Place.IMAGE, A.STARTING)):
        desk = Desk(place, "")
        assert desk.see(Phase.RUNNING) is A.STARTING
        desk.take(lambda view: claimed(view, NONCE, NOW))
        assert desk.see(Phase.RUNNING, run="another") is A.STARTING
        assert desk.see(Phase.RUNNING) is after_claim


# -- what a sidecar is told ------------------------------------------------------------------------


def test_the_granted_runs_end_is_told_and_no_others() -> None:
    desk = Desk(Place.POD)
    desk.see(Phase.ENDED, BAD, run="another")
    desk.see(Phase.ENDED, Exit(ExitKind.EXITED, CLAIM_REFUSED), run="")
    assert desk.exits.known(desk.name) is None
    desk.see(Phase.ENDED, BAD)
    desk.see(Phase.ENDED, GOOD)
    told = desk.exits.known(desk.name)
    assert told is not None
    assert told.ending == Ending(causes.ExitKind.EXITED, 3)


async def test_what_is_foreseen_is_for_who_knows_that_it_has_come_true() -> None:
    exits = Exits(FakeClock())
    exits.close()
    assert not exits.leaves("a")
    exits.foresee("a", Ending(causes.ExitKind.PREEMPTED))
    assert exits.leaves("a")
    assert await exits.wait("a", lambda: True) is None
    told = await exits.wait("a", lambda: True, gone=True)
    assert told is not None
    assert told.ending.kind is causes.ExitKind.PREEMPTED
    exits.tell("a", Ending(causes.ExitKind.EXITED, 3), 7)
    told = await exits.wait("a", lambda: True, gone=True)
    assert told is not None
    assert told.ending.code == 3
    exits.forget("a")
    assert len(exits) == 0
    assert not exits.leaves("a")


def test_only_of_the_granted_run_it_is_foreseen() -> None:
    ending = Exit(ExitKind.PREEMPTED)
    for run, known in (("another", 0), (RUN, 1)):
        desk = Desk(Place.POD)
        seen = Observation(desk.name, Phase.RUNNING, True, run=run, ending=ending)
        foresee(desk.rows.attempts[0], seen, desk.exits)
        assert len(desk.exits) == known
    unclaimed, over = Desk(Place.POD, nonce=""), Desk(Place.POD)
    attempt = replace(over.rows.attempts[0], state=A.PREEMPTED)
    for desk, row in ((unclaimed, unclaimed.rows.attempts[0]), (over, attempt)):
        seen = Observation(desk.name, Phase.RUNNING, True, run=RUN, ending=ending)
        foresee(row, seen, desk.exits)
        assert len(desk.exits) == 0


async def test_whoever_waits_is_told_at_once() -> None:
    exits = Exits(FakeClock())
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(exits.wait("a", lambda: True)) for _ in range(3)]
        await asyncio.sleep(0)
        exits.tell("a", Ending(causes.ExitKind.OUT_OF_MEMORY), 7)
    told = [wait.result() for wait in waits]
    assert [one.ending.kind for one in told if one] == [causes.ExitKind.OUT_OF_MEMORY] * 3
    exits.forget("a")
    assert len(exits) == 0


@pytest.mark.parametrize("how", ["time", "over", "close"])
async def test_who_waits_in_vain_is_let_go(how: str) -> None:
    clock, live = FakeClock(), [True]
    exits = Exits(clock)
    async with asyncio.TaskGroup() as group:
        wait = group.create_task(exits.wait("a", lambda: live[0]))
        await clock.until_asleep()
        if how == "time":
            await clock.advance(LONGEST)
        elif how == "over":
            live[0] = False
            exits.forget("a")
        else:
            exits.close()
    assert wait.result() is None
    assert clock.sleepers == 0


# -- marks -----------------------------------------------------------------------------------------


def test_a_nonce_tells_its_run_or_nothing() -> None:
    assert same_run(NONCE, RUN) is True
    assert same_run(NONCE, "another") is False
    assert [same_run(nonce, run) for nonce, run in ((NONCE, ""), ("c" * 32, RUN), ("", RUN))] == [
        None
    ] * 3
    assert (mark_of(NONCE), mark_of("c" * 32)) == (run_mark(RUN), "")
    assert 16 <= len(NONCE) <= 64
