"""What a model has to answer before anybody else may ask it: its example and its golden cases."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from hatoba import golden
from hatoba.golden import Case, GoldenRefused
from hatoba.handlers import Payload
from hatoba_worker.serving.answering import Outcome, Question, failure
from hatoba_worker.serving.batching import Asked, Batcher, Caller, Clock, Full

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
NOT_ANSWERED = "example_refused"
"""The kind of what is asked again after a while: what was missing may come."""
_BUSY = failure(429, "queue_full", "earlier ones have not ended yet")


class _Step(NamedTuple):
    """One input; without a case any answer will do."""

    input: Payload
    case: Case | None = None

    def __str__(self) -> str:
        return f"golden case {self.case.number}" if self.case else "the model's own example"


class Proving:
    """Asks the example, then the golden cases, up to `most` at once: as many as are answered
    together.

    `told` hears why not each time something is wrong, and None once all was answered as it should
    be. An answer that is not the expected one is final.
    """

    def __init__(
        self,
        threads: Caller,
        batcher: Batcher,
        clock: Clock,
        most: int,
        told: Callable[[Outcome | None], None],
    ) -> None:
        self._threads = threads
        self._batcher = batcher
        self._clock = clock
        self._most = max(1, most)
        self._told = told
        self._groups: deque[list[_Step]] = deque()
        self._wait = FIRST_RETRY_SECONDS

    def begin(self, example: Payload | None, cases: Sequence[Case]) -> None:
        """Ask all of it."""
        if example is not None:
            self._groups.append([_Step(example)])
        for at in range(0, len(cases), self._most):
            group = cases[at : at + self._most]
            self._groups.append([_Step(case.input, case) for case in group])
        self._ask()

    def end(self) -> None:
        """Ask nothing more, and tell nobody."""
        self._groups.clear()
        self._told = lambda _: None

    def _ask(self) -> None:
        if not self._groups:
            self._told(None)
            return
        outcomes: dict[int, Outcome] = {}
        for at, step in enumerate(self._groups[0]):
            answered = partial(self._answered, outcomes, at)
            try:
                self._batcher.ask(Asked(Question(step.input), answered))
            except Full:
                answered(_BUSY)

    def _answered(self, outcomes: dict[int, Outcome], at: int, outcome: Outcome) -> None:
        outcomes[at] = outcome
        if not self._groups or len(outcomes) < len(self._groups[0]):
            return
        answers = list(
            zip(self._groups[0], map(outcomes.__getitem__, sorted(outcomes)), strict=True)
        )
        # What is over its time still has its thread: that is told without one.
        for step, found in answers:
            if found.status != 200:
                self._judged(failure(503, NOT_ANSWERED, f"{step} was not answered: {found.error}"))
                return
        self._threads.call(lambda: _compared(answers), self._judged)

    def _judged(self, refused: Outcome | None) -> None:
        if not self._groups:
            return
        if refused is None:
            self._groups.popleft()
            self._ask()
            return
        self._told(refused)
        if refused.kind == NOT_ANSWERED:
            self._clock.call_later(self._wait, self._ask)
            self._wait = min(2 * self._wait, LONGEST_RETRY_SECONDS)


def _compared(answers: Sequence[tuple[_Step, Outcome]]) -> Outcome | None:
    for step, found in answers:
        try:
            if step.case is not None:
                golden.compare(step.case, found.payload)
        except GoldenRefused as error:
            return failure(503, error.kind, str(error))
    return None
