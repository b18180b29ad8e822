"""Which devices a job is for, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from device_rows import device

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.device_targets import NO_DEVICES, DeviceGrounds, aim
from hatoba_scheduler.control.terms import task_count, terms_of
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState

TOKYO = (("site", "tokyo"),)


def grounds(*devices: Device) -> DeviceGrounds:
    """These are there."""
    return DeviceGrounds("edge", {one.name: one for one in devices})


THERE = grounds(
    device("b", labels=TOKYO),
    device("a", labels=TOKYO),
    device("gone", labels=TOKYO, state=DeviceState.REVOKED),
    device("far", labels=(("site", "osaka"),), transport="aws-iot"),
    device("small", labels=(), capacity=Capacity(1.0, 64 << 20)),
)


def spec(*names: str, site: str = "") -> job_pb2.JobSpec:
    """A job for these."""
    made = job_pb2.JobSpec(name="collect", command=["true"])
    made.devices.names.extend(names)
    if site:
        made.devices.selector.add(key="site", values=[site])
    return made


def test_a_selector_becomes_the_names_of_those_that_match_now() -> None:
    wanted = spec(site="tokyo")
    assert aim(wanted, THERE) == []
    assert list(wanted.devices.names) == ["a", "b"]
    assert not wanted.devices.selector
    assert wanted.backend == "edge"
    assert task_count(wanted) == 2
    assert terms_of(wanted).devices == ("a", "b")


def test_names_are_put_in_order() -> None:
    wanted = spec("small", "a")
    assert aim(wanted, THERE) == []
    assert terms_of(wanted).devices == ("a", "small")


Change = Callable[[job_pb2.JobSpec], object]


@pytest.mark.parametrize(
    ("wanted", "change", "rule", "words"),
    [
        (spec(), None, "devices.one", "0 names, 0 requirements"),
        (spec("a", site="tokyo"), None, "devices.one", "leave one out"),
        (spec("aa"), None, "devices.unknown", "did you mean 'a'?"),
        (spec("gone"), None, "devices.gone", "was revoked"),
        (spec("far"), None, "devices.transport", "AWS IoT"),
        (spec(site="osaka"), None, "devices.transport", "AWS IoT"),
        (spec(site="mars"), None, "devices.none", "site=mars"),
        (spec("a"), lambda s: s.array.MergeFrom(job_pb2.ArraySpec(size=2)), "devices.alone", ""),
        (spec("a"), lambda s: setattr(s, "replicas", 2), "devices.alone", "one task on each"),
        (spec("a"), lambda s: setattr(s.placement, "apart", True), "devices.alone", ""),
        (spec("a"), lambda s: setattr(s, "backend", "hosts"), "devices.backend", "'edge'"),
        (
            spec("a", "small"),
            lambda s: setattr(s.resources, "memory_bytes", 1 << 30),
            "devices.room",
            "device 'small' has, which is 64",
        ),
        (spec("small"), lambda s: setattr(s.resources, "cpus", 2.0), "devices.room", "which is 1"),
    ],
)
def test_what_cannot_be_is_refused(
    wanted: job_pb2.JobSpec, change: Change | None, rule: str, words: str
) -> None:
    made = job_pb2.JobSpec()
    made.CopyFrom(wanted)
    if change is not None:
        change(made)
    before = made.SerializeToString(deterministic=True)
    found = aim(made, THERE)
    assert [one.rule for one in found][:1] == [rule]
    assert words in found[0].text()
    assert made.SerializeToString(deterministic=True) == before


def test_without_a_port_for_devices_it_says_how_to_open_one() -> None:
    (found,) = aim(spec("a"), NO_DEVICES)
    assert "[devices]" in found.remedy
