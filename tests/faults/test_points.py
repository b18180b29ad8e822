"""How kills are spread over failpoints."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from fault_points import BEFORE_ALL, MISSES, ONLY_ON, SLOW, SLOW_FROM, Points, reach, unmet

from hatoba_scheduler.failpoints import POINTS, VARIABLE, arm

LONG = 500
MINUTE = 60.0
BEGUN, MIDST = 3.0, 30.0
"""Seconds of a minute: schedules are due, and are not."""


def armed(points: Points, second: float) -> str:
    """The name that is armed next which is one, and which a server takes."""
    while not (next_ := points.next(MINUTE + second)).name:
        pass
    arm(next_.environ["HATOBA_FAILPOINTS"])
    arm("")
    return next_.name


@pytest.mark.parametrize("backend", ["hosts", "mock", "null"])
def test_every_point_is_armed_once_before_any_is_twice(backend: str) -> None:
    points = Points(random.Random(1), backend, LONG)
    names: list[str] = []
    # Those of schedules go before the others, which is seen in a test of its own.
    within = [name for name in reach(backend, LONG) if name != BEFORE_ALL]
    for _ in within:
        names.append(armed(points, BEGUN if len(names) < 4 else MIDST))
        points.told(reached=True)
    assert sorted(names) == within


def test_what_is_not_met_is_tried_again_and_again_and_keeps_nothing_else_from_its_turn() -> None:
    points = Points(random.Random(2), "mock", SLOW_FROM - 1)
    out_of_reach = "reap.call.after"
    tries: Counter[str] = Counter()
    for _ in range(10 * len(points.within)):
        name = armed(points, MIDST)
        tries[name] += 1
        points.told(reached=name != out_of_reach)
    others = [tries[name] for name in points.within if not name.startswith("schedule.")]
    assert tries[out_of_reach] >= MISSES * 8
    assert min(others) >= 8


def test_points_of_schedules_are_for_the_beginning_of_a_minute() -> None:
    points = Points(random.Random(3), "mock", LONG)
    assert not any(armed(points, MIDST).startswith("schedule.") for _ in range(100))
    assert all(armed(points, BEGUN).startswith("schedule.") for _ in range(100))


def test_what_takes_long_is_done_once_and_only_in_long_rounds() -> None:
    points = Points(random.Random(4), "hosts", LONG)
    found: Counter[str] = Counter()
    for _ in range(5 * LONG):
        name = armed(points, MIDST)
        found[name] += 1
        points.told(reached=True)
    slow = {name: count for name, count in found.items() if name.startswith(SLOW)}
    assert slow == dict.fromkeys(("adopt.attach.after", "adopt.attach.before"), 1)
    assert not any(name.startswith(SLOW) for name in reach("hosts", SLOW_FROM - 1))


def test_what_needs_a_round_with_no_other_job_is_armed_by_name_alone() -> None:
    points = Points(random.Random(6), "hosts", LONG)
    assert points.arm(BEFORE_ALL).environ[VARIABLE] == f"{BEFORE_ALL}:kill9@1"
    points.told(reached=True)
    assert points.hits[BEFORE_ALL] == 1
    assert BEFORE_ALL not in {armed(points, MIDST) for _ in range(5 * LONG)}


def test_the_same_seed_arms_the_same() -> None:
    one, other = (Points(random.Random(5), "mock", LONG) for _ in range(2))
    for _ in range(20):
        assert one.next(MIDST) == other.next(MIDST)
        one.told(reached=True)
        other.told(reached=True)


def test_every_point_is_within_the_reach_of_a_backend_that_is_killed_on() -> None:
    assert {*reach("hosts", LONG), *reach("mock", LONG)} == POINTS.keys()
    assert all(any(name.startswith(start) for name in POINTS) for start in ONLY_ON)


def test_a_point_that_nobody_died_at_is_wrong_in_a_long_run_and_no_other() -> None:
    everything = dict.fromkeys(POINTS, 1)
    assert unmet([("mock", LONG, everything), ("hosts", LONG, {})]) == {}
    without = {name: 1 for name in POINTS if name != "stop.call.after"}
    both = [("mock", LONG, without), ("hosts", LONG, without)]
    assert unmet(both) == {"stop.call.after": ""}
    assert all(unmet([("mock", 30, without)]).values())
    gangs = {name: 1 for name in POINTS if not name.startswith("gang.")}
    assert list(unmet([("mock", LONG, gangs)]).values()) == [
        "not on these backends, or it takes a longer round"
    ]
