"""A breaker alone: when it opens, for how long, and what its one try decides."""

from __future__ import annotations

import math

import pytest

from hatoba_scheduler.control.breaker import Breaker, BreakerRules, BreakerState

RULES = BreakerRules(in_a_row=3, share=0.5, window=10, first_pause=1.0, longest_pause=4.0)


def opened(at: float = 0.0) -> Breaker:
    breaker = Breaker(RULES)
    for _ in range(3):
        assert breaker.admit(at)
        breaker.failed(at)
    return breaker


def test_it_opens_after_failures_in_a_row_and_not_before() -> None:
    breaker = Breaker(RULES)
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0)
    assert breaker.state(0.0) is BreakerState.CLOSED
    breaker.failed(0.0)
    assert breaker.state(0.0) is BreakerState.OPEN


def test_it_opens_when_half_of_the_last_calls_failed() -> None:
    breaker = Breaker(RULES)
    for _ in range(5):
        breaker.succeeded()
        breaker.failed(0.0)
    assert breaker.state(0.0) is BreakerState.OPEN


def test_while_open_nothing_is_let_through_then_one_call_tries() -> None:
    breaker = opened()
    assert breaker.wait(0.4) == pytest.approx(0.6)
    assert not breaker.admit(0.9)
    assert breaker.state(1.0) is BreakerState.HALF_OPEN
    assert breaker.admit(1.0)
    assert not breaker.admit(1.0)
    assert breaker.wait(1.0) == math.inf
    breaker.succeeded()
    assert breaker.state(1.0) is BreakerState.CLOSED
    assert breaker.admit(1.0)


def test_each_try_that_fails_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now, pauses = opened(), 0.0, []
    for _ in range(4):
        pauses.append(breaker.wait(now))
        now += breaker.wait(now)
        assert breaker.admit(now)
        breaker.failed(now)
    assert pauses == [1.0, 2.0, 4.0, 4.0]


def test_calls_that_began_before_it_opened_prolong_nothing() -> None:
    breaker = opened()
    breaker.failed(0.5)
    assert breaker.wait(0.5) == pytest.approx(0.5)


def test_a_try_that_was_given_up_lets_another_try() -> None:
    breaker = opened()
    assert breaker.admit(1.0)
    breaker.let_go()
    assert breaker.admit(1.0)
