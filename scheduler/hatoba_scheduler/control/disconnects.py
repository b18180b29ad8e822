"""`disconnect.lost_after`: what cannot be reached for longer than its job allows is taken for lost.

The owner said so, and the runner has stopped it by itself before (`stop_after`). Without it an
attempt that cannot be reached stays what it was, however long that lasts. Time is counted by this
process's own clock, from when it noticed: neither a clock that was set nor a server that was away
ends anything.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.control.todo import Todo
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.gangs import ended
from hatoba_scheduler.domain.records import Attempt, Change, Event, Job
from hatoba_scheduler.domain.retries import back_off
from hatoba_scheduler.domain.states import AttemptState, CauseCode
from hatoba_scheduler.domain.transitions import Now, Outcome, View
from hatoba_scheduler.failpoints import hit

GROUP = 100
AGAIN = 1.0


class Disconnects:
    """Waits for those that cannot be reached, and ends them when their time is over."""

    def __init__(self, ledger: Ledger, clock: Clock, rng: random.Random) -> None:
        self._ledger = ledger
        self._clock = clock
        self._rng = rng
        self._lost = Todo(clock)
        ledger.listen(self.on_commit)

    def recover(self) -> None:
        """Take up those that could not be reached when the last process ended."""
        for rows in self._ledger.all_rows():
            for attempt in rows.attempts.values():
                self._note(rows.job, attempt)

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in what can be reached, and what cannot; a listener of the ledger."""
        del events
        for commit in commits:
            job = commit.change.job
            if job.terms.lost_after:
                for attempt, _ in commit.change.attempts:
                    self._note(job, attempt)

    def _note(self, job: Job, attempt: Attempt) -> None:
        if attempt.unknown_since and job.terms.lost_after and not attempt.state.terminal:
            if attempt.name not in self._lost:
                self._lost.add_later(attempt.name, job.terms.lost_after)
        else:
            self._lost.discard(attempt.name)

    async def run(self) -> None:
        """End those whose time is over; ends by cancellation."""
        while True:
            for name in await self._lost.take(GROUP):
                where = self._ledger.find_attempt(name)
                if where is None:
                    continue
                hit("disconnect.lost.before")
                try:
                    await self._ledger.ask(where[0], of_attempt(where[1], name, self._step))
                except Exception:  # noqa: BLE001 - it is asked for again
                    self._lost.add_later(name, AGAIN)
                hit("disconnect.lost.after")

    def _step(self, view: View) -> Change | None:
        if not view.attempt.unknown_since or view.attempt.state.terminal:
            return None
        terms = view.job.terms
        message = f"It could not be reached for {terms.lost_after:g} s, as long as its job allows"
        stopped = (
            f"; its runner stopped it after {terms.stop_after:g} s." if terms.stop_after else "."
        )
        outcome = Outcome(
            AttemptState.LOST,
            causes.lost(message + stopped, CauseCode.DISCONNECTED),
            wait=back_off(view.job, view.task, self._rng),
            # Only what has stopped by itself leaves room for another.
            gone=terms.stop_after > 0,
        )
        return ended(view, outcome, Now(round(self._clock.time() * 1e6)))
