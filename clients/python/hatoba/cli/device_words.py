"""What people read of a device: how it is, why, and what is wrong with it. Pure: records in, text
out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from hatoba.aio import short_name
from hatoba.cli.output import age, moment
from hatoba.units import say_bytes
from hatoba.v1 import device_pb2

Rows = list[tuple[str, str]]
LOW_DISK = 256 << 20
"""Bytes of a disk below which little can be brought to a device."""
SOON = 7 * 86_400.0
"""Seconds before its end in which a certificate should long have been renewed."""
AWAY_HELP = "it dials out to us: look at its power, its network, its clock, and its agent's log"
NO_LIMITS_HELP = (
    "switch the memory cgroup on in its kernel's command line, for example "
    "`cgroup_enable=memory cgroup_memory=1`, or deploy with --allow-unenforced-limits"
)


def state_of(device: device_pb2.Device) -> str:
    """Its state without its prefix."""
    return device_pb2.DeviceState.Name(device.state).removeprefix("DEVICE_STATE_")


def link(device: device_pb2.Device) -> str:
    """Whether it is connected: `connected`, `away 3d02h`, `never came`."""
    if device.connected:
        return "connected"
    return f"away {age(device.last_seen)}" if came(device) else "never came"


def came(device: device_pb2.Device) -> bool:
    """Whether it ever connected since it was enrolled: an agent says its version first of all."""
    return bool(device.agent and device.last_seen.seconds)


def platform(device: device_pb2.Device) -> str:
    """What it is made for: `arm/v7`; a dash when it did not say."""
    one = device.platform
    return "/".join(part for part in (one.architecture, one.variant) if part) or "-"


def generations(device: device_pb2.Device) -> str:
    """How far it is: `11/12`, done of wanted; a dash where nothing ever was."""
    wanted = device.desired.generation
    return f"{device.settled}/{wanted}" if wanted else "-"


def behind(device: device_pb2.Device) -> bool:
    """Whether something is wanted of it that it has not done."""
    return device.settled < device.desired.generation


def labels(device: device_pb2.Device) -> str:
    """`ring=canary site=tokyo`; a dash without any."""
    return " ".join(f"{key}={value}" for key, value in sorted(device.labels.items())) or "-"


def totals(found: Sequence[device_pb2.Device]) -> str:
    """A line below a list: how many, connected, and with something left to do."""
    here = sum(device.connected for device in found)
    late = sum(behind(device) for device in found)
    many = "1 device" if len(found) == 1 else f"{len(found):,} devices"
    line = f"{many}: {here:,} connected, {len(found) - here:,} away; {late:,} with something to do"
    return line + _agents(found)


def _agents(found: Sequence[device_pb2.Device]) -> str:
    """`; agents 0.2.0 (37), 0.1.0 (2)`, the most first; empty while all are of one version."""
    versions = Counter(device.agent for device in found if device.agent)
    if len(versions) < 2:
        return ""
    return "; agents " + ", ".join(f"{name} ({count:,})" for name, count in versions.most_common())


def seen(device: device_pb2.Device) -> str:
    """When it was heard last; a dash when it never came."""
    return moment(device.last_seen) if came(device) else "-"


def device_rows(device: device_pb2.Device, *, wide: bool = False) -> Rows:
    """What the screen of one device says, the most wanted first."""
    rows = [
        *explanation_rows(device),
        ("platform", platform(device)),
        ("has", capacity(device)),
        ("labels", labels(device)),
        ("agent", _agent(device)),
        ("certificate", _until(device)),
        ("enrolled", moment(device.create_time)),
    ]
    if wide:
        rows += [("boot id", device.boot_id), ("etag", device.etag)]
    return rows


def explanation_rows(device: device_pb2.Device) -> Rows:
    """Where it is on the way to what is wanted, and why it is not there."""
    return [
        ("because", device.explanation),
        ("generation", _generation(device)),
        ("wanted", "\n".join(want_line(one) for one in device.desired.wants)),
        ("runs", "\n".join(slot_line(one) for one in device.report.slots if one.running)),
        ("not running", "\n".join(filter(None, map(stuck_line, device.report.slots)))),
        ("problems", "\n".join(device.report.problems)),
    ]


def _generation(device: device_pb2.Device) -> str:
    wanted = device.desired.generation
    if not behind(device):
        return f"{wanted}, done" if wanted else ""
    return f"{wanted} is wanted, {device.acked} taken up, {device.settled} done"


def want_line(want: device_pb2.DeviceWant) -> str:
    """What is wanted: `shelf revision 3`, with the number of tries after the first."""
    again = f", offered anew {want.tries} times" if want.tries else ""
    return f"{short_name(want.deployment)} revision {want.revision}{again}"


def phase(slot: device_pb2.DeviceSlot) -> str:
    """Where a slot stands, in a word."""
    return device_pb2.SlotPhase.Name(slot.phase).removeprefix("SLOT_PHASE_").lower()


def slot_line(slot: device_pb2.DeviceSlot) -> str:
    """What runs: `shelf revision 3 at 127.0.0.1:8080`."""
    return f"{short_name(slot.deployment)} revision {slot.running}{_where(slot)}"


def _where(slot: device_pb2.DeviceSlot) -> str:
    return f" at {slot.address} of the device" if slot.address else ""


def stuck_line(slot: device_pb2.DeviceSlot) -> str:
    """What is wanted and does not run, with its cause; empty when all is well."""
    well = slot.phase in (device_pb2.SLOT_PHASE_GOOD, device_pb2.SLOT_PHASE_REMOVED)
    if well and not slot.inconsistent:
        return ""
    how = "was good and fails now" if well else f"is {phase(slot)}"
    line = f"{short_name(slot.deployment)} revision {slot.revision} {how}"
    line += f": {slot.cause.message}" if slot.cause.message else ""
    if slot.inconsistent:
        line += " Nothing runs: what was good before does not come up either."
    return line


def capacity(device: device_pb2.Device) -> str:
    """What it has: `4 cpus, 512 MiB of memory, 1.2 GiB of disk free`; empty: it does not say."""
    has = device.capacity
    parts = []
    if has.cpus:
        parts.append(f"{has.cpus:g} cpu{'' if has.cpus == 1 else 's'}")
    if has.memory_bytes:
        unenforced = "" if has.limits_memory else " (no limits enforced)"
        parts.append(f"{say_bytes(has.memory_bytes)} of memory{unenforced}")
    if disk := free_disk(device):
        parts.append(f"{say_bytes(disk)} of disk free")
    return ", ".join(parts)


def free_disk(device: device_pb2.Device) -> int:
    """Bytes that are free on its disk, as it said last; 0: it does not say."""
    return device.report.disk_bytes or device.capacity.disk_bytes


def _agent(device: device_pb2.Device) -> str:
    over = f"over {device.transport}" if device.transport else ""
    return " ".join(part for part in (device.agent, over) if part)


def _until(device: device_pb2.Device) -> str:
    end = moment(device.certificate_expire_time)
    return f"good until {end}" if end else ""


# -- what is wrong ---------------------------------------------------------------------------------

Word = Literal["ok", "note", "BAD"]


def amount(told: device_pb2.DeviceFigure) -> str:
    """A figure's value, in its unit."""
    return say_bytes(int(told.value)) if told.name.endswith("_bytes") else f"{told.value:,.10g}"


