"""Roll-outs to devices: who is offered a revision when, and what becomes of the whole.

    WAITING -> OFFERED -> APPLYING -> BAKING -> SUCCEEDED
               OFFERED -> NOT_REACHED           not taken up in its time; it still gets it, late
               OFFERED | APPLYING | BAKING -> FAILED | REJECTED | TIMED_OUT
    WAITING | OFFERED | APPLYING | BAKING -> SUPERSEDED     another revision took its place
    WAITING -> REJECTED                     we see that it does not fit there; it is not offered
    WAITING | OFFERED | APPLYING | BAKING -> LEFT           the deployment is not for it any more
    LEFT -> WAITING                         it is again
    REJECTED -> WAITING                     of what we did not offer: it fits there now
    FAILED | REJECTED | TIMED_OUT | NOT_REACHED -> WAITING     somebody has it tried again

Every stage that something must follow has a deadline of ours: a device that falls silent holds
nothing up for ever. Errors are judged before successes, also at the end, and over the devices that
were reached: those nobody could reach are counted apart. Where a group is through and too few of it
succeeded, the roll-out is given up. A function gives the change to be written, or None where there
is nothing to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.deployments import (
    Change,
    Deployment,
    DeploymentState,
    Pause,
    Rollout,
    RolloutState,
)
from hatoba_scheduler.domain.devices import Device, matches
from hatoba_scheduler.domain.records import Cause, LabelRequirement, Micros
from hatoba_scheduler.domain.rollouts import (
    PAUSED,
    Draft,
    Now,
    Refused,
    View,
    promotion,
    unsettled,
)
from hatoba_scheduler.domain.states import CauseCode, Origin

MINUTE = 60_000_000
HEARD_WITHIN = 2 * MINUTE
"""Devices that have lost us are back by then: they dial at least once a minute."""
MOST_DOUBLED = 6
FEW = 10
"""Where nobody says how many devices it takes to judge by: so many, or all that there are."""


class Stage(IntEnum):
    """Where a device stands on the way to a revision, as the contract numbers it."""

    WAITING = 1
    OFFERED = 2
    APPLYING = 3
    """It has taken it up: it fetches and switches."""
    BAKING = 4
    """It runs, and has to stay healthy for a while."""
    SUCCEEDED = 5
    FAILED = 6
    """It does not work there; the device runs what it had before."""
    REJECTED = 7
    """It cannot be there: refused before anything was fetched."""
    TIMED_OUT = 8
    """It was taken up, and then nothing came in its time."""
    NOT_REACHED = 9
    SUPERSEDED = 10
    LEFT = 11
    """The deployment is not meant for it any more."""

    @property
    def over(self) -> bool:
        """Nothing is waited for any more."""
        return self >= Stage.SUCCEEDED

    @property
    def reached(self) -> bool:
        """The device has taken it up, whatever became of that."""
        return Stage.APPLYING <= self <= Stage.TIMED_OUT

    @property
    def bad(self) -> bool:
        """It counts as an error."""
        return self in (Stage.FAILED, Stage.REJECTED, Stage.TIMED_OUT)


class Group(NamedTuple):
    """Devices that are offered a revision before those of the next group: those whose labels are
    so, and of these a share in percent, or a number; both 0: all.

    `approve`: somebody has to resume the roll-out before this group's turn.
    """

    percent: int = 0
    devices: int = 0
    require: tuple[LabelRequirement, ...] = ()
    approve: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """How a revision goes to devices; what belongs to no group comes after the last one."""

    groups: tuple[Group, ...] = ()
    per_minute: int = 0
    """So many are offered it in a minute; 0: all at once."""
    growth: float = 1.0
    """The rate is multiplied by this each time that `growth_after` more have succeeded."""
    growth_after: int = 0
    go_on_share: float = 0.9
    """Of a group's devices so many must have succeeded before the next group's turn."""
    group_wait: Micros = 15 * MINUTE
    """So long a group's turn waits for devices that do not come; then those count that did."""
    abort_share: float = 0.2
    """It is given up when more than this share of the reached devices has an error."""
    abort_least: int = 0
    """Not judged by fewer than so many reached devices; 0: ten, or all there are."""
    rollback: bool = True
    retries: int = 1
    """How often a device is offered it anew after an error that may pass."""
    retry_wait: Micros = 5 * MINUTE
    """After the first of them; twice as long after each further one."""
    offer_deadline: Micros = 7 * 24 * 60 * MINUTE
    apply_deadline: Micros = 60 * MINUTE
    bake: Micros = MINUTE
    bake_margin: Micros = 10 * MINUTE
    """What a device may take longer than its bake to say how that ended."""
    approve_deadline: Micros = 30 * 24 * 60 * MINUTE
    """So long a group's turn waits for somebody to resume the roll-out."""

    def again(self, tries: int) -> Micros:
        """How long after an error a device is offered it anew that was so often."""
        return self.retry_wait << min(tries, MOST_DOUBLED)


