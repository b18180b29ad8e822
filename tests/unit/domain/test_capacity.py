"""Room: what is held, what is free, and what is said where nothing fits."""

from __future__ import annotations

import pytest

from hatoba_scheduler.domain.capacity import Capacity, Needs, Place, PoolRoom, describe
from hatoba_scheduler.domain.records import Resources

GIB = 1 << 30
ONE_CPU = Needs("hosts", Resources(cpus=1.0))
ONE_GPU = Needs("hosts", Resources(gpus=1))
SMALL = Resources(4.0, 8 * GIB, 0, 32)


def room_of(*pools: PoolRoom) -> Capacity:
    capacity = Capacity()
    capacity.describe("hosts", pools)
    return capacity


def gpu_pool(*ids: str) -> PoolRoom:
    return PoolRoom("box", Resources(8.0, 64 * GIB, len(ids), 32), ids)


def take(capacity: Capacity, needs: Needs, name: str) -> Place:
    place = capacity.place(needs)
    assert place is not None
    capacity.hold("hosts", place.pool, name, (needs.resources, place))
    return place


def test_what_is_held_is_not_free_until_it_is_let_go() -> None:
    capacity = room_of(PoolRoom("a", Resources(cpus=2.0)))
    take(capacity, ONE_CPU, "one")
    take(capacity, ONE_CPU, "two")
    assert capacity.place(ONE_CPU) is None
    assert capacity.let_go("hosts", "a", "one")
    assert take(capacity, ONE_CPU, "three").pool == "a"


def test_holding_and_letting_go_twice_is_once() -> None:
    capacity = room_of(PoolRoom("a", Resources(cpus=2.0)))
    held = (ONE_CPU.resources, Place("a", ()))
    capacity.hold("hosts", "a", "one", held)
    capacity.hold("hosts", "a", "one", held)
    assert capacity.pools("hosts")[0].free().cpus == 1.0
    assert capacity.let_go("hosts", "a", "one")
    assert not capacity.let_go("hosts", "a", "one")
    assert capacity.pools("hosts")[0].free().cpus == 2.0


def test_letting_go_of_what_nobody_knows_is_nothing() -> None:
    assert not Capacity().let_go("hosts", "a", "one")


def test_tenths_of_cores_leave_nothing_behind() -> None:
    capacity = room_of(PoolRoom("a", Resources(cpus=1.0)))
    tenth = Needs("hosts", Resources(cpus=0.1))
    for _ in range(3):
        names = [f"t{n}" for n in range(10)]
        for name in names:
            take(capacity, tenth, name)
        assert capacity.place(tenth) is None
        for name in names:
            capacity.let_go("hosts", "a", name)
    assert capacity.pools("hosts")[0].used == Resources()


def test_the_roomiest_pool_comes_first() -> None:
    capacity = room_of(
        PoolRoom("a", Resources(cpus=2.0)),
        PoolRoom("b", Resources(cpus=4.0)),
        PoolRoom("c", Resources(cpus=64.0), accepting=False),
    )
    assert [take(capacity, ONE_CPU, str(n)).pool for n in range(4)] == ["b", "b", "a", "b"]


def test_each_gpu_belongs_to_one_attempt() -> None:
    capacity = room_of(gpu_pool("0", "1", "2"))
    two = Needs("hosts", Resources(gpus=2))
    assert take(capacity, two, "pair").gpus == ("0", "1")
    assert take(capacity, ONE_GPU, "single").gpus == ("2",)
    assert capacity.place(ONE_GPU) is None
    capacity.let_go("hosts", "box", "pair")
    assert take(capacity, ONE_GPU, "next").gpus == ("0",)


def test_a_gpu_that_vanished_is_not_given_and_not_counted() -> None:
    capacity = room_of(gpu_pool("0", "1"))
    take(capacity, ONE_GPU, "one")
    capacity.describe("hosts", [gpu_pool("1")])
    assert capacity.place(ONE_GPU) is None, "as many are held as there are"
    capacity.let_go("hosts", "box", "one")
    assert take(capacity, ONE_GPU, "two").gpus == ("1",)


def test_a_shrunken_pool_is_never_below_nothing() -> None:
    capacity = room_of(PoolRoom("a", Resources(cpus=4.0)))
    for n in range(4):
        take(capacity, ONE_CPU, str(n))
    capacity.describe("hosts", [PoolRoom("a", Resources(cpus=2.0))])
    assert capacity.pools("hosts")[0].free() == Resources()
    for n in range(3):
        assert capacity.place(ONE_CPU) is None
        capacity.let_go("hosts", "a", str(n))
    assert capacity.place(ONE_CPU) is not None


