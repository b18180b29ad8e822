"""`disconnect.lost_after`: what cannot be reached for longer than its job allows is taken for lost.

The owner said so, and the runner has stopped it by itself before (`stop_after`). Without it an
attempt that cannot be reached stays what it was, however long that lasts. Time is counted by this
process's own clock, from when it noticed: neither a clock that was set nor a server that was away
ends anything.

Its place is free then if the job's runner was to stop it before; that it did is not taken on trust:
the backend is asked to stop what was taken for lost until it says that nothing of it is left.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import structlog

from hatoba_plugins.backend import Clock
from hatoba_plugins.values import Ref, Released
from hatoba_scheduler.control.instance import Instance
from hatoba_scheduler.control.launches import ref_of
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
STOP_AGAIN = 10.0
"""Seconds until what was taken for lost is asked after again."""
STOP_GRACE = 10.0
log = structlog.get_logger(__name__)


class Disconnects:
    """Waits for those that cannot be reached, and ends them when their time is over.

    `recall` is told of each that was taken for lost, also of one that had been asked to stop: that
    it heard of it is not known.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        rng: random.Random,
        recall: Callable[[Attempt], None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._rng = rng
        self._recall = recall
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
                    change = await self._ledger.ask(
                        where[0], of_attempt(where[1], name, self._step)
                    )
                except Exception:  # noqa: BLE001 - it is asked for again
                    self._lost.add_later(name, AGAIN)
                    continue
                hit("disconnect.lost.after")
                for attempt, _ in change.attempts if change else ():
                    if attempt.name == name:
                        self._recall(attempt)

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


def was_lost(attempt: Attempt) -> bool:
    """Whether it was taken for lost; of one that was being stopped its row does not tell."""
    return attempt.cause is not None and attempt.cause.code is CauseCode.DISCONNECTED


class Recalls:
    """Has a backend stop what was taken for lost there, once it can be reached again.

    Whether the store still waits for its release does not matter: without `stop_after` it does, and
    with it another may run already. After a restart the reaper finds what was not stopped yet.
    """

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._refs: dict[str, Ref] = {}
        self._due = Todo(instance.clock)

    def add(self, attempt: Attempt) -> None:
        """It was taken for lost."""
        self._refs[attempt.name] = ref_of(attempt)
        self._due.add(attempt.name)

    async def recall_forever(self) -> None:
        """Ask for each, and again until nothing of it is left."""
        while True:
            names = await self._due.take(GROUP)
            gone: set[str] = set()
            try:
                gone = await self._recall([self._refs[name] for name in names])
            except Exception as error:  # noqa: BLE001 - it is asked for again
                log.warning("recall.failed", backend=self._instance.name, error=repr(error))
            for name in names:
                if name in gone:
                    del self._refs[name]
                else:
                    self._due.add_later(name, STOP_AGAIN)

    async def _recall(self, refs: Sequence[Ref]) -> set[str]:
        """Those of which nothing is left."""
        jobs, calls = self._instance.jobs, self._instance.calls
        hit("recall.call.before")
        stopped = await calls["stop"].call(lambda: jobs.stop(refs, STOP_GRACE))
        released = await calls["release"].call(lambda: jobs.release(refs))
        hit("recall.call.after")
        never = {one.name for one in stopped if not one.known}
        return never | {one.name for one in released if isinstance(one, Released)}
