"""Which task goes where, next."""

from __future__ import annotations

from collections import Counter

import pytest

from hatoba_scheduler.domain.capacity import Capacity, Needs, Place, PoolRoom
from hatoba_scheduler.domain.planner import Entry, Planner, QueueKey, planned_name
from hatoba_scheduler.domain.records import Resources

MAIN: QueueKey = ("default", "default")
NIGHT: QueueKey = ("default", "night")
SMALL = Needs("hosts", Resources(cpus=1.0))
LARGE = Needs("hosts", Resources(cpus=8.0))


class CountingCapacity(Capacity):
    """Counts how often a place was looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: Counter[Needs] = Counter()

    def place(self, needs: Needs) -> Place | None:
        self.looks[needs] += 1
        return super().place(needs)


class Yard:
    """A planner, and one pool with so many cores."""

    def __init__(self, cpus: float) -> None:
        self.capacity = CountingCapacity()
        self.capacity.describe("hosts", [PoolRoom("a", Resources(cpus=cpus))])
        self.planner = Planner(self.capacity)

    def put(
        self,
        uid: str,
        needs: Needs = SMALL,
        *,
        priority: int = 0,
        queue: QueueKey = MAIN,
        size: int = 1,
        room: int = 1 << 30,
    ) -> None:
        entry = Entry(uid, queue, needs, priority, fresh=iter(range(size)), room=room)
        self.planner.put(entry)

    def plan(self, limit: int = 100) -> list[str]:
        return [item.uid for item in self.planner.plan(limit)]

    def free(self, uid: str, task: int = 0) -> None:
        assert self.capacity.let_go("hosts", "a", planned_name(uid, task))
        self.planner.room_changed()


def test_higher_priority_goes_first_then_age() -> None:
    yard = Yard(10)
    yard.put("3", priority=0)
    yard.put("1", priority=0)
    yard.put("4", priority=5)
    yard.put("2", LARGE, priority=1)
    assert yard.plan(3) == ["4", "2", "1"]
    assert yard.plan() == []
    yard.free("2")
    assert yard.plan() == ["3"]


def test_a_plan_is_never_longer_than_its_limit() -> None:
    yard = Yard(10)
    yard.put("1", size=10)
    assert [len(yard.plan(4)) for _ in range(4)] == [4, 4, 2, 0]


def test_an_array_gives_its_tasks_by_index_retries_first() -> None:
    yard = Yard(10)
    yard.planner.put(Entry("1", MAIN, SMALL, 0, ready=[2, 5], fresh=iter([7, 8])))
    assert [(one.uid, one.task) for one in yard.planner.plan(10)] == [
        ("1", 2),
        ("1", 5),
        ("1", 7),
        ("1", 8),
    ]


def test_no_more_of_an_array_run_than_it_may() -> None:
    yard = Yard(10)
    yard.put("1", size=5, room=2)
    yard.put("2")
    assert yard.plan() == ["1", "1", "2"]
    yard.put("1", size=3, room=0)
    assert yard.plan() == []


def test_one_that_does_not_fit_holds_nobody_up() -> None:
    yard = Yard(2)
    yard.put("1", LARGE, priority=100)
    yard.put("2")
    yard.put("3")
    assert yard.plan() == ["2", "3"]


def test_what_does_not_fit_is_looked_at_again_when_room_changed() -> None:
    yard = Yard(8)
    yard.put("1", LARGE)
    yard.put("2", LARGE)
    assert yard.plan() == ["1"]
    looks = yard.capacity.looks[LARGE]
    for _ in range(5):
        assert yard.plan() == []
    assert yard.capacity.looks[LARGE] == looks, "nothing was looked for in vain"
    yard.free("1")
    assert yard.plan() == ["2"]


@pytest.mark.parametrize("waiting", [10, 5_000])
def test_a_plan_costs_the_same_however_many_wait(waiting: int) -> None:
    yard = Yard(4)
    for number in range(waiting):
        yard.put(f"{number:06}")
    assert len(yard.plan()) == 4
    assert yard.capacity.looks[SMALL] == 5, "four that fit and one that does not"
    yard.free("000000")
    assert yard.plan() == ["000004"]
    assert yard.capacity.looks[SMALL] == 7


def test_queues_share_by_weight() -> None:
    yard = Yard(12)
    yard.planner.share(NIGHT).weight = 3.0
    yard.put("1", size=100)
    yard.put("2", size=100, queue=NIGHT)
    assert Counter(yard.plan()) == {"1": 3, "2": 9}


def test_the_queue_that_uses_least_goes_first() -> None:
    yard = Yard(4)
    yard.planner.share(MAIN).running = 3
    yard.put("1", priority=100, size=4)
    yard.put("2", queue=NIGHT, size=4)
    assert yard.plan(3) == ["2", "2", "2"]


def test_a_full_queue_waits_and_others_go_on() -> None:
    yard = Yard(10)
    yard.planner.share(MAIN).max_running = 2
    yard.put("1", size=5)
    yard.put("2", queue=NIGHT)
    assert sorted(yard.plan()) == ["1", "1", "2"]
    assert yard.planner.share(MAIN).full
    yard.planner.share(MAIN).running -= 1
    assert yard.plan() == ["1"]


def test_a_queue_without_weight_comes_last() -> None:
    yard = Yard(3)
    yard.planner.share(NIGHT).weight = 0.0
    yard.put("1", size=2)
    yard.put("2", size=5, queue=NIGHT)
    yard.planner.share(NIGHT).running = 1
    assert yard.plan() == ["1", "1", "2"]


def test_what_was_removed_is_not_planned() -> None:
    yard = Yard(10)
    yard.put("1")
    yard.put("2")
    yard.planner.remove("1")
    yard.planner.remove("unknown")
    assert yard.plan() == ["2"]
    assert yard.planner.get("2") is None, "nothing of it waits any more"


def test_what_is_put_again_and_again_waits_once() -> None:
    yard = Yard(10)
    yard.put("1", size=3)
    assert yard.plan(1) == ["1"]
    for _ in range(3):
        yard.planner.put(Entry("1", MAIN, SMALL, 0, fresh=iter([1, 2])))
    yard.planner.remove("1")
    yard.planner.put(Entry("1", MAIN, SMALL, 0, fresh=iter([1, 2])))
    assert [one.task for one in yard.planner.plan(10)] == [1, 2]


def test_a_new_priority_queue_or_need_moves_it() -> None:
    yard = Yard(10)
    yard.put("1")
    yard.put("2")
    yard.put("2", priority=1)
    assert yard.plan(1) == ["2"]
    yard.put("1", queue=NIGHT)
    (found,) = yard.planner.plan(5)
    assert (found.uid, found.queue) == ("1", NIGHT)
    assert yard.planner.share(MAIN).running == 1


def test_places_of_one_plan_do_not_overlap() -> None:
    yard = Yard(0)
    yard.capacity.describe("hosts", [PoolRoom("g", Resources(gpus=2), ("0", "1"))])
    needs = Needs("hosts", Resources(gpus=1))
    yard.put("1", needs, size=3)
    assert [one.place.gpus for one in yard.planner.plan(5)] == [("0",), ("1",)]
