"""Where a task goes: labels, spread and pack, who else is there, GPUs, spot, cost, gangs."""

from __future__ import annotations

import pytest
from planner_yard import GIB, MAIN, Yard, cores, placed, pool, where

from hatoba_scheduler.domain.capacity import PoolRoom
from hatoba_scheduler.domain.planning.model import BackendSettings, Needs
from hatoba_scheduler.domain.records import LabelRequirement, Placement, Resources
from hatoba_scheduler.domain.states import Operator, Spot, Strategy

ONE = cores(1.0)


def labelled(key: str, operator: Operator, *values: str) -> Placement:
    return Placement(require=(LabelRequirement(key, operator, values),))


@pytest.mark.parametrize(
    ("placement", "pools"),
    [
        (labelled("zone", Operator.IN, "x"), {"x1"}),
        (labelled("zone", Operator.IN, "x", "y"), {"x1", "y1"}),
        (labelled("zone", Operator.NOT_IN, "x"), {"y1", "none"}),
        (labelled("zone", Operator.EXISTS), {"x1", "y1"}),
        (labelled("zone", Operator.NOT_EXISTS), {"none"}),
        (labelled("hatoba/host", Operator.IN, "none", "gone"), {"none"}),
        (labelled("hatoba/host", Operator.NOT_IN, "none"), {"x1", "y1"}),
        (labelled("zone", Operator.IN, "z"), set()),
    ],
)
def test_required_labels(placement: Placement, pools: set[str]) -> None:
    yard = Yard(pool("x1", 1.0, zone="x"), pool("y1", 1.0, zone="y"), pool("none", 1.0))
    for _ in range(4):
        yard.put(cores(1.0, placement=placement))
    assert set(where(yard.plan())) == pools


def test_labels_that_came_later_count() -> None:
    yard = Yard(pool("a", 1.0), pool("b", 1.0))
    yard.put(cores(1.0, placement=labelled("zone", Operator.IN, "x")))
    assert yard.plan() == []
    yard.planner.describe("hosts", [pool("a", 1.0), pool("b", 1.0, zone="x")])
    assert where(yard.plan()) == ["b"]


def test_preferred_labels_come_first_and_are_no_must() -> None:
    prefer = (LabelRequirement("disk", Operator.IN, ("fast",)),)
    yard = Yard(pool("big", 8.0), pool("fast", 1.0, disk="fast"))
    for _ in range(2):
        yard.put(cores(1.0, placement=Placement(prefer=prefer)))
    assert where(yard.plan()) == ["fast", "big"]


@pytest.mark.parametrize(
    ("strategy", "pools"),
    [(Strategy.SPREAD, ["c", "b", "c"]), (Strategy.PACK, ["a", "b", "b"])],
)
def test_spread_takes_the_emptiest_and_pack_the_fullest(
    strategy: Strategy, pools: list[str]
) -> None:
    yard = Yard(pool("a", 1.0), pool("b", 3.0), pool("c", 4.0))
    for _ in range(3):
        yard.put(cores(1.0, placement=Placement(strategy=strategy)))
    assert where(yard.plan()) == pools


def test_apart_from_keeps_away_from_live_jobs_with_the_label() -> None:
    team = (("team", "vision"),)
    yard = Yard(pool("a"), pool("b"))
    yard.put(ONE, labels=team)
    [there] = where(yard.plan())
    for _ in range(2):
        yard.put(cores(1.0, placement=Placement(apart_from=team)), labels=team)
    first = yard.plan()
    assert where(first) == [{"a": "b", "b": "a"}[there]]
    assert yard.plan() == [], "both have one now"
    yard.end(*placed(first))
    assert len(yard.plan()) == 1


def test_what_is_only_planned_may_have_any_label() -> None:
    team = (("team", "vision"),)
    yard = Yard(pool("a"))
    yard.put(ONE)
    yard.put(cores(1.0, placement=Placement(apart_from=team)))
    assert len(yard.plan()) == 1
    assert len(yard.plan()) == 1, "it had another label"