@dataclass(frozen=True, slots=True)
class Row:
    """One device's way to the revision of one roll-out."""

    deployment: str
    number: int
    device: str
    group: int
    stage: Stage
    since: Micros
    due: Micros = 0
    """When the stage has lasted too long, or is to be tried again; 0: never."""
    offered: Micros = 0
    """When it was offered it last; 0 also where we refused it instead."""
    tries: int = 0
    cause: Cause | None = None

    @property
    def refused(self) -> bool:
        """We saw that it does not fit there, and did not offer it."""
        return self.stage is Stage.REJECTED and not self.offered


class Word(NamedTuple):
    """What a device says of a deployment's revision that it was offered."""

    device: str
    revision: int
    stage: Stage
    tries: int = 0
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class FleetView:
    """A deployment to devices: what is wanted, its rows of the newest roll-out by device, and the
    devices that it is meant for now.
    """

    view: View
    policy: Policy
    rows: Mapping[str, Row] = field(default_factory=dict)
    devices: Mapping[str, Device] = field(default_factory=dict)
    refuse: Callable[[Device], Cause | None] = lambda _: None
    """Why the new revision cannot be on a device, with figures; None: it can."""
    roomier: Collection[str] = ()
    """Names of devices that it may fit now, though it was refused there."""


@dataclass(frozen=True, slots=True)
class FleetChange:
    """A decided change, all or nothing; `change` None: of rows alone."""

    change: Change | None
    rows: tuple[Row, ...] = ()


class Tally(NamedTuple):
    """Devices of a roll-out by what became of them; the columns add up to `total`."""

    waiting: int
    offered: int
    under_way: int
    succeeded: int
    failed: int
    rejected: int
    timed_out: int
    not_reached: int
    superseded: int
    left: int

    @property
    def total(self) -> int:
        """All devices."""
        return sum(self)

    @property
    def started(self) -> int:
        """Those that were reached."""
        return self.under_way + self.succeeded + self.bad

    @property
    def bad(self) -> int:
        """Those with an error."""
        return self.failed + self.rejected + self.timed_out


def tally(rows: Iterable[Row]) -> Tally:
    """How many devices stand where."""
    seen = Counter(row.stage for row in rows)
    return Tally(
        seen[Stage.WAITING],
        seen[Stage.OFFERED],
        seen[Stage.APPLYING] + seen[Stage.BAKING],
        seen[Stage.SUCCEEDED],
        seen[Stage.FAILED],
        seen[Stage.REJECTED],
        seen[Stage.TIMED_OUT],
        seen[Stage.NOT_REACHED],
        seen[Stage.SUPERSEDED],
        seen[Stage.LEFT],
    )


def revision_for(deployment: Deployment, row: Row | None, policy: Policy) -> int:
    """The revision that a device is to run; 0: none. Who is not offered the new one yet keeps the
    one before, and so does everybody once the new one was given up.
    """
    rollout = deployment.rollout
    if rollout is None or deployment.deleting:
        return 0
    if rollout.state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK):
        return rollout.from_revision
    if rollout.state is RolloutState.FAILED and policy.rollback:
        return deployment.current
    offered = row is not None and bool(row.offered) and row.stage not in _KEEPS_THE_FORMER
    return rollout.to_revision if offered else rollout.from_revision


_KEEPS_THE_FORMER = (Stage.WAITING, Stage.REJECTED, Stage.SUPERSEDED, Stage.LEFT)


# -- what somebody asks for -----------------------------------------------------------------------


def promoted(view: View, policy: Policy, now: Now) -> Change | None:
    """No group waits for another any more. Raises Refused without a roll-out."""
    rollout, draft = promotion(view, now)
    if rollout.state is RolloutState.PAUSED or rollout.step < len(policy.groups):
        draft.tell("promote", "All devices get the new revision.", rollout.to_revision)
        draft.move(RolloutState.RUNNING, step=len(policy.groups))
    return draft.change() if draft.deployment != view.deployment else None


