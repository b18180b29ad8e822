"""How kills are spread over failpoints."""

from __future__ import annotations

import random

from fault_points import MISS_WEIGHT, Points

from hatoba_scheduler.failpoints import POINTS, VARIABLE, arm


def test_every_point_is_armed_once_before_any_is_twice() -> None:
    points = Points(random.Random(1))
    armed = []
    for _ in POINTS:
        arm(points.next()[VARIABLE])
        armed.append(points.armed)
        points.told(reached=True)
    arm("")
    assert sorted(armed) == sorted(POINTS)
    assert points.never == []


def test_what_no_load_comes_by_is_tried_more_seldom_and_named() -> None:
    points = Points(random.Random(2))
    out_of_reach = set(sorted(POINTS)[:10])
    tries = 0
    for _ in range(len(POINTS) * (MISS_WEIGHT + 1)):
        points.next()
        tries += points.armed in out_of_reach
        points.told(reached=points.armed not in out_of_reach)
    assert points.never == sorted(out_of_reach)
    assert 10 <= tries <= 30


def test_the_same_seed_arms_the_same() -> None:
    one, other = Points(random.Random(3)), Points(random.Random(3))
    for _ in range(20):
        assert one.next() == other.next()
        one.told(reached=True)
        other.told(reached=True)
