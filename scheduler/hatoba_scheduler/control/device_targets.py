"""Which devices a job is for: found once, at its submit, and kept with it from then on."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hatoba.units import say_bytes
from hatoba.v1 import common_pb2, job_pb2
from hatoba_scheduler.convert import requirements_of
from hatoba_scheduler.domain.devices import AWS_IOT, Device, DeviceState, matches
from hatoba_scheduler.errors import FieldViolation, shown

MOST = 1000
"""Devices of one job."""
_STATES = {
    DeviceState.REVOKED: "was revoked",
    DeviceState.LEAVING: "is being decommissioned",
}
_ALONE = ("array", "gang", "placement")


@dataclass(frozen=True, slots=True)
class DeviceGrounds:
    """The devices there are, and the backend instance that runs jobs on them; empty: none does."""

    backend: str
    devices: Mapping[str, Device]


NO_DEVICES = DeviceGrounds("", {})


def aim(spec: job_pb2.JobSpec, grounds: DeviceGrounds) -> list[FieldViolation]:
    """Have a specification name its devices, in order, and their backend; or what is wrong."""
    wanted = spec.devices
    found = [*_of_message(wanted), *_of_others(spec, grounds)]
    if found:
        return found
    if not wanted.names:
        return _select(spec, grounds)
    found = [
        one
        for position, name in enumerate(wanted.names)
        for one in _of_device(f"spec.devices.names[{position}]", name, spec, grounds)
    ]
    if not found:
        _name(spec, list(wanted.names), grounds)
    return found


def _name(spec: job_pb2.JobSpec, names: list[str], grounds: DeviceGrounds) -> None:
    spec.devices.ClearField("selector")
    spec.devices.names[:] = sorted(names)
    spec.backend = grounds.backend


def _select(spec: job_pb2.JobSpec, grounds: DeviceGrounds) -> list[FieldViolation]:
    selector = requirements_of(spec.devices.selector)
    names = sorted(one.name for one in grounds.devices.values() if matches(one, selector))
    field, text = "spec.devices.selector", shown(_told(spec))
    if not names:
        remedy = "`hatoba devices list` shows names and labels"
        return [FieldViolation(field, "matches no device", "devices.none", text, remedy)]
    if len(names) > MOST:
        message = f"matches {len(names)} devices, and a job is for {MOST} at most"
        return [FieldViolation(field, message, "devices.many", text, "ask for fewer labels")]
    found = [one for name in names for one in _of_device(field, name, spec, grounds)]
    if not found:
        _name(spec, names, grounds)
    return found


def _told(spec: job_pb2.JobSpec) -> str:
    return ",".join(f"{one.key}={'|'.join(one.values)}" for one in spec.devices.selector)


def _of_message(wanted: job_pb2.JobDevices) -> Iterator[FieldViolation]:
    if bool(wanted.names) == bool(wanted.selector):
        yield FieldViolation(
            "spec.devices",
            "must have names or a selector, one of both",
            "devices.one",
            f"{len(wanted.names)} names, {len(wanted.selector)} requirements",
            "leave one out",
        )


def _of_others(spec: job_pb2.JobSpec, grounds: DeviceGrounds) -> Iterator[FieldViolation]:
    if not grounds.backend:
        yield FieldViolation(
            "spec.devices",
            "needs devices, and this server has none that take jobs",
            "devices.backend",
            "",
            'open a port for them: [devices] with `listen = "0.0.0.0:7443"` in hatoba.toml',
        )
    elif spec.backend not in ("", grounds.backend):
        yield FieldViolation(
            "spec.backend",
            f"must be {grounds.backend!r} for a job on devices",
            "devices.backend",
            shown(spec.backend),
            "leave it out",
        )
    for name in _ALONE:
        if spec.HasField(name):  # type: ignore[arg-type]
            yield _not_with(name, "")
    if spec.replicas > 1:
        yield _not_with("replicas", str(spec.replicas))


def _not_with(field: str, value: str) -> FieldViolation:
    return FieldViolation(
        f"spec.{field}",
        "is not for jobs on devices, which have one task on each",
        "devices.alone",
        value,
        "leave it out",
    )


def _of_device(
    field: str, name: str, spec: job_pb2.JobSpec, grounds: DeviceGrounds
) -> Iterator[FieldViolation]:
    device = grounds.devices.get(name)
    if device is None:
        near = difflib.get_close_matches(name, list(grounds.devices), 1)
        guess = f"did you mean {near[0]!r}? " if near else ""
        remedy = f"{guess}`hatoba devices list` shows them"
        yield FieldViolation(field, "names no device", "devices.unknown", shown(name), remedy)
    elif device.state is not DeviceState.ENROLLED:
        remedy = "leave it out, or enroll it anew"
        message = f"names a device that {_STATES[device.state]}"
        yield FieldViolation(field, message, "devices.gone", shown(name), remedy)
    elif device.transport == AWS_IOT:
        message = "names a device that is reached by AWS IoT, which carries no jobs"
        remedy = "leave it out, or have it dial this server"
        yield FieldViolation(field, message, "devices.transport", shown(name), remedy)
    else:
        yield from _of_capacity(device, spec.resources)


def _of_capacity(device: Device, want: common_pb2.Resources) -> Iterator[FieldViolation]:
    has = device.capacity
    if has.cpus and want.cpus > has.cpus:
        text = f"{want.cpus:g}"
        yield _too_much("cpus", device, f"{has.cpus:g}", text)
    if has.memory and want.memory_bytes > has.memory:
        text = say_bytes(want.memory_bytes)
        yield _too_much("memory_bytes", device, say_bytes(has.memory), text)


def _too_much(field: str, device: Device, has: str, value: str) -> FieldViolation:
    return FieldViolation(
        f"spec.resources.{field}",
        f"is more than device {device.name!r} has, which is {has}",
        "devices.room",
        value,
        "ask for less, or leave the device out",
    )