def test_near_waits_for_company() -> None:
    yard = Yard(pool("a"), pool("b"))
    near = yard.put(cores(1.0, placement=Placement(near=(("role", "db"),))))
    assert yard.plan() == []
    yard.put(ONE, labels=(("role", "db"),))
    [there] = where(yard.plan())
    found = yard.plan()
    assert (placed(found), where(found)) == ([near], [there])


def test_apart_gives_each_task_a_host_of_its_own() -> None:
    yard = Yard(pool("a"), pool("b"))
    needs = cores(1.0, placement=Placement(apart=True))._replace(owner="job", members=2)
    name = yard.put(needs, name="job")
    assert sorted(where(yard.plan())) == ["a", "b"]
    yard.end(name)
    yard.put(needs._replace(members=3), name="job")
    assert yard.plan() == []


def test_avoided_hosts_are_left_alone_while_another_could_take_it() -> None:
    yard = Yard(pool("a", 8.0), pool("b", 4.0))
    needs = cores(4.0)._replace(avoid=("a",))
    first = yard.put(needs)
    assert where(yard.plan()) == ["b"]
    yard.put(needs)
    assert yard.plan() == [], "b could take it, later"
    yard.planner.describe("hosts", [pool("a", 8.0), pool("b", 2.0)])
    assert where(yard.plan()) == ["a"]
    assert first


def gpus(name: str, *ids: str) -> PoolRoom:
    return PoolRoom(name, Resources(8.0, 64 * GIB, len(ids), 32), ids)


def test_each_gpu_belongs_to_one_attempt() -> None:
    yard = Yard(gpus("box", "0", "1", "2"))
    needs = Needs(("hosts",), Resources(gpus=2))
    pair = yard.put(needs)
    single = yard.put(needs._replace(resources=Resources(gpus=1)))
    yard.put(needs._replace(resources=Resources(gpus=1)))
    found = yard.plan()
    assert [one.places[0].gpus for one in found] == [("0", "1"), ("2",)]
    yard.end(pair)
    assert [one.places[0].gpus for one in yard.plan()] == [("0",)]
    assert single


def test_a_gpu_that_vanished_is_not_given_and_not_counted() -> None:
    yard = Yard(gpus("box", "0", "1"))
    one_gpu = Needs(("hosts",), Resources(gpus=1))
    first = yard.put(one_gpu)
    yard.plan()
    yard.planner.describe("hosts", [gpus("box", "1")])
    yard.put(one_gpu)
    assert yard.plan() == [], "as many are held as there are"
    yard.end(first)
    assert [one.places[0].gpus for one in yard.plan()] == [("1",)]


def test_named_things_are_counted() -> None:
    room = PoolRoom("a", Resources(cpus=8.0, named=(("license", 2),)))
    yard = Yard(room)
    for _ in range(3):
        yard.put(Needs(("hosts",), Resources(cpus=1.0, named=(("license", 1),))))
    assert len(yard.plan()) == 2
    yard.put(Needs(("hosts",), Resources(cpus=1.0, named=(("dongle", 1),))))
    assert yard.plan() == []


@pytest.mark.parametrize(
    ("spot", "pools"),
    [
        (Spot.ALLOW, ["big", "big"]),
        (Spot.ONLY, ["spot"]),
        (Spot.PREFER, ["spot", "big"]),
        (Spot.NEVER, ["big", "big"]),
    ],
)
def test_spot(spot: Spot, pools: list[str]) -> None:
    yard = Yard(pool("big", 8.0), pool("spot", 1.0, spot="true"))
    for _ in range(2):
        yard.put(ONE._replace(spot=spot))
    assert where(yard.plan()) == pools


def test_secrets_and_the_submitters_interpreter() -> None:
    here = PoolRoom("here", Resources(cpus=1.0), embedded=True)
    safe = PoolRoom("safe", Resources(cpus=1.0), secrets=frozenset({"db"}))
    yard = Yard(pool("a", 9.0), here, safe)
    yard.put(ONE._replace(embedded_only=True))
    yard.put(ONE._replace(secrets=("db",)))
    assert where(yard.plan()) == ["here", "safe"]