def dropped(lost: int) -> str:
    """So many records, before a word like `dropped`."""
    return "1 record was" if lost == 1 else f"{lost:,} records were"


def figure_rows(records: Sequence[device_pb2.DeviceRecord]) -> list[tuple[str, ...]]:
    """Of each figure, in order of names: whose, its newest, lowest and highest value, and when."""
    told: dict[tuple[str, str], list[device_pb2.DeviceRecord]] = {}
    for one in records:
        told.setdefault((one.figure.name, one.figure.deployment), []).append(one)
    return [
        (
            name,
            short_name(deployment) or "agent",
            amount(found[-1].figure),
            amount(min((one.figure for one in found), key=lambda figure: figure.value)),
            amount(max((one.figure for one in found), key=lambda figure: figure.value)),
            moment(found[-1].time),
        )
        for (name, deployment), found in sorted(told.items())
    ]


class Finding(NamedTuple):
    """One thing that was looked at: how it is, in a sentence, and what to do about it."""

    what: str
    word: Word
    message: str
    remedy: str = ""


class Seen(NamedTuple):
    """What the server knows of a device: the record, its last lines and its newest events."""

    device: device_pb2.Device
    lines: Sequence[device_pb2.DeviceLog] = ()
    events: Sequence[device_pb2.DeviceEvent] = ()


def findings(seen: Seen, now: float | None = None) -> list[Finding]:
    """Everything that can be said of a device, good and bad; `now` in seconds since 1970."""
    device, time_now = seen.device, time.time() if now is None else now
    return [
        _state(device),
        _link(device),
        _certificate(device, time_now),
        _settled(device),
        *_slots(device),
        *(Finding("problem", "BAD", problem) for problem in device.report.problems),
        *_room(device),
        *_lost(seen.lines),
        *_breaches(device, seen.events),
    ]


def _state(device: device_pb2.Device) -> Finding:
    name = short_name(device.name)
    if device.state == device_pb2.DEVICE_STATE_REVOKED:
        again = f"enroll it anew: hatoba devices add --name {name}"
        return Finding("state", "BAD", "revoked: its certificates are refused", again)
    if device.state == device_pb2.DEVICE_STATE_LEAVING:
        told = "leaving: it is to end all that it runs, and is forgotten once it says so"
        return Finding("state", "note", told, _forget(device))
    return Finding("state", "ok", f"enrolled {moment(device.create_time)}")