_GIVEN_UP = (
    RolloutState.ROLLING_BACK,
    RolloutState.ROLLED_BACK,
    RolloutState.FAILED,
    RolloutState.SUPERSEDED,
)


def retried(
    fleet: FleetView, names: Collection[str], stages: Collection[Stage], now: Now
) -> FleetChange | None:
    """It is offered anew to those that stand there, of these devices (none: of all); None: there
    are none. Raises Refused of a revision that was given up, and for devices not of the roll-out.
    """
    rollout = fleet.view.deployment.rollout
    if rollout is None or fleet.view.deployment.deleting or rollout.state in _GIVEN_UP:
        raise Refused("its newest revision was given up; deploy it anew, or another one")
    if unknown := sorted(set(names) - fleet.rows.keys()):
        raise Refused(f"its roll-out is not for {', '.join(unknown[:5])}; name others")
    found = (fleet.rows[name] for name in names or fleet.rows if name in fleet.devices)
    rows = tuple(_anew(row, now.time) for row in found if row.stage in stages)
    if not rows:
        return None
    draft = Draft(fleet.view, now)
    some = "1 device" if len(rows) == 1 else f"{len(rows):,} devices"
    draft.tell("retry", f"It is tried again on {some}.", rollout.to_revision)
    return FleetChange(draft.change(), rows)


# -- what devices say -----------------------------------------------------------------------------


def said(fleet: FleetView, words: Iterable[Word], now: Now) -> tuple[Row, ...]:
    """What becomes of rows by what devices say. What is said of another revision, of an earlier
    try or after the end is history, and changes nothing; nor does what is said twice.
    """
    rollout = fleet.view.deployment.rollout
    if rollout is None:
        return ()
    moved: dict[str, Row] = {}
    for word in words:
        row = moved.get(word.device) or fleet.rows.get(word.device)
        if row is None or _is_history(row, rollout, fleet.policy):
            continue
        if word.revision == rollout.to_revision:
            after = _heard(row, word, fleet.policy, now.time)
            if after is not None:
                moved[word.device] = after
    return tuple(moved.values())


def _is_history(row: Row, rollout: Rollout, policy: Policy) -> bool:
    """Whether it does not matter any more how a device fares: the revision was given up, and it is
    not in the middle of it."""
    back = rollout.state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK)
    given_up = back or (rollout.state is RolloutState.FAILED and policy.rollback)
    return given_up and row.stage not in (Stage.APPLYING, Stage.BAKING)


def _heard(row: Row, word: Word, policy: Policy, time: Micros) -> Row | None:
    late = row.stage in (Stage.NOT_REACHED, Stage.TIMED_OUT)
    if word.tries != row.tries or row.stage is Stage.WAITING or (row.stage.over and not late):
        return None
    if word.stage <= row.stage and not late:
        return None
    passes = word.stage.bad and word.cause is not None and word.cause.retryable
    if passes and row.tries < policy.retries:
        return changed(
            row,
            stage=Stage.WAITING,
            since=time,
            due=time + policy.again(row.tries),
            tries=row.tries + 1,
            cause=word.cause,
        )
    return changed(
        row,
        stage=word.stage,
        since=time,
        due=_due(word.stage, policy, time),
        cause=word.cause,
    )


def _due(stage: Stage, policy: Policy, time: Micros) -> Micros:
    wait = {
        Stage.OFFERED: policy.offer_deadline,
        Stage.APPLYING: policy.apply_deadline,
        Stage.BAKING: policy.bake + policy.bake_margin,
    }.get(stage, 0)
    return time + wait if wait else 0


def excused(rows: Iterable[Row], now: Now) -> tuple[Row, ...]:
    """Rows of devices that may have said how they are while nobody here could hear it, or whose
    time ends by a clock that was set: each has a moment to say it again.
    """
    until = now.time + HEARD_WITHIN
    under_way = (Stage.OFFERED, Stage.APPLYING, Stage.BAKING)
    return tuple(
        changed(row, due=until) for row in rows if row.stage in under_way and row.due < until
    )


# -- what follows ---------------------------------------------------------------------------------


def superseded(rows: Iterable[Row], now: Now) -> tuple[Row, ...]:
    """What another roll-out ends of an earlier one."""
    return tuple(
        changed(row, stage=Stage.SUPERSEDED, since=now.time, due=0)
        for row in rows
        if not row.stage.over or row.stage is Stage.NOT_REACHED
    )


