"""From requests on the event loop to threads that predict: a bounded queue, gathered in batches."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from hatoba_worker.serving.answering import Outcome, Question, failure
from hatoba_worker.serving.config import Batching, Limits

T = TypeVar("T")
Call = tuple[Callable[[], Any], Callable[[Any], None]]
Answer = Callable[[Sequence[Question]], list[Outcome]]


class Clock(Protocol):
    """What an event loop knows of time."""

    def time(self) -> float:
        """Seconds, which only grow."""

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Alarm:
        """Call back after `delay` seconds."""


class Alarm(Protocol):
    """A call that is to come."""

    def cancel(self) -> None:
        """Not any more."""


class Caller(Protocol):
    """Who predicts."""

    def call(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Run `work`, which never raises, elsewhere; then `done` with its result on the loop."""


class Full(Exception):
    """As many requests are worked on and waiting as may be."""


class Threads:
    """Daemon threads, for one that hangs must not hold up the end of the process."""

    def __init__(self, count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: SimpleQueue[Call] = SimpleQueue()
        for number in range(count):
            name = f"predict-{number}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def call(self, work: Callable[[], T], done: Callable[[T], None]) -> None:
        """Run `work`, which never raises, in a thread; then `done` with its result on the loop."""
        self._calls.put((work, done))

    def _work(self) -> None:
        while True:
            work, done = self._calls.get()
            result = work()
            # The loop may be over before a thread is.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(done, result)


class Asked:
    """A question on its way: `done` hears its outcome, once."""

    __slots__ = ("_done", "began", "question", "timer")

    def __init__(self, question: Question, done: Callable[[Outcome], None]) -> None:
        self.question = question
        self.began = 0.0
        self.timer: Alarm | None = None
        self._done: Callable[[Outcome], None] | None = done

    def finish(self, outcome: Outcome) -> None:
        """Tell who asked, unless they were told before."""
        done, self._done = self._done, None
        if self.timer is not None:
            self.timer.cancel()
        if done is not None:
            done(outcome)

    def forget(self) -> None:
        """Nobody waits for it any more."""
        self._done = None
        if self.timer is not None:
            self.timer.cancel()


class Batcher:
    """Hands questions to idle threads, in order, up to `max_batch` at a time.

    A question that is over its time is answered 504 at once. Its thread cannot be stopped, and what
    it works on counts as in flight until it returns.
    """

    def __init__(
        self,
        threads: Caller,
        answer: Answer,
        limits: Limits,
        batching: Batching,
        on_batch: Callable[[int], None],
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._answer = answer
        self._limits = limits
        self._most = max(1, batching.max_batch)
        self._wait = batching.batch_wait_ms / 1000 if self._most > 1 else 0.0
        self._on_batch = on_batch
        self._waiting: deque[Asked] = deque()
        self._running: dict[int, float] = {}
        self._batches = 0
        self._alarm: Alarm | None = None
        self._worked_on = 0

    @property
    def queued(self) -> int:
        """How many wait for a thread."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """How many are worked on or wait."""
        return self._worked_on + len(self._waiting)

    def stuck_seconds(self) -> float:
        """For how long no thread has been free; 0 while one is."""
        if len(self._running) < self._limits.concurrency:
            return 0.0
        return self._clock.time() - max(self._running.values())

    def ask(self, asked: Asked) -> None:
        """Take a question in; raises Full."""
        if self.in_flight >= self._limits.max_queue:
            raise Full
        asked.began = self._clock.time()
        asked.timer = self._clock.call_later(self._limits.timeout_seconds, self._too_late, asked)
        self._waiting.append(asked)
        self._go()

    def abandon(self, asked: Asked) -> None:
        """Whoever asked is gone; what waits is not begun."""
        asked.forget()
        self._drop(asked)

    def _drop(self, asked: Asked) -> None:
        with contextlib.suppress(ValueError):
            self._waiting.remove(asked)

    def _too_late(self, asked: Asked) -> None:
        self._drop(asked)
        seconds = self._limits.timeout_seconds
        asked.finish(failure(504, "timeout", f"the prediction took longer than {seconds:g} s"))

    def _go(self) -> None:
        while self._waiting and len(self._running) < self._limits.concurrency and self._due():
            count = min(len(self._waiting), self._most)
            self._start([self._waiting.popleft() for _ in range(count)])

    def _due(self) -> bool:
        """Whether the first has waited for others long enough."""
        if not self._wait or len(self._waiting) >= self._most:
            return True
        left = self._waiting[0].began + self._wait - self._clock.time()
        if left <= 0:
            return True
        if self._alarm is None:
            self._alarm = self._clock.call_later(left, self._waited)
        return False

    def _waited(self) -> None:
        self._alarm = None
        self._go()

    def _start(self, batch: list[Asked]) -> None:
        self._batches += 1
        number = self._batches
        self._running[number] = self._clock.time()
        self._worked_on += len(batch)
        self._on_batch(len(batch))
        questions = [each.question for each in batch]
        self._threads.call(
            lambda: self._answer(questions), lambda outcomes: self._over(number, batch, outcomes)
        )

    def _over(self, number: int, batch: list[Asked], outcomes: list[Outcome]) -> None:
        del self._running[number]
        self._worked_on -= len(batch)
        # The thread goes on while answers are written.
        self._go()
        for asked, outcome in zip(batch, outcomes, strict=True):
            asked.finish(outcome)
