"""What fits on a device, what its images are, and whom a selector means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from device_rows import device

from hatoba_scheduler.domain.devices import (
    MIB,
    Capacity,
    Device,
    DeviceState,
    Needs,
    Platform,
    Want,
    desired,
    matches,
    misfit,
    reach,
    roomier,
    runs,
)
from hatoba_scheduler.domain.records import LabelRequirement
from hatoba_scheduler.domain.states import Operator

TOKYO = (LabelRequirement("site", Operator.IN, ("tokyo",)),)
AMD, ARM64 = Platform("amd64"), Platform("arm64", "v8")


def test_a_set_of_wants_is_one_generation() -> None:
    one = device("a")
    two = desired(one, [Want("b", 2), Want("a", 1)])
    assert (two.generation, two.version) == (1, one.version + 1)
    assert desired(two, [Want("a", 1), Want("b", 2)]) is two
    assert desired(two, []).generation == 2
    assert two.want("b") == Want("b", 2)
    assert two.want("c") is None


def test_a_selector_means_who_is_enrolled_and_has_the_labels() -> None:
    one = device("a")
    assert matches(one, TOKYO)
    assert matches(one, ())
    assert not matches(replace(one, labels=(("site", "osaka"),)), TOKYO)
    for state in (DeviceState.REVOKED, DeviceState.LEAVING):
        assert not matches(replace(one, state=state), ())


def test_a_change_of_a_selector_is_counted_before_it_is_made() -> None:
    every = [device("a"), device("b"), replace(device("c"), labels=())]
    found = reach(every, TOKYO, {"b", "c", "gone"})
    assert (found.comes, found.stays, found.goes) == (("a",), ("b",), ("c", "gone"))


@pytest.mark.parametrize(
    ("has", "image", "does"),
    [
        (AMD, AMD, True),
        (AMD, ARM64, False),
        (ARM64, Platform("arm64"), True),
        (Platform("arm64"), ARM64, True),
        (ARM64, Platform("arm", "v7"), False),
        (Platform("arm", "v7"), Platform("arm", "v6"), True),
        (Platform("arm", "v6"), Platform("arm", "v7"), False),
        (Platform("arm"), Platform("arm", "v7"), True),
        (Platform("arm", "v7"), Platform("arm"), True),
        (Platform("arm", "v7"), Platform("arm", "v9"), False),
    ],
)
def test_which_images_a_device_runs(has: Platform, image: Platform, does: bool) -> None:
    assert runs(has, image) is does


def test_more_of_anything_is_room_and_less_is_not() -> None:
    before = device("a", capacity=Capacity(1.0, 630 * MIB, 900 * MIB, False, False))

    def after(**fields: object) -> Device:
        return replace(before, capacity=replace(before.capacity, **fields))  # type: ignore[arg-type]

    more = ({"memory": 631 * MIB}, {"disk": 0}, {"limits_memory": True}, {"images": True})
    assert all(roomier(before, after(**fields)) for fields in more)
    assert not any(roomier(after(**fields), before) for fields in more)
    assert not roomier(before, before)
    assert roomier(before, replace(before, wants=(Want("other", 2),)))
    assert roomier(before, replace(before, platform=Platform("amd64")))


def test_what_does_not_fit_is_refused_with_figures() -> None:
    small = device("a", capacity=Capacity(1.0, 630 * MIB, 900 * MIB))
    others = [Needs(memory=410 * MIB)]
    assert misfit(small, Needs(memory=220 * MIB), others) is None
    found = misfit(small, Needs(memory=410 * MIB), others)
    assert found is not None
    assert found.message == "it needs 410 MiB of memory, there are 220 MiB of 630 MiB"
    assert found.passing
    found = misfit(small, Needs(memory=700 * MIB), [])
    assert found is not None
    assert found.message == "it needs 700 MiB of memory, there are 630 MiB"
    assert not found.passing
    found = misfit(small, Needs(disk=1_000 * MIB), [])
    assert found is not None
    assert found.message == "it needs 1,000 MiB of disk, there are 900 MiB"


def test_a_wrong_image_is_refused_with_both_named() -> None:
    found = misfit(device("a"), Needs(platforms=(AMD, Platform("arm", "v7"))), [])
    assert found is not None
    assert found.message == "its image is there for amd64, arm/v7, the device is arm64/v8"
    assert not found.passing


def test_an_image_is_refused_where_nothing_runs_containers() -> None:
    bare = device("a", capacity=Capacity(images=False))
    needs = Needs(platforms=(ARM64,), image=True)
    found = misfit(bare, needs, [])
    assert found is not None
    assert "no container engine" in found.message
    assert found.passing
    assert misfit(bare, Needs(), []) is None
    assert misfit(device("a"), needs, []) is None


def test_a_limit_that_nobody_enforces_is_refused_where_one_has_to_be() -> None:
    bare = device("a", capacity=Capacity(1.0, 630 * MIB, 900 * MIB, limits_memory=False))
    assert misfit(bare, Needs(memory=MIB), []) is None
    found = misfit(bare, Needs(memory=MIB, enforced=True), [])
    assert found is not None
    assert "memory cgroup" in found.message


def test_who_says_nothing_of_its_room_is_believed_to_have_it() -> None:
    assert misfit(device("a", capacity=Capacity()), Needs(memory=1 << 40, disk=1 << 40), []) is None
