"""What people read of deployments to devices. Pure: records in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.aio import short_name
from hatoba.cli.output import age, moment
from hatoba.devices import say_requirement
from hatoba.v1 import deployment_pb2, device_pb2, job_pb2

Rows = list[tuple[str, str]]
COLUMNS = (
    "waiting",
    "offered",
    "under_way",
    "succeeded",
    "failed",
    "rejected",
    "timed_out",
    "not_reached",
    "superseded",
    "left",
)
"""Columns of a tally, which add up to its total."""
BAR_WIDTH = 30
BAD_STAGES = "--stage failed --stage rejected --stage timed-out"


def said_number(number: int) -> str:
    """`1,000`."""
    return f"{number:,}"


def reach(one: deployment_pb2.Deployment) -> str:
    """How far its newest revision is: `812/1,000 devices`, of those that it is for."""
    tally = one.devices
    return f"{said_number(tally.succeeded)}/{said_number(tally.total - tally.left)} devices"


def runs_on(one: deployment_pb2.Deployment) -> str:
    """How far what runs is: its newest revision or, once that was taken back, the one before."""
    if one.rollout.state != deployment_pb2.ROLLOUT_STATE_ROLLED_BACK:
        return reach(one)
    for status in one.revisions:
        if status.revision == one.current_revision:
            return f"{said_number(status.ready)}/{said_number(status.wanted)} devices"
    return reach(one)


def columns(tally: deployment_pb2.DeviceTally) -> list[tuple[str, int]]:
    """Each column of a tally with its name."""
    return [(name.replace("_", " "), getattr(tally, name)) for name in COLUMNS]


def tally_lines(tally: deployment_pb2.DeviceTally) -> list[str]:
    """A tally as a table: a line for each column, and what they add up to."""
    found = [*columns(tally), ("total", tally.total)]
    width = max(len(said_number(count)) for _, count in found)
    lines = [
        f"{name:<11}  {said_number(count):>{width}}  {_bar(count, tally.total)}".rstrip()
        for name, count in found[:-1]
    ]
    total = f"{'total':<11}  {said_number(tally.total):>{width}}"
    return [*lines, f"{total}  {said_number(tally.connected)} connected"]


def _bar(count: int, total: int) -> str:
    return "█" * (max(round(BAR_WIDTH * count / total), 1) if count else 0)


def counted(tally: deployment_pb2.DeviceTally) -> str:
    """The columns that are not zero: `90 under way, 812 succeeded, 3 failed`."""
    return ", ".join(f"{said_number(count)} {name}" for name, count in columns(tally) if count)


# -- groups ----------------------------------------------------------------------------------------


def selector(found: Sequence[job_pb2.LabelRequirement]) -> str:
    """What is asked of labels: `site=tokyo, !old`."""
    return ", ".join(map(say_requirement, found))


def group_text(group: deployment_pb2.DeviceGroup) -> str:
    """A group: `5% of ring=canary, once somebody resumes`."""
    amount = f"{group.percent}%" if group.percent else said_number(group.devices)
    told = "all" if amount == "0" else amount
    told += f" of {selector(group.require)}" if group.require else ""
    return told + (", once somebody resumes" if group.approve else "")


def group_lines(one: deployment_pb2.Deployment) -> list[str]:
    """Its groups in order, each with where the roll-out stands; none without groups."""
    groups = [group_text(group) for group in one.spec.devices.groups]
    if not groups:
        return []
    lines = [*groups, "the rest"]
    width = max(map(len, lines))
    return [
        f"{place + 1}  {text:<{width}}  {_turn(one.rollout, place)}".rstrip()
        for place, text in enumerate(lines)
    ]


def _turn(rollout: deployment_pb2.Rollout, place: int) -> str:
    if rollout.end_time.seconds or place > rollout.step:
        return ""
    if place < rollout.step:
        return "through"
    paused = rollout.state == deployment_pb2.ROLLOUT_STATE_PAUSED
    return "its turn, paused" if paused else "its turn"


def pace(targets: deployment_pb2.DeviceTargets) -> str:
    """How fast it goes: `20 devices a minute, x2 after each 100`; empty for all at once."""
    if not targets.per_minute:
        return ""
    grows = targets.growth > 1 and targets.growth_after
    growth = f", x{targets.growth:g} after each {said_number(targets.growth_after)}"
    return f"{said_number(targets.per_minute)} devices a minute" + (growth if grows else "")


# -- one deployment --------------------------------------------------------------------------------


def target_rows(one: deployment_pb2.Deployment) -> Rows:
    """What the screen of a deployment says of its devices."""
    targets = one.spec.devices
    return [
        ("devices", selector(targets.selector)),
        ("runs on", runs_on(one)),
        ("groups", "\n".join(group_lines(one))),
        ("pace", pace(targets)),
        ("given up", _limits(targets)),
    ]


def _limits(targets: deployment_pb2.DeviceTargets) -> str:
    if not targets.HasField("abort_share"):
        return ""
    least = f", judged by {said_number(targets.abort_least)} or more" if targets.abort_least else ""
    return f"when it fails on more than {targets.abort_share:.0%} of those that took it up{least}"


def course_line(one: deployment_pb2.Deployment, state: str, model: str) -> str:
    """Where it stands, in a line that only differs when something did."""
    groups = len(one.spec.devices.groups)
    group = ""
    if groups and not one.rollout.end_time.seconds:
        group = f" group {one.rollout.step + 1} of {groups + 1}"
    told = counted(one.devices)
    name = short_name(one.name)
    return f"{name}  {state}{group}  {model} on {reach(one)}" + (f"; {told}" if told else "")


def board(one: deployment_pb2.Deployment, headline: str) -> str:
    """A roll-out as a screenful that is drawn again and again."""
    lines = [headline, *(f"  {line}" for line in tally_lines(one.devices))]
    lines += [f"  group {line}" for line in group_lines(one)]
    if one.rollout.waiting_for and not one.rollout.end_time.seconds:
        lines.append(f"  waits for {one.rollout.waiting_for}")
    return "\n".join(lines)


def done_lines(one: deployment_pb2.Deployment, model: str) -> list[str]:
    """What is told of a roll-out that went well: how many have it, and who has not."""
    name, tally = short_name(one.name), one.devices
    lines = [f"{model} runs on {reach(one)}"]
    if tally.not_reached:
        late = "1 was" if tally.not_reached == 1 else f"{said_number(tally.not_reached)} were"
        lines.append(f"{late} not reached, and get it when they come")
        lines.append(f"next  hatoba deployments devices {name} --stage not-reached")
    bad = tally.failed + tally.rejected + tally.timed_out
    if bad:
        lines.append(f"on {said_number(bad)} it does not work")
        lines.append(f"next  hatoba deployments devices {name} {BAD_STAGES}")
    return lines


# -- its devices -----------------------------------------------------------------------------------


def stage_name(stage: device_pb2.DeviceStage.ValueType) -> str:
    """A stage without its prefix."""
    return device_pb2.DeviceStage.Name(stage).removeprefix("DEVICE_STAGE_")


HEADS = ["DEVICE", "GROUP", "STAGE", "FOR", "UNTIL", "TRIES", "LINK", "CAUSE"]


def device_row(one: device_pb2.RolloutDevice) -> list[str]:
    """A device on the way to a revision, as a row below `HEADS`."""
    return [
        short_name(one.device),
        str(one.group + 1),
        stage_name(one.stage),
        age(one.since) or "-",
        moment(one.due) or "-",
        str(one.tries),
        "connected" if one.connected else "away",
        one.cause.message or "-",
    ]


def plan_lines(name: str, found: device_pb2.DevicePlan) -> list[str]:
    """What a selector changes: `shelf  +12 -3 devices (7 stay)`, then who comes and goes."""
    figures = f"+{said_number(found.comes)} -{said_number(found.goes)} devices"
    lines = [f"{name}  {figures} ({said_number(found.stays)} stay)"]
    for sign, names, count in (("+", found.coming, found.comes), ("-", found.going, found.goes)):
        lines += [f"  {sign} {short_name(device)}" for device in names]
        if count > len(names):
            lines.append(f"  {sign} and {said_number(count - len(names))} more")
    return lines + _refusal_lines(found)


def _refusal_lines(found: device_pb2.DevicePlan) -> list[str]:
    """Which of those that come cannot have it, and why."""
    if not found.refused:
        return []
    few, all_ = said_number(found.refused), said_number(found.comes)
    lines = [f"{few} of the {all_} that come cannot have it:"]
    lines += [f"  ! {one.device}: {one.message}" for one in found.refusals]
    if found.refused > len(found.refusals):
        lines.append(f"  ! and {said_number(found.refused - len(found.refusals))} more")
    return lines


def running_on(one: deployment_pb2.Deployment) -> int:
    """How many devices say that they run it."""
    return sum(status.ready for status in one.revisions) if one.spec.HasField("devices") else 0


def courses(found: Sequence[device_pb2.RolloutDevice]) -> dict[str, list[float]]:
    """By stage, when devices got to where they stand: seconds since 1970, in order."""
    known: dict[str, list[float]] = {}
    for one in sorted(found, key=lambda one: one.since.ToNanoseconds()):
        if one.since.seconds:
            known.setdefault(stage_name(one.stage), []).append(one.since.ToMicroseconds() / 1e6)
    return known
