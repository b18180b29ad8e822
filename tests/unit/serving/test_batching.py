"""Requests are gathered, bounded, and never kept waiting beyond their time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from hatoba.handlers import Payload
from hatoba_worker.serving.answering import Outcome, Question
from hatoba_worker.serving.batching import Asked, Batcher, Full
from hatoba_worker.serving.config import Batching, Limits


class Time:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0
        self._calls: list[tuple[float, Callable[..., object], tuple[Any, ...], Time.Alarm]] = []

    class Alarm:
        cancelled = False

        def cancel(self) -> None:
            self.cancelled = True

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Alarm:
        alarm = Time.Alarm()
        self._calls.append((self.now + delay, callback, args, alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := sorted((each for each in self._calls if each[0] <= end), key=lambda e: e[0]):
            self._calls.remove(due[0])
            self.now, callback, args, alarm = due[0]
            if not alarm.cancelled:
                callback(*args)
        self.now = end


class Hands:
    """Threads that work when a test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], Any], Callable[[Any], None]]] = []

    def call(self, work: Callable[[], Any], done: Callable[[Any], None]) -> None:
        self.calls.append((work, done))

    def work(self) -> None:
        work, done = self.calls.pop(0)
        done(work())


class Place:
    """A batcher with its surroundings; answers are the questions."""

    def __init__(self, limits: Limits | None = None, batching: Batching | None = None) -> None:
        self.time = Time()
        self.hands = Hands()
        self.batches: list[str] = []
        self.told: dict[str, int] = {}
        self.sizes: list[int] = []
        self.batcher = Batcher(
            self.hands,
            self._answer,
            limits or Limits(),
            batching or Batching(),
            self.sizes.append,
            self.time,
        )

    def _answer(self, questions: Sequence[Question]) -> list[Outcome]:
        self.batches.append("".join(each.trace for each in questions))
        return [Outcome(200, each.payload) for each in questions]

    def ask(self, names: str) -> list[Asked]:
        return [self._ask(name) for name in names]

    def _ask(self, name: str) -> Asked:
        def done(outcome: Outcome) -> None:
            assert name not in self.told
            self.told[name] = outcome.status

        asked = Asked(Question(Payload(b"", ""), name), done)
        self.batcher.ask(asked)
        return asked

    def work(self) -> None:
        self.hands.work()


def test_one_after_another_in_order() -> None:
    place = Place()
    place.ask("abc")
    assert len(place.hands.calls) == 1
    for _ in range(3):
        place.work()
    assert place.batches == ["a", "b", "c"]
    assert place.told == {"a": 200, "b": 200, "c": 200}
    assert place.batcher.in_flight == 0


def test_as_many_at_a_time_as_there_are_threads() -> None:
    place = Place(Limits(concurrency=2))
    place.ask("abc")
    assert (len(place.hands.calls), place.batcher.queued, place.batcher.in_flight) == (2, 1, 3)


def test_a_full_batch_goes_at_once_and_others_when_the_wait_is_over() -> None:
    place = Place(Limits(concurrency=9), Batching(3, 10.0))
    place.ask("ab")
    assert place.hands.calls == []
    place.ask("cd")
    assert len(place.hands.calls) == 1
    place.time.advance(0.009)
    assert len(place.hands.calls) == 1
    place.time.advance(0.002)
    assert len(place.hands.calls) == 2
    place.work()
    place.work()
    assert place.batches == ["abc", "d"]
    assert place.sizes == [3, 1]


def test_what_waited_for_a_thread_has_waited_for_others_too() -> None:
    place = Place(batching=Batching(4, 10.0))
    place.ask("abcd")
    place.time.advance(0.005)
    place.ask("e")
    place.time.advance(0.006)
    place.ask("f")
    place.work()
    assert place.hands.calls == []
    place.time.advance(0.004)
    place.work()
    assert place.batches == ["abcd", "ef"]


def test_without_a_wait_only_what_is_there_goes_together() -> None:
    place = Place(batching=Batching(4, 0.0))
    place.ask("abcdef")
    for _ in range(3):
        place.work()
    assert place.batches == ["a", "bcde", "f"]


def test_there_is_an_end_to_the_queue() -> None:
    place = Place(Limits(max_queue=3))
    place.ask("abc")
    with pytest.raises(Full):
        place.ask("d")
    place.work()
    place.ask("d")


def test_what_is_over_its_time_is_told_so_and_not_begun() -> None:
    place = Place(Limits(timeout_seconds=5.0))
    place.ask("ab")
    place.time.advance(5.0)
    assert place.told == {"a": 504, "b": 504}
    # The thread is at the first still; that cannot be helped.
    assert (place.batcher.in_flight, place.batcher.queued) == (1, 0)
    place.work()
    assert place.batches == ["a"]
    assert place.batcher.in_flight == 0


def test_who_is_gone_is_not_answered() -> None:
    place = Place()
    first, second, _ = place.ask("abc")
    place.batcher.abandon(first)
    place.batcher.abandon(second)
    place.work()
    place.work()
    assert place.batches == ["a", "c"]
    assert place.told == {"c": 200}
    place.time.advance(1000.0)
    assert place.told == {"c": 200}


def test_threads_that_hang_are_noticed_when_none_is_left() -> None:
    place = Place(Limits(concurrency=2))
    place.ask("a")
    place.time.advance(100.0)
    assert place.batcher.stuck_seconds() == 0
    place.ask("b")
    place.time.advance(7.0)
    assert place.batcher.stuck_seconds() == 7.0
    place.work()
    assert place.batcher.stuck_seconds() == 0