def _forget(device: device_pb2.Device) -> str:
    if device.connected:
        return ""
    name = short_name(device.name)
    return f"if it never comes back: hatoba devices decommission {name} --force"


def _link(device: device_pb2.Device) -> Finding:
    if device.connected:
        agent = _agent(device)
        return Finding("link", "ok", "connected" + (f", agent {agent}" if agent else ""))
    if not came(device):
        return Finding("link", "BAD", "it was enrolled and never came", AWAY_HELP)
    return Finding("link", "BAD", f"{link(device)}, since {moment(device.last_seen)}", AWAY_HELP)


def _certificate(device: device_pb2.Device, now: float) -> Finding:
    end = device.certificate_expire_time
    if device.transport == "aws-iot":
        return Finding("certificate", "ok", "AWS IoT has it")
    if not end.seconds:
        return Finding("certificate", "note", "it has shown none yet")
    left = end.seconds - now
    if left <= 0:
        told = f"it ended {moment(end)}; for as long again as it lived it may still be renewed"
        again = f"else enroll it anew: hatoba devices add --name {short_name(device.name)}"
        return Finding("certificate", "BAD", told, again)
    if left < SOON:
        told = f"it ends {moment(end)}, and was not renewed as it should have been"
        return Finding("certificate", "note", told, AWAY_HELP)
    return Finding("certificate", "ok", _until(device))


def _settled(device: device_pb2.Device) -> Finding:
    wanted = device.desired.generation
    if not wanted:
        return Finding("wanted", "ok", "nothing: no deployment is for its labels")
    if not behind(device):
        return Finding("wanted", "ok", f"generation {wanted}, and it has done all of it")
    told = device.explanation or f"generation {_generation(device)}"
    return Finding("wanted", "note", told)


def _slots(device: device_pb2.Device) -> Iterator[Finding]:
    told = {slot.deployment for slot in device.report.slots}
    for slot in device.report.slots:
        yield _slot(device, slot)
    for want in device.desired.wants:
        if want.deployment not in told:
            line = f"revision {want.revision} is wanted; it says nothing of it yet"
            yield Finding(short_name(want.deployment), "note", line)


def _slot(device: device_pb2.Device, slot: device_pb2.DeviceSlot) -> Finding:
    name = short_name(slot.deployment)
    if not (stuck := stuck_line(slot).removeprefix(f"{name} ")):
        gone = slot.phase == device_pb2.SLOT_PHASE_REMOVED
        told = "removed" if gone else f"revision {slot.running} runs{_where(slot)}"
        return Finding(name, "ok", told)
    if not slot.inconsistent:
        stuck += f" Revision {slot.running} runs." if slot.running else " None runs."
    bad = slot.phase == device_pb2.SLOT_PHASE_BAD or slot.inconsistent
    logs = f"hatoba devices logs {short_name(device.name)} --deployment {name}"
    return Finding(name, "BAD" if bad else "note", stuck, logs if bad else "")


def _room(device: device_pb2.Device) -> Iterator[Finding]:
    has, disk = device.capacity, free_disk(device)
    if disk:
        told = f"{say_bytes(disk)} are free or may be freed"
        low = disk < LOW_DISK
        yield Finding("disk", "note" if low else "ok", told, _ROOM_HELP if low else "")
    if not has.memory_bytes:
        return
    told = f"{say_bytes(has.memory_bytes)} for our work"
    if has.limits_memory:
        yield Finding("memory", "ok", told)
    else:
        yield Finding("memory", "note", f"{told}; its kernel enforces no limits", NO_LIMITS_HELP)


_ROOM_HELP = "a new image needs its size, unpacked, beside what runs: make room on the device"


def _lost(lines: Sequence[device_pb2.DeviceLog]) -> Iterator[Finding]:
    lost = sum(line.lost for line in lines)
    if lost:
        told = f"{dropped(lost)} dropped on the device before we had room for them"
        yield Finding("records", "note", told, "log less there, or give its ring on disk more room")


def _breaches(
    device: device_pb2.Device, events: Sequence[device_pb2.DeviceEvent]
) -> Iterator[Finding]:
    """The newest of each kind of event that should never be."""
    told: set[str] = set()
    for event in events:
        if event.kind in _BREACHES and event.kind not in told:
            told.add(event.kind)
            remedy = _BREACHES[event.kind].format(name=short_name(device.name))
            yield Finding(event.kind, "BAD", f"{moment(event.time)}: {event.message}", remedy)


_BREACHES = {
    "cloned": "hatoba devices revoke {name}; then enroll each machine with a token of its own",
    "denied": "somebody may have its key: hatoba devices events {name}",
}
