"""Devices, and what each is to run: records, the composed set of wants, and what fits where.

A device is told one set of wants with one generation, never a queue of updates: whoever was away
for two weeks is told only the newest. Times are microseconds since 1970, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.planning.kinds import holds
from hatoba_scheduler.domain.records import LabelRequirement, Micros

MIB = 1 << 20
GRPC = "grpc"
AWS_IOT = "aws-iot"


class DeviceState(IntEnum):
    """What a device may do, as the contract numbers it; whether it is connected is apart."""

    ENROLLED = 1
    REVOKED = 2
    """Its certificates are refused; what it runs is its own affair."""
    LEAVING = 3
    """Being decommissioned: it is told to run nothing, and forgotten once it says so."""


class Platform(NamedTuple):
    """What images for a device are made for: `arm64`, or `arm` with the variant `v7`."""

    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.architecture}/{self.variant}" if self.variant else self.architecture


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a device has for our work; 0: it did not say.

    `limits_memory`: its kernel enforces limits, which it does not where the memory cgroup is off.
    `images`: it has a container engine.
    """

    cpus: float = 0.0
    memory: int = 0
    disk: int = 0
    limits_memory: bool = True
    images: bool = True


class Want(NamedTuple):
    """One deployment's revision on one device; `tries` grows with each time it is offered anew."""

    deployment: str
    revision: int
    tries: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """One device. Every write grows `version`, which guards it; `generation` grows with `wants`.

    `acked` is the newest generation that it took up, `reported` the newest that it has done all of.
    """

    name: str
    state: DeviceState
    labels: tuple[tuple[str, str], ...]
    platform: Platform
    capacity: Capacity
    version: int
    generation: int = 0
    wants: tuple[Want, ...] = ()
    acked: int = 0
    reported: int = 0
    boot_id: str = ""
    agent: str = ""
    """Version of its agent."""
    transport: str = ""
    """How it reaches us: `grpc` or `aws-iot`."""
    create_time: Micros = 0
    last_seen: Micros = 0
    identity: str = ""
    """Stands in its certificates; another one after it was enrolled anew, so that those of before
    are refused."""
    certificate_end: Micros = 0
    """When the newest certificate that it was given ends."""
    certificate_since: Micros = 0
    """When the newest that it has shown begins: what is older is not taken any more."""
    installation: str = ""
    """Its data directory, as it said first: who shows its certificate from another is a clone."""
    report: bytes = b""
    """How it is, as it told last: the contract's message, serialised."""

    @property
    def resource(self) -> str:
        """`devices/NAME`."""
        return f"devices/{self.name}"

    @property
    def behind(self) -> bool:
        """It has not done all that is wanted of it."""
        return self.reported < self.generation

    def want(self, deployment: str) -> Want | None:
        """What it is to run of a deployment."""
        return next((one for one in self.wants if one.deployment == deployment), None)


def matches(device: Device, selector: Iterable[LabelRequirement]) -> bool:
    """Whether a device is meant; one that is to leave, or was revoked, never is."""
    if device.state is not DeviceState.ENROLLED:
        return False
    labels = dict(device.labels)
    return all(holds(one, labels.get(one.key)) for one in selector)


def desired(device: Device, wants: Iterable[Want]) -> Device:
    """The device with this set of wants, as a newer generation where that is another one."""
    composed = tuple(sorted(wants))
    if composed == device.wants:
        return device
    return changed(
        device, wants=composed, generation=device.generation + 1, version=device.version + 1
    )


# -- what fits ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Needs:
    """What a revision asks of a device. `disk` is what has to be fetched and unpacked; `platforms`
    are those that it has an image for, none: it needs no image.
    """

    memory: int = 0
    disk: int = 0
    platforms: tuple[Platform, ...] = ()
    enforced: bool = False
    """A limit on memory that nobody enforces is none."""
    image: bool = False
    """It runs in an image."""


class Misfit(NamedTuple):
    """Why something cannot be on a device: a sentence with figures, and whether that may change
    without another revision."""

    message: str
    passing: bool = False