def step(fleet: FleetView, now: Now) -> FleetChange | None:
    """The next change that follows from what is known; None: wait."""
    deployment, rollout = fleet.view.deployment, fleet.view.deployment.rollout
    if rollout is None or deployment.deleting:
        return None
    if rollout.state in (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK):
        return _going_back(fleet, rollout, now)
    if rows := _overdue(fleet, now) or _left(fleet, now):
        return FleetChange(None, rows)
    if rollout.state is RolloutState.FAILED:
        return None
    if not rollout.state.over:
        cause = _too_many(fleet, rollout)
        if cause is not None and rollout.pause is not Pause.ASKED:
            return _given_up(fleet, rollout, cause, now)
    if rollout.state is RolloutState.PAUSED:
        return _left_alone(fleet, rollout, now)
    if _needs_leave(fleet, rollout):
        return _asks_leave(fleet, rollout, now)
    if rows := _joined(fleet, rollout, now) or _fitting(fleet, now):
        return FleetChange(None, rows)
    if rows := _offers(fleet, rollout, now):
        return FleetChange(None, rows)
    return None if rollout.state.over else _onward(fleet, rollout, now)


def _needs_leave(fleet: FleetView, rollout: Rollout) -> bool:
    """Whether it has just begun, and somebody has to let its first group begin."""
    groups = fleet.policy.groups
    first = bool(groups) and groups[0].approve and not rollout.back
    return first and not rollout.state.over and rollout.since == rollout.start_time


def _asks_leave(fleet: FleetView, rollout: Rollout, now: Now) -> FleetChange:
    draft = Draft(fleet.view, now)
    draft.move(RolloutState.PAUSED, pause=Pause.APPROVAL)
    # By its time it is known that it was asked for: what goes on from here has another.
    draft.tell("step", "Group 1 waits for somebody to resume the roll-out.", rollout.to_revision)
    return FleetChange(draft.change())


def _left_alone(fleet: FleetView, rollout: Rollout, now: Now) -> FleetChange | None:
    """Given up, where nobody resumed it for long. What somebody paused goes on by nobody else."""
    wait = fleet.policy.approve_deadline
    if rollout.pause is not Pause.APPROVAL or now.time < rollout.since + wait:
        return None
    text = f"Nobody resumed the roll-out of revision {rollout.to_revision} in {_days(wait)}"
    return _given_up(
        fleet, rollout, Cause(CauseCode.DEADLINE, Origin.USER, text, retryable=False), now
    )


def _days(time: Micros) -> str:
    days = time / (24 * 60 * MINUTE)
    return f"{days:.3g} days" if days >= 1 else f"{time / MINUTE:.3g} minutes"


