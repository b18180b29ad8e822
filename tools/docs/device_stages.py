"""Where a device may stand on the way to a revision, found by trying everything on one device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from hatoba_scheduler.domain.deployments import (
    Deployment,
    Revision,
    Rollout,
    RolloutState,
    Settings,
    Strategy,
)
from hatoba_scheduler.domain.device_rollouts import (
    FleetView,
    Policy,
    Row,
    Stage,
    Word,
    retried,
    said,
    step,
    superseded,
)
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState, Platform
from hatoba_scheduler.domain.records import Cause
from hatoba_scheduler.domain.rollouts import Now, View
from hatoba_scheduler.domain.states import CauseCode, Origin

DEVICE = Device("d", DeviceState.ENROLLED, (), Platform("arm64"), Capacity(), 1)
DEPLOYMENT = Deployment(
    uid="deployment",
    project="default",
    name="reader",
    backend="edge",
    settings=Settings(b"", "models/m/versions/1", 1, Strategy()),
    version=1,
    settings_version=1,
    generation=0,
    wanted=(),
    current=0,
    newest=1,
    following=False,
    followed="",
    rollout=Rollout(1, 0, 1, RolloutState.RUNNING, (), 0, 0, 0),
    events=0,
    create_time=0,
    created_by="",
)
REVISION = Revision(1, "models/m/versions/1", b"", b"", 0, "")
POLICY = Policy(retries=1, abort_share=1.0)
NOW = Now(1)
LATER = 1
"""Microseconds after something is due."""
NO_ROOM = Cause(CauseCode.NO_CAPACITY, Origin.CAPACITY, "no room", retryable=False)

RETRIED = (Stage.FAILED, Stage.REJECTED, Stage.TIMED_OUT, Stage.NOT_REACHED)
_BY_ITSELF = {Stage.WAITING: "its turn", Stage.LEFT: "selector"}
SAYS = (Stage.APPLYING, Stage.BAKING, Stage.SUCCEEDED, Stage.FAILED, Stage.REJECTED)

Arrows = dict[tuple[str, str], set[str]]
Found = Iterator[tuple[str, Row]]


def arrows() -> Arrows:
    """All ways that there are from one stage to another, each with what leads along it."""
    found: Arrows = defaultdict(set)
    first = _stepped(None, NOW)
    assert first is not None
    found["[*]", first.stage.name].add("roll-out")
    todo, seen = [first], {_shape(first)}
    while todo:
        row = todo.pop()
        for why, after in _following(row):
            if after.stage is not row.stage:
                found[row.stage.name, after.stage.name].add(why)
            if _shape(after) not in seen:
                seen.add(_shape(after))
                todo.append(after)
    return found


def _shape(row: Row) -> tuple[Stage, int, bool, bool]:
    """What of a row decides what can follow; more tries than are made by themselves are alike."""
    return row.stage, min(row.tries, POLICY.retries), bool(row.due), row.refused


def _following(row: Row) -> Found:
    """What can become of a device."""
    for after in _by_itself(row):
        yield _BY_ITSELF.get(row.stage, "no answer"), after
    for after in _by_word(row):
        yield ("tried again" if after.stage is Stage.WAITING else "device"), after
    roomier = step(replace(_view(row), roomier=[row.device]), NOW) if row.refused else None
    yield from (("more room", one) for one in (roomier.rows if roomier is not None else ()))
    again = retried(_view(row), [], RETRIED, NOW)
    yield from (("retry", one) for one in (again.rows if again is not None else ()))
    gone = step(replace(_view(row), devices={}), NOW)
    yield from (("selector", one) for one in (gone.rows if gone is not None else ()))
    yield from (("another revision", one) for one in superseded([row], NOW))


def _by_itself(row: Row) -> Iterator[Row]:
    """What the server does about it: its turn, or its time that is over."""
    due = Now(max(row.due, NOW.time) + LATER)
    for view in (_view(row), replace(_view(row), refuse=lambda _: NO_ROOM)):
        change = step(view, due)
        yield from change.rows if change is not None else ()


def _by_word(row: Row) -> Iterator[Row]:
    """What the device can say of itself; the other stages are the server's to give."""
    for stage, passing in product(SAYS, (False, True)):
        cause = Cause(CauseCode.EXIT_CODE, Origin.USER, "no", retryable=passing)
        word = Word(row.device, 1, stage, row.tries, cause if stage.bad else None)
        yield from said(_view(row), [word], NOW)


def _stepped(row: Row | None, now: Now) -> Row | None:
    change = step(_view(row), now)
    return change.rows[0] if change is not None and change.rows else None


def _view(row: Row | None) -> FleetView:
    rows = {DEVICE.name: row} if row is not None else {}
    return FleetView(View(DEPLOYMENT, {1: REVISION}), POLICY, rows, {DEVICE.name: DEVICE})