def misfit(device: Device, newest: Needs, others: Iterable[Needs]) -> Misfit | None:
    """Why the newest does not fit beside what the device is to go on with; None: it does."""
    return (
        _wrong_platform(device, newest)
        or _without_engine(device, newest)
        or _unlimited(device, newest)
        or _short(device, newest, list(others))
    )


def _wrong_platform(device: Device, needs: Needs) -> Misfit | None:
    if not needs.platforms or any(runs(device.platform, one) for one in needs.platforms):
        return None
    there = ", ".join(map(str, needs.platforms))
    return Misfit(f"its image is there for {there}, the device is {device.platform}")


def _without_engine(device: Device, needs: Needs) -> Misfit | None:
    if not needs.image or device.capacity.images:
        return None
    return Misfit(
        "its model runs in an image, and the device has no container engine: install one there",
        passing=True,
    )


def _unlimited(device: Device, needs: Needs) -> Misfit | None:
    if not needs.enforced or not needs.memory or device.capacity.limits_memory:
        return None
    return Misfit(
        "its kernel enforces no limit on memory (the memory cgroup is off); switch it on, or allow"
        " limits that the agent enforces",
        passing=True,
    )


def _short(device: Device, needs: Needs, others: Sequence[Needs]) -> Misfit | None:
    has = device.capacity
    memory = has.memory - sum(one.memory for one in others)
    if has.memory and needs.memory > memory:
        return Misfit(_figures("memory", needs.memory, memory, has.memory), passing=bool(others))
    if has.disk and needs.disk > has.disk:
        return Misfit(_figures("disk", needs.disk, has.disk, has.disk), passing=True)
    return None


def roomier(before: Device, after: Device) -> bool:
    """Whether something may fit a device now that did not before: it has more of anything, is
    another one, or is to run something else."""
    had, has = before.capacity, after.capacity
    return (
        (before.platform, before.wants) != (after.platform, after.wants)
        or _more(had.memory, has.memory)
        or _more(had.disk, has.disk)
        or (has.limits_memory and not had.limits_memory)
        or (has.images and not had.images)
    )


def _more(had: int, has: int) -> bool:
    return had > 0 and (has > had or not has)


def _figures(what: str, needed: int, free: int, has: int) -> str:
    free = max(free, 0)
    of = f" of {_mib(has)}" if free != has else ""
    return f"it needs {_mib(needed)} of {what}, there are {_mib(free)}{of}"


def asked(needs: Needs, has: Capacity) -> str:
    """`410 MiB of disk (it has 8,192 MiB)`: what is asked of a device that has so much; empty
    where nothing is."""
    figures = (("disk", needs.disk, has.disk), ("memory", needs.memory, has.memory))
    return " and ".join(
        f"{_mib(needed)} of {what} (it {f'has {_mib(there)}' if there else 'told of none'})"
        for what, needed, there in figures
        if needed
    )


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f} MiB" if size >= 10 * MIB else f"{size / MIB:,.1f} MiB"


_OLDER_ARM = ("v5", "v6", "v7", "v8")


def runs(device: Platform, image: Platform) -> bool:
    """Whether a device runs an image. An ARM of 32 bits also runs what was made for older ones;
    nothing else stands for another: 64 bits do not, since kernels may lack the older mode.
    """
    if device.architecture != image.architecture:
        return False
    if device.architecture != "arm":
        return not image.variant or not device.variant or image.variant == device.variant
    if not image.variant:
        return True
    known = {name: place for place, name in enumerate(_OLDER_ARM)}
    return known.get(image.variant, len(known)) <= known.get(device.variant or "v7", -1)


# -- what a change of a selector does ---------------------------------------------------------


class Reach(NamedTuple):
    """Names of devices that come to a deployment, that stay, and that go from it."""

    comes: tuple[str, ...]
    stays: tuple[str, ...]
    goes: tuple[str, ...]


def reach(
    devices: Iterable[Device], selector: Collection[LabelRequirement], have: Collection[str]
) -> Reach:
    """What a selector means for those that have the deployment now."""
    meant = {one.name for one in devices if matches(one, selector)}
    held = set(have)
    return Reach(
        tuple(sorted(meant - held)), tuple(sorted(meant & held)), tuple(sorted(held - meant))
    )
