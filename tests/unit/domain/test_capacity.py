"""Room in words: what there is, and what is free of what is wanted."""

from __future__ import annotations

import pytest

from hatoba_scheduler.domain.capacity import PoolRoom, describe, describe_free, room_of
from hatoba_scheduler.domain.records import Resources

GIB = 1 << 30


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (Resources(), "nothing"),
        (Resources(slots=2), "2 slots"),
        (Resources(0.5, 1536 * (1 << 20), 2, 1), "0.5 cpus, 1.5 GiB, 2 gpus"),
        (Resources(named=(("license", 3),)), "3 license"),
    ],
)
def test_resources_in_words(amount: Resources, words: str) -> None:
    assert describe(amount) == words


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Resources(cpus=1.0), "2 of 16 cpus"),
        (Resources(memory=GIB, gpus=1), "0 B of 64 GiB, 0 of 1 gpus"),
        (Resources(slots=1), "512 of 512 slots"),
        (Resources(named=(("license", 1),)), "1 of 2 license"),
    ],
)
def test_what_is_free_of_what_is_wanted(wanted: Resources, words: str) -> None:
    room = PoolRoom(
        "big",
        Resources(16.0, 64 * GIB, 1, 512, (("license", 2),)),
        used=Resources(14.0, 64 * GIB, 1, 0, (("license", 1),)),
    )
    assert describe_free(room, wanted) == words


def test_an_overfull_pool_has_nothing_free() -> None:
    assert PoolRoom("a", Resources(cpus=2.0), used=Resources(cpus=4.0)).free() == Resources()


def test_the_room_of_pools_is_told_by_resource() -> None:
    big = PoolRoom(
        "big",
        Resources(16.0, 64 * GIB, 1, 512, (("license", 2),)),
        used=Resources(14.5, 64 * GIB, 1, 2, (("license", 1),)),
    )
    small = PoolRoom("small", Resources(4.0, 0, 0, 8))
    assert room_of([big, small]) == {
        "cpus": "5.5 of 20 free",
        "memory": "0 B of 64 GiB free",
        "gpus": "0 of 1 free",
        "license": "1 of 2 free",
        "slots": "518 of 520 free",
    }
    assert room_of([]) == {}