def next_look(fleet: FleetView, now: Micros) -> Micros:
    """When something follows by time alone; 0: nothing does."""
    times = [row.due for row in fleet.rows.values() if row.due and not row.stage.over]
    rollout = fleet.view.deployment.active
    if rollout is not None and rollout.state is RolloutState.RUNNING:
        times.append(rollout.since + fleet.policy.group_wait)
        if fleet.policy.per_minute and _waiting(fleet, rollout):
            times.append(now + MINUTE // max(1, min(60, _rate(fleet))))
    if rollout is not None and rollout.pause is Pause.APPROVAL:
        times.append(rollout.since + fleet.policy.approve_deadline)
    if rollout is not None and rollout.state is RolloutState.ROLLING_BACK:
        times.append(rollout.since + fleet.policy.apply_deadline)
    return min((time for time in times if time > now), default=0)


def _overdue(fleet: FleetView, now: Now) -> tuple[Row, ...]:
    return tuple(
        _expired(row, fleet.policy, now.time)
        for row in fleet.rows.values()
        if row.due and row.due <= now.time and not row.stage.over and row.stage != Stage.WAITING
    )


def _left(fleet: FleetView, now: Now) -> tuple[Row, ...]:
    """Devices that it is not meant for any more."""
    return tuple(
        changed(row, stage=Stage.LEFT, since=now.time, due=0)
        for name, row in fleet.rows.items()
        if name not in fleet.devices and not row.stage.over
    )


def _expired(row: Row, policy: Policy, time: Micros) -> Row:
    if row.stage is Stage.OFFERED:
        return changed(row, stage=Stage.NOT_REACHED, since=time, due=0)
    seconds = (time - row.since) / 1e6
    doing = "applied it" if row.stage is Stage.APPLYING else "said that it stayed healthy"
    text = f"The device took it up and has not {doing} within {seconds:,.0f} s."
    cause = Cause(CauseCode.DEADLINE, Origin.INFRASTRUCTURE, text, retryable=True)
    if row.tries < policy.retries:
        return _offered(changed(row, tries=row.tries + 1, cause=cause), policy, time)
    return changed(row, stage=Stage.TIMED_OUT, since=time, due=0, cause=cause)


# -- how it is ------------------------------------------------------------------------------------


def fleet_state(deployment: Deployment, told: Tally) -> DeploymentState:
    """How a deployment to devices is. One that some devices could not have is DEGRADED."""
    if (state := unsettled(deployment)) is not None:
        return state
    last = deployment.rollout
    went = last is not None and last.state is RolloutState.SUCCEEDED
    return DeploymentState.DEGRADED if told.bad and went else DeploymentState.READY


def fleet_waiting_for(deployment: Deployment, told: Tally) -> str:
    """What a roll-out to devices waits for, in a sentence; empty when it is over."""
    rollout = deployment.active
    if rollout is None:
        return ""
    if rollout.state is RolloutState.PAUSED:
        return PAUSED[rollout.pause]
    if rollout.state is RolloutState.ROLLING_BACK:
        return f"devices to say that they run revision {rollout.from_revision} again"
    if not told.total:
        return "a device that matches its selector"
    parts = [
        (told.under_way, "to say how it works there"),
        (told.offered, "to take it up"),
        (told.waiting, "for their turn"),
    ]
    found = [f"{number:,} {what}" for number, what in parts if number]
    return f"devices: {', '.join(found)}" if found else ""


# -- errors ---------------------------------------------------------------------------------------


def _too_many(fleet: FleetView, rollout: Rollout) -> Cause | None:
    """Why it is given up, if it is."""
    told, policy = tally(fleet.rows.values()), fleet.policy
    least = policy.abort_least or min(FEW, told.total)
    decided = not (told.waiting or told.offered or told.under_way)
    if told.started < least and not (decided and told.started):
        return None
    if told.bad <= policy.abort_share * told.started:
        return None
    text = (
        f"Revision {rollout.to_revision} failed on {told.bad} of {told.started} devices that took"
        f" it up, more than {policy.abort_share:.3g} of them"
    )
    return _worst(fleet, told, text)


def _worst(fleet: FleetView, told: Tally, text: str) -> Cause:
    """The cause of a roll-out that is given up, after that of one of its devices."""
    worst = next((row.cause for row in fleet.rows.values() if row.stage.bad and row.cause), None)
    last = f"; one of them: {worst.message}" if worst is not None else ""
    return Cause(
        worst.code if worst is not None else CauseCode.NOT_READY,
        worst.origin if worst is not None else Origin.USER,
        text + last,
        False,
        evidence=(("errors", str(told.bad)), ("started", str(told.started))),
        last_log_lines=worst.last_log_lines if worst is not None else (),
    )


def _given_up(fleet: FleetView, rollout: Rollout, cause: Cause, now: Now) -> FleetChange:
    """No further device begins, from this change on."""
    draft = Draft(fleet.view, now)
    draft.give_up(rollout.to_revision, cause)
    gone = {Stage.WAITING, Stage.OFFERED}
    if fleet.view.deployment.current == rollout.to_revision:
        draft.set(current=rollout.from_revision)
    if fleet.policy.rollback and rollout.from_revision:
        text = f"Back to revision {rollout.from_revision}: {cause.message}"
        draft.tell("rollback", text, rollout.to_revision, cause)
        draft.move(RolloutState.ROLLING_BACK, cause=cause)
        draft.renew()
    else:
        draft.tell("failed", cause.message, rollout.to_revision, cause)
        draft.end(RolloutState.FAILED, cause)
        if fleet.policy.rollback:
            draft.renew()
            gone |= {Stage.APPLYING, Stage.BAKING}
    waits = [row for row in fleet.rows.values() if row.stage in gone]
    return FleetChange(draft.change(), superseded(waits, now))


def _going_back(fleet: FleetView, rollout: Rollout, now: Now) -> FleetChange | None:
    """Over once every device that took it up runs what it is to, or has had its time."""
    if rollout.state.over:
        return None
    back = [one for one in fleet.devices.values() if _took_up(fleet.rows.get(one.name))]
    late = now.time - rollout.since >= fleet.policy.apply_deadline
    left = [one.name for one in back if one.behind]
    if left and not late:
        return None
    draft = Draft(fleet.view, now)
    short = f", but for {len(left)} devices, which get it when they come" if left else ""
    text = f"All is on revision {rollout.from_revision}{short}."
    draft.tell("rolled back", text, rollout.from_revision)
    draft.end(RolloutState.ROLLED_BACK, rollout.cause)
    return FleetChange(draft.change(), superseded(fleet.rows.values(), now))


def _took_up(row: Row | None) -> bool:
    """Whether a device may have something of it: who never heard of it has nothing to undo."""
    return row is not None and bool(row.offered) and row.stage.reached


# -- who is next ----------------------------------------------------------------------------------


def _joined(fleet: FleetView, rollout: Rollout, now: Now) -> tuple[Row, ...]:
    """Rows for devices that have none: all at first, later those that came, also back."""
    last = len(fleet.policy.groups)
    back = (fleet.rows[name] for name in fleet.devices if _has_left(fleet.rows.get(name)))
    # Who comes late is not counted among those by whom others are judged.
    again = tuple(_anew(changed(row, group=last), now.time) for row in back)
    fresh = [name for name in fleet.devices if name not in fleet.rows]
    if not fresh:
        return again
    uid = fleet.view.deployment.uid
    places = grouped(uid, fleet.policy.groups, fleet.devices.values()) if not fleet.rows else {}
    return again + tuple(
        Row(uid, rollout.number, name, places.get(name, last), Stage.WAITING, now.time)
        for name in fresh
    )


def _anew(row: Row, time: Micros) -> Row:
    """Its turn is to come once more; what was offered before is another try then."""
    tries = row.tries + bool(row.offered)
    return changed(row, stage=Stage.WAITING, since=time, due=0, tries=tries)


def _fitting(fleet: FleetView, now: Now) -> tuple[Row, ...]:
    """Those that were refused, and have room by now."""
    there = [name for name in fleet.roomier if name in fleet.devices and name in fleet.rows]
    return tuple(
        changed(_anew(fleet.rows[name], now.time), cause=None)
        for name in there
        if fleet.rows[name].refused and fleet.refuse(fleet.devices[name]) is None
    )


def _has_left(row: Row | None) -> bool:
    return row is not None and row.stage is Stage.LEFT


def grouped(uid: str, groups: Sequence[Group], devices: Iterable[Device]) -> dict[str, int]:
    """Which group each device is of: the same for the same devices, and not by their names."""
    left = sorted(devices, key=lambda one: _lot(uid, one.name))
    places: dict[str, int] = {}
    for place, group in enumerate(groups):
        able = [one for one in left if matches(one, group.require)]
        size = -(-len(able) * group.percent // 100) if group.percent else group.devices or len(able)
        places.update((one.name, place) for one in able[:size])
        left = [one for one in left if one.name not in places]
    places.update((one.name, len(groups)) for one in left)
    return places


def _lot(uid: str, device: str) -> bytes:
    return blake2b(f"{uid}/{device}".encode(), digest_size=8).digest()


def _offers(fleet: FleetView, rollout: Rollout, now: Now) -> tuple[Row, ...]:
    waits = [
        row
        for row in _waiting(fleet, rollout)
        if row.due <= now.time and row.device in fleet.devices
    ]
    room = _room(fleet, rollout, now.time)
    return tuple(
        _decided(fleet, row, now.time) for row in (waits if room is None else waits[:room])
    )


def _decided(fleet: FleetView, row: Row, time: Micros) -> Row:
    """Offered, or refused where it cannot be."""
    cause = fleet.refuse(fleet.devices[row.device])
    if cause is None:
        return _offered(row, fleet.policy, time)
    return changed(row, stage=Stage.REJECTED, since=time, due=0, offered=0, cause=cause)


def _offered(row: Row, policy: Policy, time: Micros) -> Row:
    return changed(
        row, stage=Stage.OFFERED, since=time, due=time + policy.offer_deadline, offered=time
    )


def _waiting(fleet: FleetView, rollout: Rollout) -> list[Row]:
    """Those of the groups whose turn has come."""
    return [
        row
        for row in fleet.rows.values()
        if row.stage is Stage.WAITING and (row.group <= _turn(fleet, rollout) or rollout.state.over)
    ]


def _turn(fleet: FleetView, rollout: Rollout) -> int:
    """The last group whose turn has come; back to what ran before is everybody's at once."""
    return len(fleet.policy.groups) if rollout.back else rollout.step


def _room(fleet: FleetView, rollout: Rollout, time: Micros) -> int | None:
    """How many may be offered it now; None: any number. Who comes late keeps to the rate, too."""
    if not fleet.policy.per_minute or rollout.back:
        return None
    recent = sum(row.offered > time - MINUTE for row in fleet.rows.values() if row.offered)
    return max(0, _rate(fleet) - recent)


def _rate(fleet: FleetView) -> int:
    policy = fleet.policy
    if not policy.growth_after or policy.growth <= 1.0:
        return policy.per_minute
    succeeded = sum(row.stage is Stage.SUCCEEDED for row in fleet.rows.values())
    return int(policy.per_minute * policy.growth ** min(succeeded // policy.growth_after, 64))


def _onward(fleet: FleetView, rollout: Rollout, now: Now) -> FleetChange | None:
    """Nobody can be offered it now: the next group's turn, or the end, once enough is decided.

    What is for no device waits for the first one: it was not seen to work anywhere.
    """
    if not fleet.rows:
        return None
    turn = _turn(fleet, rollout)
    rows = [row for row in fleet.rows.values() if row.group <= turn]
    if any(row.stage is Stage.WAITING for row in rows):
        return None
    last = turn >= len(fleet.policy.groups)
    told = tally(rows)
    if last:
        if told.offered or told.under_way:
            return _proven(fleet, rollout, told, now)
        return _succeeded(fleet, rollout, now)
    if not _enough(told, fleet.policy, now.time - rollout.since):
        return _stuck(fleet, rollout, told, now)
    draft = Draft(fleet.view, now)
    place = rollout.step + 1
    approve = place < len(fleet.policy.groups) and fleet.policy.groups[place].approve
    text = f"Group {place + 1} of {len(fleet.policy.groups) + 1} gets it."
    if approve:
        text = f"Group {place + 1} waits for somebody to resume the roll-out."
    state = RolloutState.PAUSED if approve else RolloutState.RUNNING
    draft.move(state, step=place, pause=Pause.APPROVAL if approve else Pause.NONE)
    draft.tell("step", text, rollout.to_revision)
    return FleetChange(draft.change())


def _proven(fleet: FleetView, rollout: Rollout, told: Tally, now: Now) -> FleetChange | None:
    """What works wherever it was tried is what is gone back to, also while it waits for devices
    that are away.
    """
    known = fleet.view.deployment.current == rollout.to_revision
    if known or told.under_way or not told.succeeded:
        return None
    if told.succeeded < fleet.policy.go_on_share * told.started:
        return None
    draft = Draft(fleet.view, now)
    draft.prove(rollout.to_revision)
    draft.set(current=rollout.to_revision)
    text = f"It works on {told.succeeded} devices; {told.offered} have not come yet."
    draft.tell("proven", text, rollout.to_revision)
    return FleetChange(draft.change())


def _stuck(fleet: FleetView, rollout: Rollout, told: Tally, now: Now) -> FleetChange | None:
    """Given up, where too few succeeded for the next group's turn and no word is due any more."""
    if told.offered or told.under_way:
        return None
    text = (
        f"Revision {rollout.to_revision} works on {told.succeeded} of {told.started} devices that"
        f" took it up so far; the next group's turn takes {fleet.policy.go_on_share:.3g} of them"
    )
    return _given_up(fleet, rollout, _worst(fleet, told, text), now)


def _enough(told: Tally, policy: Policy, waited: Micros) -> bool:
    """Whether so many succeeded. Those under way count against it, those that nobody reached do
    not, and those that have not come yet do for a while.
    """
    if not told.started:
        return not told.offered
    late = told.offered if waited < policy.group_wait else 0
    return told.succeeded >= policy.go_on_share * (told.started + late)


def _succeeded(fleet: FleetView, rollout: Rollout, now: Now) -> FleetChange:
    draft = Draft(fleet.view, now)
    told = tally(fleet.rows.values())
    if told.not_reached:
        text = f"{told.not_reached} devices were not reached; they get it when they come."
        draft.tell("not reached", text, rollout.to_revision)
    draft.prove(rollout.to_revision)
    draft.succeed()
    return FleetChange(draft.change())
