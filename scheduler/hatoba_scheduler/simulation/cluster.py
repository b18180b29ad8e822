"""A scripted cluster: what is launched there claims, runs, saves and ends as its script says."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hatoba_scheduler.domain import causes, gangs, preempting
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.records import (
    Attempt,
    Change,
    Checkpoint,
    Job,
    ManifestRef,
    Micros,
)
from hatoba_scheduler.domain.retries import back_off
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.domain.transitions import (
    Now,
    Outcome,
    Rows,
    View,
    checkpointed,
    claimed,
    released,
    running,
)
from hatoba_scheduler.simulation.agenda import SECOND, Agenda
from hatoba_scheduler.simulation.books import Books
from hatoba_scheduler.simulation.script import Run, Script, always

Callback = Callable[[], object]
Step = Callable[[View], Change | None]
SAVED = ManifestRef("sha256:" + "5" * 64)
KILLED = Ending(ExitKind.STOPPED)


@dataclass(slots=True)
class Span:
    """One run of user code, as it was: from its first to its last instruction."""

    name: str
    uid: str
    index: int
    number: int
    backend: str
    pool: str
    start: Micros
    generation: int = 0
    end: Micros = 0
    """0: it runs."""
    work: float = 0.0
    """Seconds of work that it had to do."""


@dataclass(frozen=True, slots=True)
class Delays:
    """How long a cluster takes for what, in seconds."""

    launch: float = 0.1
    release: float = 0.1


@dataclass(slots=True)
class _Process:
    attempt: Attempt
    run: Run
    span: Span | None = None
    stopping: bool = False


@dataclass(slots=True)
class _Work:
    """Of one task: seconds of work that checkpoints have saved."""

    done: float = 0.0
    step: int = 0


class Cluster:
    """Everything that runs. It hears of commits and answers with what happens to attempts."""

    def __init__(
        self, books: Books, agenda: Agenda, rng: random.Random, delays: Delays | None = None
    ) -> None:
        self._books = books
        self._agenda = agenda
        self._rng = rng
        self._delays = delays or Delays()
        self._scripts: dict[str, Script] = {}
        self._processes: dict[str, _Process] = {}
        self._saved: dict[tuple[str, int], _Work] = {}
        self.spans: list[Span] = []
        books.listen(self._on_commit)

    def script(self, uid: str, script: Script) -> None:
        """What the tasks of a job do; without one each works for a minute."""
        self._scripts[uid] = script

    def fail_pool(self, backend: str, pool: str, ending: Ending) -> None:
        """All that runs in a pool ends so at once, and nothing of it is left."""
        for process in list(self._processes.values()):
            place = (process.attempt.backend, process.attempt.host)
            if place == (backend, pool):
                self._ended(process, ending, gone=True)

    # -- hearing ----------------------------------------------------------------------------------

    def _on_commit(self, before: Job | None, change: Change, rows: Rows) -> None:
        del before
        for attempt, expected in change.attempts:
            if not expected:
                self._agenda.after(self._delays.launch, self._launcher(attempt))
            elif attempt.state is AttemptState.STOPPING:
                self._stop_soon(rows, attempt)
            elif attempt.state.terminal and attempt.release is not Release.RELEASED:
                self._agenda.after(self._delays.release, self._releaser(attempt))

    def _launcher(self, attempt: Attempt) -> Callback:
        return lambda: self._arrive(attempt)

    def _releaser(self, attempt: Attempt) -> Callback:
        return lambda: self._decide(attempt, lambda view: released(view))

    def _decide(self, attempt: Attempt, step: Step) -> Change | None:
        """A decision about an attempt, while it is its task's newest."""

        def decide(rows: Rows) -> Change | None:
            view = rows.view(attempt.index)
            return step(view) if view and view.attempt.name == attempt.name else None

        return self._books.decide(attempt.job_uid, decide)

    def _now(self) -> Now:
        return Now(self._agenda.now, "cluster")

    # -- beginning --------------------------------------------------------------------------------

    def _arrive(self, attempt: Attempt) -> None:
        """It claims; one that is being stopped already is not granted."""
        current = self._current(attempt)
        if current is None or current.state is not AttemptState.LAUNCHING:
            return
        script = self._scripts.get(attempt.job_uid, always(Run()))
        self._processes[attempt.name] = _Process(attempt, script(attempt.index, attempt.number))
        nonce, now = f"nonce-of-{attempt.name}", self._now()
        if not attempt.generation:
            self._decide(attempt, lambda view: claimed(view, nonce, now))
            self._begin(attempt)
            return
        address = f"{attempt.host}:{29500 + attempt.index}"
        self._decide(attempt, lambda view: gangs.claimed(view, nonce, address, now))
        rows = self._books.rows(attempt.job_uid)
        if rows is not None and gangs.all_claimed(rows):
            for member in gangs.current(rows):
                self._begin(member)

    def _current(self, attempt: Attempt) -> Attempt | None:
        rows = self._books.rows(attempt.job_uid)
        known = rows.attempts.get(attempt.index) if rows else None
        return known if known is not None and known.name == attempt.name else None

    def _begin(self, attempt: Attempt) -> None:
        now = self._now()
        if self._decide(attempt, lambda view: running(view, now.time, "", now)) is None:
            return
        process, work = self._processes[attempt.name], self._work(attempt)
        left = max(0.0, process.run.seconds - work.done)
        process.span = Span(
            attempt.name,
            attempt.job_uid,
            attempt.index,
            attempt.number,
            attempt.backend,
            attempt.host,
            now.time,
            attempt.generation,
            work=left,
        )
        self.spans.append(process.span)
        if process.run.checkpoint_every:
            self._agenda.after(process.run.checkpoint_every, lambda: self._save(process))
        if not process.run.never:
            self._agenda.after(left, lambda: self._ended(process, process.run.ending))

    def _work(self, attempt: Attempt) -> _Work:
        return self._saved.setdefault((attempt.job_uid, attempt.index), _Work())

    # -- saving and ending ------------------------------------------------------------------------

    def _save(self, process: _Process) -> None:
        """What it has done so far is kept, and the next checkpoint is put down."""
        if process.span is None or process.attempt.name not in self._processes:
            return
        now, work = self._now(), self._work(process.attempt)
        work.step += 1
        checkpoint = Checkpoint(work.step, process.attempt.number, SAVED, (), now.time)
        if self._decide(process.attempt, lambda view: checkpointed(view, checkpoint)) is None:
            return
        done = process.run.seconds - process.span.work
        work.done = done + (now.time - process.span.start) / SECOND
        if not process.stopping:
            self._agenda.after(process.run.checkpoint_every, lambda: self._save(process))

    def _stop_soon(self, rows: Rows, attempt: Attempt) -> None:
        """It saves what it can, and ends when its grace is over or as soon as it has saved."""
        process = self._processes.get(attempt.name)
        if process is None:
            self._agenda.after(0.0, lambda: self._never_was(attempt))
            return
        if process.stopping:
            return
        process.stopping = True
        wait = min(process.run.stops_in, rows.job.stop_grace)
        saves = process.run.checkpoint_every and process.span is not None
        if saves:
            self._agenda.after(0.0, lambda: self._save(process))
        start = self._agenda.now if saves else preempting.stop_at(attempt)
        stop = max(start, self._agenda.now) + round(wait * SECOND)
        self._agenda.at(stop, lambda: self._ended(process, KILLED))

    def _never_was(self, attempt: Attempt) -> None:
        if attempt.name in self._processes:
            return
        cause = causes.lost("It was stopped before it existed.")
        outcome = Outcome(AttemptState.LOST, cause, gone=True, charged=False)
        self._decide(attempt, lambda view: gangs.ended(view, outcome, self._now()))

    def _ended(self, process: _Process, ending: Ending, *, gone: bool = False) -> None:
        if self._processes.pop(process.attempt.name, None) is None:
            return
        if process.span is not None:
            process.span.end = self._agenda.now
        state, cause = causes.judge(ending)

        def step(view: View) -> Change | None:
            wait = back_off(view.job, view.task, self._rng)
            outcome = Outcome(state, cause, wait=wait, gone=gone)
            return gangs.ended(view, outcome, self._now())

        self._decide(process.attempt, step)

    def running(self) -> Iterator[Span]:
        """User code that runs now."""
        return (span for span in self.spans if not span.end)
