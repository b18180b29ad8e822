"""Whose place is taken, and whose is not."""

from __future__ import annotations

import pytest
from planner_yard import MAIN, NIGHT, Yard, cores, placed, pool

from hatoba_scheduler.domain.planning.model import Needs, PlannerRules
from hatoba_scheduler.domain.records import Resources
from hatoba_scheduler.domain.states import WaitReason

ONE = cores(1.0)


def full(*priorities: int, cpus: float | None = None) -> tuple[Yard, list[str]]:
    """A pool that is full of jobs of one core of these priorities."""
    yard = Yard(pool("a", cpus or float(len(priorities))))
    names = [yard.put(ONE, priority=priority) for priority in priorities]
    yard.plan()
    return yard, names


def victims(yard: Yard) -> set[str]:
    """The jobs that are to give way now."""
    _, preemptions, _ = yard.round()
    return {name.partition(":")[0] for one in preemptions for name in one.victims}


def test_the_lowest_priority_gives_way() -> None:
    yard, names = full(3, 1, 2)
    yard.put(ONE, priority=5)
    assert victims(yard) == {names[1]}


def test_nobody_of_the_same_priority_gives_way() -> None:
    yard, _ = full(3, 3)
    yard.put(ONE, priority=3)
    assert victims(yard) == set()


def test_a_gap_may_be_asked_for() -> None:
    yard = Yard(pool("a", 1.0), rules=PlannerRules(gap=10))
    name = yard.put(ONE)
    yard.plan()
    yard.put(ONE, priority=9)
    assert victims(yard) == set()
    yard.put(ONE, priority=10)
    assert victims(yard) == {name}


def test_the_one_that_loses_least_work_gives_way() -> None:
    yard, names = full(0, 0, 0)
    yard.passes(1000)
    yard.planner.changed(f"{names[0]}:0", saved=yard.now - 100_000_000)
    yard.planner.changed(f"{names[2]}:0", saved=yard.now - 900_000_000)
    yard.put(ONE, priority=1)
    assert victims(yard) == {names[0]}


def test_no_more_give_way_than_are_needed() -> None:
    yard = Yard(pool("a", 4.0))
    small = [yard.put(ONE) for _ in range(2)]
    large = yard.put(cores(2.0))
    yard.plan()
    yard.put(cores(2.0), priority=1)
    assert victims(yard) in ({large}, set(small))


def test_what_may_not_give_way_does_not() -> None:
    yard = Yard(pool("a", 1.0))
    yard.put(ONE, preemptible=False)
    yard.plan()
    yard.put(ONE, priority=9)
    assert victims(yard) == set()


def test_nobody_gives_way_where_it_would_not_help() -> None:
    yard = Yard(pool("a", 3.0))
    yard.put(ONE)
    yard.put(cores(2.0), preemptible=False)
    yard.plan()
    yard.put(cores(2.0), priority=9)
    assert victims(yard) == set()


def test_nobody_gives_way_for_what_a_limit_bars() -> None:
    yard, _ = full(0, 0)
    yard.queue(NIGHT, max_running=1)
    running = yard.put(ONE, queue=NIGHT, priority=9)
    assert victims(yard)
    yard.queue(NIGHT, cordoned=True)
    yard.put(ONE, queue=NIGHT, priority=9)
    assert victims(yard) == set()
    assert running in yard.waiting


def test_within_a_limit_the_own_lower_one_gives_way() -> None:
    yard = Yard(pool("a", 9.0))
    yard.queue(MAIN, max_running=1)
    low = yard.put(ONE)
    yard.plan()
    high = yard.put(ONE, priority=1)
    assert victims(yard) == {low}
    yard.end(low)
    assert placed(yard.plan()) == [high]


def test_a_gang_gives_way_whole() -> None:
    yard = Yard(pool("a", 2.0), pool("b", 2.0))
    gang = yard.put(cores(1.0, members=4))
    yard.plan()
    yard.put(ONE, priority=1)
    _, [preemption], _ = yard.round()
    assert preemption.victims == tuple(f"{gang}:{n}" for n in range(4))


