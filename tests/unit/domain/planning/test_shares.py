"""Between queues: weights, the tree, limits, guarantees, what was used before, cordons."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

import pytest
from planner_yard import MAIN, NIGHT, SECOND, START, Yard, cores, placed, pool, uid

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import Needs, QueueKey, QueueSettings
from hatoba_scheduler.domain.records import Resources

ONE = cores(1.0)
KEYS: list[QueueKey] = [("default", name) for name in ("x", "y", "z")]
Duration = Callable[[random.Random], float]


def saturated(slots: int, duration: Duration, jobs: int = 1000) -> dict[QueueKey, float]:
    """Parts of all starts that three queues of weights 1, 2 and 3 get while all of them wait."""
    yard, chance = Yard(pool("a", float(slots))), random.Random(7)
    for number, key in enumerate(KEYS):
        yard.queue(key, weight=number + 1.0)
    for number in range(3 * jobs):
        yard.put(ONE, queue=KEYS[number % 3])
    starts: Counter[QueueKey] = Counter()
    ends: list[tuple[int, str]] = []
    while sum(starts.values()) < jobs:
        for one in yard.plan():
            starts[one.queue] += 1
            heapq.heappush(ends, (yard.now + round(duration(chance) * SECOND), one.uid))
        yard.now, name = heapq.heappop(ends)
        yard.end(name)
    return {key: starts[key] / sum(starts.values()) for key in KEYS}


@pytest.mark.parametrize("slots", [1, 6, 32, 60])
@pytest.mark.parametrize(
    "duration",
    [lambda _: 60.0, lambda chance: chance.uniform(30.0, 90.0)],
    ids=["a minute", "about a minute"],
)
def test_three_queues_under_saturation(slots: int, duration: Duration) -> None:
    shares = saturated(slots, duration)
    for number, key in enumerate(KEYS):
        assert shares[key] == pytest.approx((number + 1) / 6, abs=0.02)


def test_a_flood_in_one_queue_does_not_hold_up_another() -> None:
    yard = Yard(pool("a", 4.0))
    flood = [yard.put(ONE) for _ in range(2000)]
    yard.plan()
    [one] = [yard.put(ONE, queue=NIGHT)]
    yard.end(flood[0])
    assert placed(yard.plan()) == [one]


def test_the_dominant_share_counts_not_the_number() -> None:
    room = PoolRoom("a", Resources(cpus=10.0, memory=100))
    yard = Yard(room)
    thick = Needs(("hosts",), Resources(cpus=1.0, memory=20))
    thin = Needs(("hosts",), Resources(cpus=1.0, memory=1))
    for _ in range(10):
        yard.put(thick, queue=MAIN)
        yard.put(thin, queue=NIGHT)
    got = Counter(one.queue for one in yard.plan())
    assert got == {MAIN: 3, NIGHT: 7}, "three use 60 bytes of 100, six use 6 cpus of 10"


def test_what_was_used_before_counts() -> None:
    yard = Yard(pool("a", 2.0))
    early = [yard.put(ONE) for _ in range(2)]
    yard.plan()
    yard.passes(3600)
    yard.end(*early)
    for _ in range(4):
        yard.put(ONE, queue=MAIN)
        yard.put(ONE, queue=NIGHT)
    yard.planner.plan(yard.now, 0)
    assert yard.planner.share(MAIN).decayed == pytest.approx(0.5)
    assert Counter(one.queue for one in yard.plan()) == {NIGHT: 2}


def test_usage_is_stored_and_read_back() -> None:
    yard, other = Yard(pool("a", 2.0)), Yard(pool("a", 2.0))
    yard.put(ONE)
    yard.plan()
    yard.passes(1800)
    yard.plan()
    other.planner.restore_usage(yard.planner.usage())
    other.now = yard.now + 3600 * SECOND
    other.plan()
    before = yard.planner.share(MAIN).decayed
    assert other.planner.share(MAIN).decayed == pytest.approx(before / 2)


def test_children_share_what_their_parent_gets() -> None:
    yard = Yard(pool("a", 12.0))
    yard.queue(("default", "lab"))
    yard.queue(("default", "one"), parent=("default", "lab"), weight=2.0)
    yard.queue(("default", "two"), parent=("default", "lab"))
    for _ in range(20):
        for name in ("one", "two", "default"):
            yard.put(ONE, queue=("default", name))
    got = Counter(one.queue[1] for one in yard.plan())
    assert got == {"default": 6, "one": 4, "two": 2}
    assert yard.planner.share(("default", "lab")).used == pytest.approx(0.5)
    assert yard.planner.share(("default", "one")).fair == pytest.approx(1 / 3)


def test_jobs_may_wait_in_a_queue_with_others_below_it() -> None:
    yard = Yard(pool("a", 4.0))
    yard.queue(NIGHT, parent=MAIN)
    for _ in range(9):
        yard.put(ONE, queue=MAIN)
        yard.put(ONE, queue=NIGHT)
    assert Counter(one.queue for one in yard.plan()) == {MAIN: 2, NIGHT: 2}


def test_a_circle_of_queues_counts_as_none() -> None:
    yard = Yard(pool("a", 4.0))
    yard.queue(MAIN, parent=NIGHT)
    yard.queue(NIGHT, parent=MAIN)
    yard.queue(("default", "self"), parent=("default", "self"))
    for key in (MAIN, NIGHT, ("default", "self")):
        yard.put(ONE, queue=key)
    assert len(yard.plan()) == 3


@pytest.mark.parametrize(
    "limits",
    [
        {"quota": Resources(cpus=2.0)},
        {"max_running": 2},
        {"guaranteed": Resources(cpus=2.0), "no_borrowing": True},
    ],
)
@pytest.mark.parametrize("on", ["own", "above"])
def test_limits_hold_for_a_queue_and_all_below_it(limits: dict[str, object], on: str) -> None:
    yard = Yard(pool("a", 9.0))
    top = ("default", "top")
    yard.queue(top, **(limits if on == "above" else {}))
    yard.queue(NIGHT, parent=top, **(limits if on == "own" else {}))
    names = [yard.put(ONE, queue=NIGHT) for _ in range(5)]
    assert placed(yard.plan()) == names[:2]
    assert yard.plan() == []
    yard.end(names[0])
    assert placed(yard.plan()) == [names[2]]
    yard.queue(top if on == "above" else NIGHT, **({} if on == "above" else {"parent": top}))
    assert placed(yard.plan()) == names[3:]


def test_a_limit_leaves_room_for_what_is_smaller() -> None:
    yard = Yard(pool("a", 9.0))
    yard.queue(MAIN, quota=Resources(cpus=3.0))
    yard.put(cores(2.0))
    yard.put(cores(2.0))
    small = yard.put(ONE)
    assert placed(yard.plan())[1] == small


def test_a_gang_counts_whole_against_a_limit() -> None:
    yard = Yard(pool("a", 9.0))
    yard.queue(MAIN, max_running=3)
    one = yard.put(ONE)
    yard.plan()
    gang = yard.put(cores(1.0, members=3))
    assert yard.plan() == []
    yard.end(one)
    assert placed(yard.plan()) == [gang]


def test_a_cordoned_queue_and_those_below_it_start_nothing() -> None:
    yard = Yard(pool("a", 9.0))
    yard.queue(MAIN, cordoned=True)
    yard.queue(NIGHT, parent=MAIN)
    for key in (MAIN, NIGHT):
        yard.put(ONE, queue=key)
    other = yard.put(ONE, queue=("default", "free"))
    assert placed(yard.plan()) == [other]
    yard.queue(MAIN)
    assert len(yard.plan()) == 2


def test_a_queue_below_its_guarantee_goes_first() -> None:
    yard = Yard(pool("a", 4.0))
    yard.queue(NIGHT, guaranteed=Resources(cpus=3.0), weight=0.001)
    for _ in range(9):
        yard.put(ONE, queue=MAIN)
        yard.put(ONE, queue=NIGHT)
    assert Counter(one.queue for one in yard.plan()) == {NIGHT: 3, MAIN: 1}


def test_a_running_job_that_changes_its_queue_counts_there() -> None:
    yard = Yard(pool("a", 4.0))
    yard.queue(MAIN, max_running=1)
    first = yard.put(ONE)
    second = yard.put(ONE)
    assert placed(yard.plan()) == [first]
    yard.planner.changed(f"{first}:0", queue=NIGHT)
    assert yard.planner.share(NIGHT).reserved == Resources(cpus=1.0)
    assert placed(yard.plan()) == [second]


def test_a_dropped_queue_keeps_nothing_back() -> None:
    yard = Yard(pool("a", 4.0))
    yard.queue(NIGHT, cordoned=True, parent=MAIN)
    yard.put(ONE, queue=NIGHT)
    assert yard.plan() == []
    yard.planner.drop_queue(NIGHT)
    assert len(yard.plan()) == 1
    yard.planner.drop_queue(("default", "nobody"))


def test_what_a_queue_shows() -> None:
    yard = Yard(pool("a", 4.0))
    yard.planner.set_queue(QueueSettings(NIGHT, weight=3.0))
    first = yard.put(ONE, queue=NIGHT)
    yard.plan()
    oldest = yard.put(cores(9.0), queue=NIGHT, name=uid(50))
    yard.put(ONE, queue=MAIN, name=uid(60, START + SECOND))
    yard.put(cores(8.0), queue=NIGHT, name=uid(70))
    share = yard.planner.share(NIGHT)
    assert (share.fair, share.used, share.waiting, share.oldest) == (0.75, 0.25, 2, oldest)
    assert share.reserved == Resources(cpus=1.0)
    assert first
