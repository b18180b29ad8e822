"""Good ends of gangs' members that logged models, held until all of the gang have ended well.

A version of a model is final, and a gang may begin anew until its last member has ended. So the
ends of those that bring versions are stored together, as the last of their gang. Nothing here is
durable: whoever had no answer commits again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.domain import gangs
from hatoba_scheduler.domain.records import Attempt, Change
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now, Outcome, Rows, View

_GOOD = AttemptState.SUCCEEDED


@dataclass(frozen=True, slots=True)
class _Held:
    """A member's end; `outcome` is None once it is not the member's to tell."""

    name: str
    outcome: Callable[[View], Outcome | None]
    turn: asyncio.Future[bool]


class GangCommits:
    """What members have told that is not decided yet, by job and index."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._held: dict[str, dict[int, _Held]] = {}

    async def ended(self, attempt: Attempt, outcome: Callable[[View], Outcome | None]) -> bool:
        """A member has ended well: True once that is stored together with all others' good ends.

        False: it is to be decided for itself, since not all end well. Raises what a commit does.
        """
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        held = self._held.setdefault(attempt.job_uid, {})
        former = held.get(attempt.index)
        if former is not None and former.name == attempt.name:
            # It had no answer on a stream that is over; both get the same.
            turn = former.turn
        held[attempt.index] = _Held(attempt.name, outcome, turn)
        self._look_at(attempt.job_uid)
        return await asyncio.shield(turn)

    def on_commit(self, commits: Sequence[Commit]) -> None:
        """Look at the gangs of which some are held."""
        for commit in commits if self._held else ():
            if commit.change.job.uid in self._held:
                self._look_at(commit.change.job.uid)

    def _look_at(self, uid: str) -> None:
        rows = self._ledger.rows(uid)
        members = gangs.current(rows) if rows is not None else []
        held = self._held[uid]
        if not members or any(_ends_badly(one) for one in members):
            self._let_go(uid)
        elif all(one.state is _GOOD or one.index in held for one in members):
            del self._held[uid]
            asked = self._ledger.ask(uid, self._decision(held))
            asked.add_done_callback(lambda done: _answer(held, done))

    def _let_go(self, uid: str) -> None:
        for one in self._held.pop(uid).values():
            if not one.turn.done():
                one.turn.set_result(False)

    def _decision(self, held: dict[int, _Held]) -> Callable[[Rows], Change | None]:
        now = Now(round(self._clock.time() * 1e6), "runner")

        def decide(rows: Rows) -> Change | None:
            outcomes: dict[int, Outcome] = {}
            for index, one in held.items():
                view = rows.view(index)
                known = view is not None and view.attempt.name == one.name
                outcome = one.outcome(view) if view is not None and known else None
                if outcome is None:
                    return None
                outcomes[index] = outcome
            return gangs.ended_well(rows, outcomes, now)

        return decide


def _ends_badly(member: Attempt) -> bool:
    return member.state >= AttemptState.STOPPING and member.state is not _GOOD


def _answer(held: dict[int, _Held], asked: asyncio.Future[Change | None]) -> None:
    error = asyncio.CancelledError() if asked.cancelled() else asked.exception()
    for one in held.values():
        if one.turn.done():
            continue
        if error is not None:
            one.turn.set_exception(error)
        else:
            one.turn.set_result(asked.result() is not None)