def test_for_a_gang_enough_give_way() -> None:
    yard = Yard(*(pool(name, 1.0) for name in "abcd"))
    names = [yard.put(ONE, priority=n) for n in range(4)]
    yard.plan()
    gang = yard.put(cores(1.0, members=3), priority=9)
    assert victims(yard) == set(names[:3])
    yard.end(*names[:3])
    assert placed(yard.plan()) == [gang]


def test_the_place_is_kept_for_whom_it_was_made() -> None:
    yard, [low] = full(0)
    high = yard.put(ONE, priority=1)
    assert victims(yard) == {low}
    yard.put(ONE, priority=1)
    assert victims(yard) == set(), "nothing more is to be had"
    assert yard.explain(high).reason is WaitReason.PREEMPTING
    yard.end(low)
    assert placed(yard.plan()) == [high]


def test_a_place_is_not_kept_for_ever() -> None:
    yard = Yard(pool("a", 2.0))
    low = yard.put(cores(2.0))
    yard.plan()
    yard.put(cores(2.0), priority=1)
    assert victims(yard) == {low}
    yard.queue(MAIN, cordoned=True)
    yard.end(low)
    other = yard.put(ONE, queue=NIGHT)
    assert yard.plan() == []
    yard.passes(PlannerRules().hold + 1)
    assert placed(yard.plan()) == [other]


def test_one_that_gave_way_and_comes_back_takes_nobodys_place() -> None:
    yard, names = full(1, 0)
    yard.put(cores(2.0), priority=5)
    _, preemptions, _ = yard.round()
    yard.give_way(preemptions, dict.fromkeys(names, ONE))
    assignments, more, _ = yard.round()
    assert (len(assignments), more) == (1, ())
    assert victims(yard) == set()


def test_a_preemption_that_was_not_committed_can_be_taken_back() -> None:
    yard, [low] = full(0)
    yard.put(ONE, priority=1)
    assert victims(yard) == {low}
    yard.planner.changed(f"{low}:0", leaving=False)
    yard.passes(PlannerRules().hold + 1)
    assert victims(yard) == {low}


def test_a_queue_takes_back_what_it_is_guaranteed() -> None:
    yard = Yard(pool("a", 4.0))
    yard.queue(NIGHT, guaranteed=Resources(cpus=2.0))
    borrowed = [yard.put(ONE, priority=7) for _ in range(4)]
    yard.plan()
    names = [yard.put(ONE, queue=NIGHT) for _ in range(3)]
    _, preemptions, _ = yard.round()
    assert len(preemptions) == 2, "its guarantee is used up then"
    assert "takes back what it is guaranteed" in preemptions[0].note
    yard.give_way(preemptions, dict.fromkeys(borrowed, ONE))
    assert placed(yard.plan()) == names[:2]
    assert victims(yard) == set()


def test_no_queue_is_brought_below_its_own_guarantee() -> None:
    yard = Yard(pool("a", 3.0))
    yard.queue(MAIN, guaranteed=Resources(cpus=2.0))
    for _ in range(3):
        yard.put(ONE, queue=MAIN)
    yard.plan()
    yard.put(cores(2.0), queue=NIGHT, priority=9)
    assert victims(yard) == set()
    yard.put(ONE, queue=NIGHT, priority=9)
    assert len(victims(yard)) == 1


def test_a_bounded_number_gives_way_in_one_round() -> None:
    yard, _ = full(*[0] * 20)
    for _ in range(20):
        yard.put(ONE, priority=1)
    _, preemptions, _ = yard.round()
    assert len(preemptions) == PlannerRules().preemptions


@pytest.mark.parametrize(("priority", "uids"), [(1, 1), (0, 0)])
def test_what_is_asked_about_says_whose_place_it_would_take(priority: int, uids: int) -> None:
    yard, names = full(0)
    told = yard.ask(ONE, priority=priority)
    assert told.preempts == tuple(names[:uids])
    assert victims(yard) == set(), "it was only asked"


def test_the_note_has_its_figures() -> None:
    yard, _ = full(0)
    yard.passes(90)
    yard.put(Needs(("hosts",), Resources(cpus=1.0)), priority=4)
    _, [preemption], _ = yard.round()
    assert preemption.note == (
        "Takes the place of 1 attempt of priority 0 at most, 90 s of work not saved: "
        "it has priority 4; frees 1 cpu on a."
    )