def test_the_cheapest_backend_that_fits() -> None:
    yard = Yard()
    yard.planner.set_backend(BackendSettings("dear", cost_per_hour=9.0))
    yard.planner.set_backend(BackendSettings("cheap", cost_per_hour=1.0))
    yard.planner.describe("dear", [pool("d", 9.0)])
    yard.planner.describe("cheap", [pool("c", 1.0)])
    for _ in range(2):
        yard.put(cores(1.0, backends=("dear", "cheap")))
    assert where(yard.plan()) == ["c", "d"]


def test_a_backend_that_takes_no_work_gets_none_until_it_does() -> None:
    yard = Yard(pool("a"))
    yard.put(ONE)
    yard.planner.set_backend(BackendSettings("hosts", available=False, reason="cordoned"))
    assert yard.plan() == []
    yard.planner.set_backend(BackendSettings("hosts"))
    assert len(yard.plan()) == 1


def test_a_backend_is_called_as_often_as_its_budget_allows() -> None:
    yard = Yard(pool("a", 8.0))
    yard.planner.set_backend(BackendSettings("hosts", slots=2))
    for _ in range(5):
        yard.put(ONE)
    assert len(yard.plan()) == 2
    yard.planner.set_backend(BackendSettings("hosts", slots=1))
    assert len(yard.plan()) == 1


def test_an_elastic_backend_takes_more_than_it_has_room_for() -> None:
    yard = Yard(pool("a", 2.0), pool("b", 2.0))
    yard.planner.set_backend(BackendSettings("hosts", elastic=True))
    for _ in range(9):
        yard.put(ONE)
    yard.put(cores(3.0))
    found = where(yard.plan())
    assert (len(found), {found.count("a"), found.count("b")}) == (9, {4, 5})


def test_a_gang_goes_whole_or_not_at_all() -> None:
    yard = Yard(pool("a", 2.0), pool("b", 1.0))
    yard.put(cores(1.0, members=4))
    assert yard.plan() == []
    three = yard.put(cores(1.0, members=3))
    [found] = yard.plan()
    assert (found.uid, found.tasks) == (three, (0, 1, 2))
    assert sorted(where([found])) == ["a", "a", "b"]
    yard.planner.describe("hosts", [pool("a", 2.0), pool("b", 1.0), pool("c", 4.0)])
    assert where(yard.plan()) == ["c"] * 4


def test_a_gang_stays_on_one_backend() -> None:
    yard = Yard()
    yard.planner.describe("one", [pool("a", 2.0)])
    yard.planner.describe("two", [pool("b", 2.0)])
    yard.put(cores(1.0, members=3, backends=("one", "two")))
    assert yard.plan() == []
    yard.planner.describe("two", [pool("b", 3.0)])
    assert where(yard.plan()) == ["b"] * 3


def test_members_of_a_gang_have_gpus_of_their_own() -> None:
    yard = Yard(gpus("box", "0", "1", "2", "3"))
    yard.put(Needs(("hosts",), Resources(gpus=2), members=2))
    [found] = yard.plan()
    assert [place.gpus for place in found.places] == [("0", "1"), ("2", "3")]


def test_what_is_held_outlives_the_pool() -> None:
    yard = Yard(pool("a", 1.0))
    held = yard.put(ONE)
    yard.plan()
    yard.planner.describe("hosts", [])
    yard.put(ONE)
    yard.planner.describe("hosts", [pool("a", 1.0)])
    assert yard.plan() == [], "it is back, and still held"
    yard.end(held)
    assert len(yard.plan()) == 1


def test_an_absent_pool_that_holds_nothing_is_forgotten() -> None:
    yard = Yard(pool("a", 1.0))
    held = yard.put(ONE)
    yard.plan()
    yard.planner.describe("hosts", [])
    assert [one.name for one in yard.planner.pools("hosts")] == ["a"]
    yard.end(held)
    assert yard.planner.pools("hosts") == []


def test_tenths_of_cores_leave_nothing_behind() -> None:
    yard = Yard(pool("a", 1.0))
    for _ in range(3):
        names = [yard.put(cores(0.1)) for _ in range(10)]
        assert len(yard.plan()) == 10
        yard.end(*names)
    assert yard.planner.pools("hosts")[0].used == Resources()
    assert yard.planner.share(MAIN).reserved == Resources()