def test_what_is_held_outlives_the_pool() -> None:
    capacity = room_of(PoolRoom("a", Resources(cpus=1.0)))
    take(capacity, ONE_CPU, "one")
    capacity.describe("hosts", [])
    assert capacity.place(ONE_CPU) is None
    capacity.describe("hosts", [PoolRoom("a", Resources(cpus=1.0))])
    assert capacity.place(ONE_CPU) is None, "it is back, and still held"
    capacity.let_go("hosts", "a", "one")
    assert capacity.place(ONE_CPU) is not None


def test_an_absent_pool_that_holds_nothing_is_forgotten() -> None:
    capacity = room_of(PoolRoom("a", Resources(cpus=1.0)))
    capacity.describe("hosts", [])
    assert capacity.pools("hosts") == []


def test_a_holding_may_be_known_before_its_pool() -> None:
    capacity = Capacity()
    capacity.hold("hosts", "a", "old", (ONE_CPU.resources, Place("a", ())))
    assert capacity.place(ONE_CPU) is None
    capacity.describe("hosts", [PoolRoom("a", Resources(cpus=1.5))])
    assert capacity.place(ONE_CPU) is None


@pytest.mark.parametrize(
    ("needs", "fits"),
    [
        (Needs("hosts", Resources(slots=1)), True),
        (Needs("hosts", Resources(slots=1), embedded_only=True), False),
        (Needs("hosts", Resources(slots=1), secrets=("db",)), True),
        (Needs("hosts", Resources(slots=1), secrets=("db", "s3")), False),
        (Needs("other", Resources(slots=1)), False),
        (Needs("hosts", SMALL), True),
        (Needs("hosts", Resources(memory=8 * GIB + 1)), False),
    ],
)
def test_a_place_must_suit(needs: Needs, fits: bool) -> None:
    capacity = room_of(PoolRoom("a", SMALL, secrets=frozenset({"db"})))
    assert (capacity.place(needs) is not None) == fits


def test_the_embedded_pool_has_the_submitters_interpreter() -> None:
    capacity = room_of(PoolRoom("here", SMALL, embedded=True))
    assert capacity.place(Needs("hosts", Resources(slots=1), embedded_only=True)) is not None


def busy() -> Capacity:
    capacity = room_of(
        PoolRoom("big", Resources(16.0, 64 * GIB, 1, 512), ("0",)),
        PoolRoom("small", SMALL, secrets=frozenset({"db"})),
    )
    all_but_two = Resources(14.0, 64 * GIB, 1)
    capacity.hold("hosts", "big", "job", (all_but_two, Place("big", ("0",))))
    return capacity


@pytest.mark.parametrize(
    ("needs", "sentence"),
    [
        (
            Needs("k8s", Resources(cpus=1.0)),
            "Needs 1 cpu; no host of backend 'k8s' takes work now.",
        ),
        (
            Needs("hosts", Resources(cpus=64.0, memory=GIB)),
            "Needs 64 cpus, 1 GiB; that is more than any host has "
            "(the largest, big, has 16 cpus, 64 GiB, 1 gpu).",
        ),
        (
            Needs("hosts", Resources(cpus=8.0)),
            "Needs 8 cpus; free now on big: 2 of 16 cpus.",
        ),
        (
            Needs("hosts", Resources(memory=32 * GIB, gpus=1)),
            "Needs 32 GiB, 1 gpu; free now on big: 0 B of 64 GiB, 0 of 1 gpus.",
        ),
        (
            Needs("hosts", Resources(slots=1), embedded_only=True),
            "Needs 1 slot and the submitter's own interpreter; no connected host has that.",
        ),
        (
            Needs("hosts", Resources(slots=1), secrets=("s3", "db")),
            "Needs 1 slot and the secrets s3, db; no connected host has that.",
        ),
    ],
)
def test_why_not_says_what_is_needed_and_what_is_free(needs: Needs, sentence: str) -> None:
    assert busy().why_not(needs) == sentence


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (Resources(), "nothing"),
        (Resources(slots=2), "2 slots"),
        (Resources(0.5, 1536 * (1 << 20), 2, 1), "0.5 cpus, 1.5 GiB, 2 gpus"),
    ],
)
def test_resources_in_words(amount: Resources, words: str) -> None:
    assert describe(amount) == words
