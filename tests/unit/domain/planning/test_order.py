"""Which job goes first: priority, age, ageing, entries, arrays, and what is taken out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planner_yard import MAIN, NIGHT, START, Yard, cores, placed, pool, uid

from hatoba_scheduler.domain.planning.model import Entry, PlannerRules
from hatoba_scheduler.domain.states import WaitReason

ONE = cores(1.0)


def test_older_goes_first_whatever_came_in_first() -> None:
    yard = Yard(pool("a", 2.0))
    young, old = yard.put(ONE, name=uid(9)), yard.put(ONE, name=uid(3))
    oldest = yard.put(ONE, name=uid(1))
    assert placed(yard.plan()) == [oldest, old]
    assert list(yard.waiting) == [young]


def test_higher_priority_goes_first() -> None:
    yard = Yard(pool("a", 1.0))
    yard.put(ONE)
    urgent = yard.put(ONE, priority=1)
    assert placed(yard.plan()) == [urgent]


@pytest.mark.parametrize(("waited", "first"), [(59, "urgent"), (61, "patient")])
def test_waiting_is_worth_priority(waited: int, first: str) -> None:
    yard = Yard(pool("a", 1.0), rules=PlannerRules(ageing=60.0))
    names = {
        "patient": yard.put(ONE, name=uid(0)),
        "urgent": yard.put(ONE, name=uid(1, START + waited * 1_000_000), priority=1),
    }
    assert placed(yard.plan()) == [names[first]]


def test_a_shape_that_does_not_fit_lets_others_go() -> None:
    yard = Yard(pool("a", 2.0))
    yard.put(cores(3.0))
    small = yard.put(ONE)
    assert placed(yard.plan()) == [small]


def test_what_found_no_room_is_not_looked_at_until_something_it_could_use_is_free() -> None:
    yard = Yard(pool("a", 4.0), pool("b", 1.0))
    first, second = yard.put(cores(4.0)), yard.put(cores(4.0))
    small = yard.put(ONE)
    assert placed(yard.plan()) == [first, small]
    yard.end(small)
    assert yard.plan() == []
    yard.end(first)
    assert placed(yard.plan()) == [second]


def test_a_million_that_wait_cost_a_round_nothing() -> None:
    """One unit of work finds out that nothing is to be done, however much waits."""
    yard = Yard(pool("a", 1.0))
    for number in range(5000):
        yard.planner.put_plain(uid(number), MAIN, cores(1.0 + number % 7), 0)
    yard.planner.plan(yard.now, 10_000)
    assert not yard.planner.plan(yard.now, 1).more


@given(batches=st.lists(st.lists(st.integers(0, 40), min_size=1, unique=True), max_size=5))
def test_many_that_are_alike_go_as_each_alone_would(batches: list[list[int]]) -> None:
    alone, together = Yard(pool("a", 20.0)), Yard(pool("a", 20.0))
    for yard in (alone, together):
        yard.put(cores(2.0), name=uid(20))
    for batch in batches:
        names = list(map(uid, batch))
        together.planner.put_alike(names, MAIN, ONE, 0)
        for name in names:
            alone.planner.put_plain(name, MAIN, ONE, 0)
    assert together.planner.share(MAIN).waiting == alone.planner.share(MAIN).waiting
    plans = [yard.planner.plan(yard.now).assignments for yard in (together, alone)]
    assert placed(plans[0]) == placed(plans[1])


def test_what_is_removed_does_not_go() -> None:
    yard = Yard(pool("a", 10.0))
    names = [yard.put(ONE) for _ in range(6)]
    for name in names[1:5]:
        yard.planner.remove_plain(name, MAIN, ONE, 0)
        yard.planner.remove_plain(name, MAIN, ONE, 0)
    yard.planner.remove_plain(uid(77), MAIN, ONE, 0)
    assert placed(yard.plan()) == [names[0], names[5]]
    assert yard.planner.share(MAIN).waiting == 0


def test_what_was_removed_may_wait_again() -> None:
    yard = Yard(pool("a", 10.0))
    names = [yard.put(ONE) for _ in range(4)]
    yard.planner.remove_plain(names[2], MAIN, ONE, 0)
    yard.planner.put_plain(names[2], MAIN, ONE, 0)
    yard.planner.put_plain(names[2], MAIN, ONE, 0)
    assert placed(yard.plan()) == names


def test_many_removed_at_once_leave_the_rest_in_order() -> None:
    yard = Yard(pool("a", 1000.0))
    names = [yard.put(ONE) for _ in range(600)]
    for number, name in enumerate(names):
        if number % 3:
            yard.planner.remove_plain(name, MAIN, ONE, 0)
    assert placed(yard.plan()) == names[::3]


def test_an_array_gives_its_tasks_one_by_one_as_many_as_may_run() -> None:
    yard = Yard(pool("a", 10.0))
    entry = Entry(uid(1), MAIN, ONE, 0, [7], fresh=iter(range(100)), room=3)
    yard.planner.put(entry)
    found = yard.planner.plan(yard.now, 1000)
    assert [one.tasks for one in found.assignments] == [(7,), (0,), (1,)]
    explained = yard.planner.explain(uid(1), MAIN, ONE, 0, yard.now)
    assert explained.reason is WaitReason.MAX_PARALLEL


def test_room_that_grew_lets_the_rest_of_an_array_go() -> None:
    yard = Yard(pool("a", 10.0))
    yard.planner.put(Entry(uid(1), MAIN, ONE, 0, fresh=iter(range(100)), room=1))
    yard.planner.plan(yard.now)
    yard.planner.put(Entry(uid(1), MAIN, ONE, 0, fresh=iter(range(1, 100)), room=1))
    assert [one.tasks for one in yard.planner.plan(yard.now).assignments] == [(1,)]


def test_a_put_back_one_goes_before_its_class() -> None:
    yard = Yard(pool("a", 1.0))
    yard.put(ONE, name=uid(1))
    yard.planner.put(Entry(uid(5), MAIN, ONE, 0, [0], first=True))
    assert placed(yard.planner.plan(yard.now).assignments) == [uid(5)]


def test_a_rejected_assignment_gives_its_place_back() -> None:
    yard = Yard(pool("a", 1.0))
    yard.planner.put_plain(uid(1), MAIN, ONE, 0)
    yard.planner.put_plain(uid(2), NIGHT, ONE, 0)
    [refused] = yard.planner.plan(yard.now).assignments
    yard.planner.reject(refused)
    assert yard.planner.share(refused.queue).reserved.cpus == 0
    assert len(yard.planner.plan(yard.now).assignments) == 1


def test_a_slice_goes_on_where_the_one_before_stopped() -> None:
    whole, sliced = Yard(pool("a", 50.0)), Yard(pool("a", 50.0))
    for yard in (whole, sliced):
        for number in range(90):
            yard.put(cores(1.0 + number % 3), queue=(MAIN, NIGHT)[number % 2])
    parts: list[str] = []
    more, slices = True, 0
    while more:
        assignments, _, more = sliced.round(5)
        parts += placed(assignments)
        slices += 1
    assert parts == placed(whole.plan())
    assert slices > 10
