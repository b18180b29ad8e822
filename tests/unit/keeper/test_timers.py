from __future__ import annotations

from hatoba_worker.keeper.timers import Timers


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_they_run_in_order_of_their_time() -> None:
    clock = Clock()
    timers, ran = Timers(clock), list[str]()
    timers.after(2, lambda: ran.append("late"))
    timers.after(1, lambda: ran.append("early"))
    assert timers.wait() == 1

    timers.run_due()
    assert ran == []
    clock.now += 3
    assert timers.wait() == 0
    timers.run_due()

    assert ran == ["early", "late"]
    assert timers.wait() is None


def test_a_cancelled_one_neither_runs_nor_wakes() -> None:
    clock = Clock()
    timers, ran = Timers(clock), list[str]()
    timer = timers.after(1, lambda: ran.append("cancelled"))

    timer.cancel()

    assert timers.wait() is None
    clock.now += 2
    timers.run_due()
    assert ran == []


def test_one_may_cancel_another_that_is_due_too() -> None:
    clock = Clock()
    timers, ran = Timers(clock), list[str]()
    timers.after(1, lambda: second.cancel())
    second = timers.after(1, lambda: ran.append("second"))

    clock.now += 1
    timers.run_due()

    assert ran == []


def test_one_set_by_another_waits_for_the_next_turn() -> None:
    clock = Clock()
    timers, ran = Timers(clock), list[str]()

    def set_another() -> None:
        timers.after(0, lambda: ran.append("next"))

    timers.after(0, set_another)

    timers.run_due()
    assert ran == []
    timers.run_due()

    assert ran == ["next"]
