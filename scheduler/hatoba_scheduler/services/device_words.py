"""Where a device is on the way to what is wanted of it, in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hatoba.v1 import device_pb2
from hatoba_scheduler.control.fleet import Fleet, unfit
from hatoba_scheduler.domain.device_rollouts import Row, Stage
from hatoba_scheduler.domain.devices import Device, DeviceState, Want, asked
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.references import short

_PHASES = {
    device_pb2.SLOT_PHASE_WAITING: "waits",
    device_pb2.SLOT_PHASE_FETCHING: "is fetched",
    device_pb2.SLOT_PHASE_STARTING: "starts",
    device_pb2.SLOT_PHASE_BAKING: "runs and has to stay healthy",
    device_pb2.SLOT_PHASE_GOOD: "runs",
    device_pb2.SLOT_PHASE_BAD: "was given up",
}
_SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


JOBS = 5
"""So many jobs are named."""


def explained(
    device: Device,
    connected: bool,
    fleets: Sequence[Fleet],
    now: Micros,
    jobs: Sequence[str] = (),
) -> str:
    """`away for 3 d; gets generation 12 (reader: digits:7) when it comes; reader: digits:7 needs
    410 MiB of disk (it has 8,192 MiB); has the job collect-3`.

    `jobs` are names of those that have something to do there.
    """
    report = device_pb2.DeviceReport.FromString(device.report)
    way = _on_the_way(device, report.slots, connected, fleets)
    parts = [_link(device, connected, now), *way, *_cannot_have(device, fleets)]
    if not connected:
        parts.extend(_to_come(device, fleets))
    parts.extend(_broken(slot) for slot in report.slots if slot.inconsistent)
    parts.extend(report.problems)
    parts.append(_working(jobs))
    return "; ".join(part for part in parts if part)


def _working(jobs: Sequence[str]) -> str:
    if not jobs:
        return ""
    more = f" and {len(jobs) - JOBS} more" if len(jobs) > JOBS else ""
    return f"has the {'jobs' if len(jobs) > 1 else 'job'} {', '.join(jobs[:JOBS])}{more}"


def _link(device: Device, connected: bool, now: Micros) -> str:
    if device.state is DeviceState.REVOKED:
        return "revoked: its certificates are refused"
    leaves = device.state is DeviceState.LEAVING
    leaving = ", is to run nothing and to be forgotten" if leaves else ""
    if connected:
        return f"connected{leaving}"
    if not device.last_seen:
        return f"never connected{leaving}"
    return f"away for {_span((now - device.last_seen) / 1e6)}{leaving}"


def _span(seconds: float) -> str:
    for size, unit in _SPANS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "less than a second"


def _on_the_way(
    device: Device,
    slots: Iterable[device_pb2.DeviceSlot],
    connected: bool,
    fleets: Sequence[Fleet],
) -> Iterable[str]:
    if device.state is DeviceState.REVOKED or not device.generation:
        return
    number = f"generation {device.generation}"
    if not device.behind:
        yield f"has done all of {number}"
    elif device.acked < device.generation:
        when = "now" if connected else "when it comes"
        yield f"gets {number} ({_listed(device.wants, fleets)}) {when}"
    else:
        yield f"works on {number}: {_progress(slots)}"


def _listed(wants: Sequence[Want], fleets: Sequence[Fleet]) -> str:
    return ", ".join(_named(want, fleets) for want in wants) or "to run nothing"


def _named(want: Want, fleets: Sequence[Fleet]) -> str:
    name = want.deployment.rpartition("/")[2]
    fleet = next((one for one in fleets if one.name == want.deployment), None)
    revision = fleet.live.revisions.get(want.revision) if fleet is not None else None
    if revision is None:
        return f"{name}: revision {want.revision}"
    return f"{name}: {short(revision.model_version)}"


def _progress(slots: Iterable[device_pb2.DeviceSlot]) -> str:
    return ", ".join(_slot(slot) for slot in slots) or "it has not said how"


def _slot(slot: device_pb2.DeviceSlot) -> str:
    name = slot.deployment.rpartition("/")[2]
    if slot.phase == device_pb2.SLOT_PHASE_REMOVED:
        return f"{name}: is ended"
    why = f" ({slot.cause.message})" if slot.HasField("cause") and slot.cause.message else ""
    running = f", revision {slot.running} runs" if slot.running not in (0, slot.revision) else ""
    return f"{name}: revision {slot.revision} {_PHASES.get(slot.phase, 'is unknown')}{why}{running}"


def _broken(slot: device_pb2.DeviceSlot) -> str:
    name = slot.deployment.rpartition("/")[2]
    return f"{name}: nothing runs, what was good before does not come up either"


def _to_come(device: Device, fleets: Sequence[Fleet]) -> Iterable[str]:
    """What the newest asks of a device that is away, judged by what it had when it was seen."""
    for fleet in fleets:
        row, rollout = fleet.rows.get(device.name), fleet.live.deployment.rollout
        if row is None or rollout is None or row.stage not in _COMES:
            continue
        named = _named(Want(fleet.name, rollout.to_revision), fleets)
        found = unfit(fleet, fleets, device)
        if found is not None:
            yield f"{named} would not fit: {found.message}"
        elif needs := asked(fleet.needs(rollout.to_revision), device.capacity):
            yield f"{named} needs {needs}"


_COMES = (Stage.WAITING, Stage.OFFERED, Stage.NOT_REACHED)


def _cannot_have(device: Device, fleets: Sequence[Fleet]) -> Iterable[str]:
    for fleet in fleets:
        row = fleet.rows.get(device.name)
        if row is None or row.cause is None or not row.stage.bad:
            continue
        verb = "cannot be here" if row.stage is Stage.REJECTED else "failed here"
        why = f"the newest {fleet.live.deployment.name} {verb}: {row.cause.message}"
        yield f"{why}{_when_again(fleet, row)}"


def _when_again(fleet: Fleet, row: Row) -> str:
    """What has it tried again, where anything does."""
    if not fleet.offers:
        return ""
    if row.refused:
        passes = row.cause is not None and row.cause.retryable
        return " (it is offered once that is different)" if passes else ""
    name = fleet.live.deployment.name
    return f" (`hatoba deployments retry {name} --device {row.device}` has it tried again)"
