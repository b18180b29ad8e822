"""Between records of devices and the messages of the contract."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import Message

from hatoba.v1 import deployment_pb2, device_pb2, worker_pb2
from hatoba_scheduler.convert import cause_to_proto, micros, requirements_of, set_time
from hatoba_scheduler.convert_deployments import cause_of
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.device_rollouts import Group, Policy, Row, Stage, Word
from hatoba_scheduler.domain.devices import Capacity, Device, Needs, Platform, Want
from hatoba_scheduler.domain.records import LabelRequirement, Micros
from hatoba_scheduler.domain.states import CauseCode, Origin
from hatoba_scheduler.store.devices import DeviceEvent, DeviceRecord, RecordKind

NEWEST_GENERATION = 1 << 53
"""No device that is honest ever has a higher one."""
_STAGES = {
    device_pb2.SLOT_PHASE_WAITING: Stage.APPLYING,
    device_pb2.SLOT_PHASE_FETCHING: Stage.APPLYING,
    device_pb2.SLOT_PHASE_STARTING: Stage.APPLYING,
    device_pb2.SLOT_PHASE_BAKING: Stage.BAKING,
    device_pb2.SLOT_PHASE_GOOD: Stage.SUCCEEDED,
    device_pb2.SLOT_PHASE_BAD: Stage.FAILED,
}
_CANNOT_BE = frozenset(
    {CauseCode.IMAGE_ARCHITECTURE, CauseCode.IMAGE_MISSING, CauseCode.NO_CAPACITY}
)
"""Why a device refuses a revision before it runs anything of it."""
_KINDS = {
    "log": RecordKind.LOG,
    "figure": RecordKind.FIGURE,
    "happening": RecordKind.HAPPENING,
    "prediction": RecordKind.PREDICTION,
}
_ASKED = {
    device_pb2.DEVICE_RECORD_KIND_LOG: RecordKind.LOG,
    device_pb2.DEVICE_RECORD_KIND_FIGURE: RecordKind.FIGURE,
    device_pb2.DEVICE_RECORD_KIND_HAPPENING: RecordKind.HAPPENING,
    device_pb2.DEVICE_RECORD_KIND_PREDICTION: RecordKind.PREDICTION,
}


class Targets(NamedTuple):
    """Which devices a deployment is for, and how revisions go to them."""

    selector: tuple[LabelRequirement, ...]
    policy: Policy
    unenforced: bool
    """A limit on memory may be one that only the agent enforces."""


# -- deployments to devices ------------------------------------------------------------------------


def targets_of(spec: deployment_pb2.DeploymentSpec) -> Targets:
    """The records of what a specification with defaults says of devices."""
    told = spec.devices
    policy = Policy(
        groups=tuple(_group(one) for one in told.groups),
        per_minute=told.per_minute,
        growth=told.growth or 1.0,
        growth_after=told.growth_after,
        go_on_share=told.go_on_share,
        group_wait=told.group_wait.ToMicroseconds(),
        abort_share=told.abort_share,
        abort_least=told.abort_least,
        rollback=not spec.strategy.no_rollback,
        retries=told.retries,
        retry_wait=told.retry_wait.ToMicroseconds(),
        offer_deadline=told.offer_deadline.ToMicroseconds(),
        apply_deadline=told.apply_deadline.ToMicroseconds(),
        bake=spec.strategy.bake.ToMicroseconds(),
        # What was deployed before this could be said does not say it.
        approve_deadline=told.approve_deadline.ToMicroseconds() or Policy().approve_deadline,
    )
    return Targets(requirements_of(told.selector), policy, told.allow_unenforced_limits)


def _group(told: deployment_pb2.DeviceGroup) -> Group:
    return Group(told.percent, told.devices, requirements_of(told.require), told.approve)


def needs_of(template: worker_pb2.ReplicaSpec, targets: Targets) -> Needs:
    """What a revision asks of a device."""
    memory = template.resources.memory_bytes
    platforms = tuple(Platform(one.architecture) for one in template.images)
    enforced = bool(memory) and not targets.unenforced
    image = bool(platforms or template.serving.environment.image)
    return Needs(memory, template.model.total_bytes, platforms, enforced, image)


# -- what devices say ------------------------------------------------------------------------------


def platform_of(told: device_pb2.DevicePlatform) -> Platform:
    """The record of a platform."""
    return Platform(told.architecture, told.variant)


def capacity_of(told: device_pb2.DeviceCapacity) -> Capacity:
    """The record of what a device has."""
    return Capacity(told.cpus, told.memory_bytes, told.disk_bytes, told.limits_memory, told.images)


def words_of(device: str, report: device_pb2.DeviceReport) -> dict[str, Word]:
    """What a report says of revisions that were offered, by deployment (resource name)."""
    words = {}
    for slot in report.slots:
        stage = _STAGES.get(slot.phase)
        if stage is None:
            continue
        cause = cause_of(slot.cause if slot.HasField("cause") else None)
        if cause is not None and cause.origin is Origin.USER:
            # A model that fails is the same model the next time.
            cause = changed(cause, retryable=False)
        if stage is Stage.FAILED and cause is not None and cause.code in _CANNOT_BE:
            stage = Stage.REJECTED
        words[slot.deployment] = Word(device, slot.revision, stage, slot.tries, cause)
    return words


def records_of(told: device_pb2.DeviceRecords, newest: int) -> list[DeviceRecord]:
    """The records of what a device kept behind `newest`, the newest position that is stored. What
    is missing there is a gap, and so is what is of no kind that we know."""
    found: list[DeviceRecord] = []
    last, end = newest, told.first + len(told.records) - 1
    for position, one in enumerate(told.records, told.first):
        if position > newest and (kind := one.WhichOneof("record")) is not None:
            found += _gap(last, position - 1, one)
            found.append(_record(position, kind, one))
            last = position
    return found + _gap(last, end, told.records[-1])


def _gap(last: int, end: int, near: device_pb2.DeviceRecord) -> list[DeviceRecord]:
    """What is missing behind a position up to another one, if anything is."""
    if end <= last:
        return []
    return [DeviceRecord(end, micros(near.time), RecordKind.GAP, "", b"", end - last)]


def _record(position: int, kind: str, one: device_pb2.DeviceRecord) -> DeviceRecord:
    body = getattr(one, kind)
    deployment = getattr(body, "deployment", "")
    data = _without_bodies(body).SerializeToString()
    return DeviceRecord(position, micros(one.time), _KINDS[kind], deployment, data)


def _without_bodies(body: Message) -> Message:
    """What was asked of a model and answered stands in its dataset, and nowhere else."""
    if not isinstance(body, device_pb2.DevicePrediction):
        return body
    kept = device_pb2.DevicePrediction()
    kept.CopyFrom(body)
    kept.ClearField("captured")
    return kept


def log_to_proto(record: DeviceRecord) -> device_pb2.DeviceLog:
    """The message of a line that a device sent, or of a gap."""
    line = device_pb2.DeviceLogLine.FromString(record.body)
    out = device_pb2.DeviceLog(
        position=record.position,
        deployment=line.deployment,
        text=line.text,
        lost=record.lost,
        trimmed=record.trimmed,
    )
    set_time(out.time, record.time)
    return out


def kind_of(asked: device_pb2.DeviceRecordKind.ValueType) -> RecordKind:
    """Which records are asked for. KeyError for no kind."""
    return _ASKED[asked]


def record_to_proto(record: DeviceRecord) -> device_pb2.StoredDeviceRecord:
    """The message of a record that a device sent, or of a gap."""
    out = device_pb2.StoredDeviceRecord(
        position=record.position, lost=record.lost, trimmed=record.trimmed
    )
    set_time(out.record.time, record.time)
    if record.kind is not RecordKind.GAP:
        field = next(name for name, kind in _KINDS.items() if kind is record.kind)
        getattr(out.record, field).ParseFromString(record.body)
    return out


# -- what callers see ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownDevice:
    """A device as callers see it."""

    device: Device
    connected: bool
    explanation: str


def device_etag(device: Device) -> str:
    """Changes with labels and state."""
    labels = ",".join(f"{key}={value}" for key, value in device.labels)
    return f"v{device.state:d}-{device.identity[:8]}-{_short_hash(labels)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def device_to_proto(shown: ShownDevice) -> device_pb2.Device:
    """The message of a device."""
    one = shown.device
    out = device_pb2.Device(
        name=one.resource,
        state=device_pb2.DeviceState.ValueType(one.state),
        connected=shown.connected,
        labels=dict(one.labels),
        acked=one.acked,
        settled=one.reported,
        boot_id=one.boot_id,
        agent=one.agent,
        transport=one.transport,
        etag=device_etag(one),
        explanation=shown.explanation,
    )
    out.platform.architecture, out.platform.variant = one.platform
    has = one.capacity
    out.capacity.cpus, out.capacity.memory_bytes = has.cpus, has.memory
    out.capacity.disk_bytes, out.capacity.limits_memory = has.disk, has.limits_memory
    out.capacity.images = has.images
    out.desired.generation = one.generation
    for want in one.wants:
        out.desired.wants.add(deployment=want.deployment, revision=want.revision, tries=want.tries)
    if one.report:
        out.report.MergeFromString(one.report)
    set_time(out.create_time, one.create_time)
    set_time(out.last_seen, one.last_seen)
    set_time(out.certificate_expire_time, one.certificate_end)
    return out


def row_to_proto(row: Row, *, connected: bool) -> device_pb2.RolloutDevice:
    """The message of a device on the way to a revision."""
    out = device_pb2.RolloutDevice(
        device=f"devices/{row.device}",
        group=row.group,
        stage=device_pb2.DeviceStage.ValueType(row.stage),
        tries=row.tries,
        connected=connected,
    )
    if row.cause is not None:
        out.cause.CopyFrom(cause_to_proto(row.cause))
    set_time(out.since, row.since)
    set_time(out.due, row.due)
    return out


def event_to_proto(event: DeviceEvent) -> device_pb2.DeviceEvent:
    """The message of something that happened to a device."""
    out = device_pb2.DeviceEvent(
        seq=event.seq, kind=event.kind, message=event.message, actor=event.actor
    )
    set_time(out.time, event.time)
    return out


# -- what is told to a device ----------------------------------------------------------------------


def desired_to_proto(
    generation: int, wants: Iterable[device_pb2.DeviceWant | None]
) -> device_pb2.DeviceDesired:
    """The document of what is wanted of a device; what nobody knows any more is left out."""
    known = [one for one in wants if one is not None]
    return device_pb2.DeviceDesired(generation=generation, wants=known)


def leaving_proto(desired: device_pb2.DeviceDesired) -> device_pb2.DeviceDesired:
    """The same for a device that is about to be forgotten."""
    leaving = device_pb2.DeviceDesired()
    leaving.CopyFrom(desired)
    leaving.leaving = True
    return leaving


def want_to_proto(
    want: Want, template: worker_pb2.ReplicaSpec, bake: Micros
) -> device_pb2.DeviceWant:
    """The message of one want."""
    out = device_pb2.DeviceWant(
        deployment=want.deployment, revision=want.revision, tries=want.tries, spec=template
    )
    out.spec.revision = want.revision
    out.bake.FromMicroseconds(bake)
    return out
