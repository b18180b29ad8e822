"""Room that is kept for the head of a queue, and who may go before it all the same."""

from __future__ import annotations

import pytest
from planner_yard import MAIN, NIGHT, PROMPT, SECOND, Yard, cores, placed, pool

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import PlannerRules
from hatoba_scheduler.domain.records import Resources
from hatoba_scheduler.domain.states import WaitReason

HOUR = 3600.0


def occupied(
    rules: PlannerRules = PROMPT, timeout: float = HOUR, slots: int = 0
) -> tuple[Yard, str, str]:
    """Three of four cores are taken for an hour, and the head of the queue wants all four."""
    yard = Yard(PoolRoom("a", Resources(cpus=4.0, slots=slots)), rules=rules)
    running = yard.put(cores(3.0, timeout=timeout))
    yard.plan()
    head = yard.put(cores(4.0))
    yard.plan()
    return yard, running, head


def test_a_short_one_goes_before_the_head_and_a_long_one_does_not() -> None:
    yard, running, head = occupied()
    long = yard.put(cores(1.0, timeout=2 * HOUR))
    endless = yard.put(cores(1.0))
    short = yard.put(cores(1.0, timeout=HOUR / 2))
    assert placed(yard.plan()) == [short]
    yard.end(short)
    assert yard.plan() == []
    assert yard.explain(long).reason is WaitReason.RESERVED
    assert yard.explain(endless).reason is WaitReason.RESERVED
    yard.end(running)
    assert placed(yard.plan()) == [head]


def test_what_ends_too_late_by_its_limit_waits() -> None:
    yard, _, _ = occupied()
    yard.passes(HOUR / 2)
    late = yard.put(cores(1.0, timeout=HOUR / 2))
    assert yard.plan() == [], "it might end with the very second, or a bit later"
    assert yard.explain(late).reason is WaitReason.RESERVED


def test_the_head_starts_when_it_was_said_to() -> None:
    yard, running, head = occupied()
    assert yard.explain(head).estimate == yard.now + round(HOUR * SECOND)
    for _ in range(50):
        yard.put(cores(1.0, timeout=HOUR / 10))
    while yard.now < yard.running[f"{running}:0"].start + HOUR * SECOND:
        for one in list(yard.running.values()):
            if one.uid != running and yard.now >= one.start + one.timeout * SECOND:
                yard.end(one.uid)
        yard.plan()
        yard.passes(60)
    yard.end(*{one.uid for one in yard.running.values()})
    assert placed(yard.plan())[0] == head


def test_beside_what_is_kept_there_may_be_room() -> None:
    yard = Yard(pool("a", 4.0), rules=PROMPT)
    yard.put(cores(2.0, timeout=HOUR))
    yard.plan()
    head = yard.put(cores(3.0))
    yard.plan()
    beside = yard.put(cores(1.0))
    assert placed(yard.plan()) == [beside]
    yard.put(cores(1.0))
    assert yard.plan() == []
    assert head in yard.waiting


def test_nothing_is_kept_before_the_head_has_waited_for_a_moment() -> None:
    yard, _, _ = occupied(rules=PlannerRules(reserve_after=10.0))
    small = yard.put(cores(1.0))
    assert placed(yard.plan()) == [small]
    yard.passes(1)
    yard.plan()
    yard.passes(11)
    yard.end(small)
    yard.put(cores(1.0))
    assert yard.plan() == []


def test_where_nobody_knows_when_it_ends_a_place_is_drained_after_a_while() -> None:
    yard, _, head = occupied(timeout=0.0)
    first = yard.put(cores(1.0))
    assert placed(yard.plan()) == [first]
    yard.end(first)
    yard.passes(PROMPT.patience + 10)
    late = yard.put(cores(1.0, timeout=1.0))
    assert yard.plan() == []
    assert yard.explain(late).reason is WaitReason.RESERVED
    assert yard.explain(head).estimate is None


def test_what_the_head_does_not_want_is_free_for_all() -> None:
    """A place that is drained for cores has other things to give."""
    yard, _, _ = occupied(timeout=0.0, slots=2)
    yard.passes(PROMPT.patience + 10)
    yard.plan()
    yard.put(cores(1.0))
    other = cores(0.0)
    slot = yard.put(other._replace(resources=other.resources._replace(slots=1)))
    assert placed(yard.plan()) == [slot]


def test_a_higher_priority_goes_before_what_is_kept() -> None:
    yard, _, _ = occupied()
    urgent = yard.put(cores(1.0), priority=500)
    assert placed(yard.plan()) == [urgent]


def test_the_same_priority_of_another_queue_does_not() -> None:
    yard, _, _ = occupied()
    yard.put(cores(2.0))
    yard.plan()
    late = yard.put(cores(1.0), queue=NIGHT)
    assert yard.plan() == []
    assert yard.explain(late).reason is WaitReason.RESERVED


def test_nothing_is_kept_for_a_head_that_is_gone() -> None:
    yard, _, head = occupied()
    small = yard.put(cores(1.0))
    assert yard.plan() == []
    yard.planner.remove_plain(head, MAIN, cores(4.0), 0)
    assert placed(yard.plan()) == [small]


def test_nothing_is_kept_on_a_pool_that_takes_no_more() -> None:
    yard, _, head = occupied()
    yard.put(cores(1.0))
    assert yard.plan() == []
    yard.planner.describe("hosts", [pool("b", 4.0)])
    assert placed(yard.plan()) == [head]


def test_as_many_heads_as_the_rules_say_have_room_kept() -> None:
    rules = PlannerRules(reservations=2, reserve_after=0.0)
    yard = Yard(*(pool(name, 4.0) for name in "abc"), rules=rules)
    for _ in range(3):
        yard.put(cores(3.0, timeout=HOUR))
    yard.plan()
    for number in range(3):
        yard.put(cores(4.0), queue=("default", f"q{number}"))
    yard.put(cores(3.5), queue=("default", "q0"))
    yard.plan()
    yard.plan()
    for _ in range(3):
        yard.put(cores(1.0), queue=("default", "small"))
    assert len(yard.plan()) == 1, "two of three pools are kept"


def test_a_gang_has_room_kept_on_several_pools() -> None:
    yard = Yard(pool("a", 4.0), pool("b", 4.0), rules=PROMPT)
    one, two = yard.put(cores(3.0, timeout=HOUR)), yard.put(cores(3.0, timeout=2 * HOUR))
    yard.plan()
    gang = yard.put(cores(4.0, members=2))
    yard.plan()
    yard.put(cores(1.0))
    assert yard.plan() == []
    assert yard.explain(gang).estimate == yard.now + round(2 * HOUR * SECOND)
    yard.end(one)
    assert yard.plan() == []
    yard.end(two)
    assert placed(yard.plan()) == [gang]


@pytest.mark.parametrize("smaller", [True, False])
def test_room_is_kept_only_while_somebody_else_could_take_it(smaller: bool) -> None:
    """Where all need the same, the order of queues decides alone."""
    yard, running, _ = occupied()
    other = yard.put(cores(1.0 if smaller else 4.0), queue=NIGHT)
    yard.plan()
    yard.end(running)
    assert (placed(yard.plan()) == [other]) is not smaller
