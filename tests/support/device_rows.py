"""A deployment to devices that a test begins with, and devices that do as the test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from rollout_rows import bare, revision, settings

from hatoba_scheduler.domain.deployments import Deployment, Revision, Rollout, RolloutState
from hatoba_scheduler.domain.device_rollouts import (
    FleetChange,
    FleetView,
    Policy,
    Row,
    Stage,
    Tally,
    Word,
    revision_for,
    said,
    step,
    superseded,
    tally,
)
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState, Platform, Want, desired
from hatoba_scheduler.domain.records import Cause
from hatoba_scheduler.domain.rollouts import Now, View, created, resumed, updated
from hatoba_scheduler.domain.states import CauseCode, Origin

UNHEALTHY = Cause(CauseCode.CRASH_LOOP, Origin.USER, "It ended with exit code 1.", False, 1)
PASSES = Cause(CauseCode.STAGING_FAILED, Origin.INFRASTRUCTURE, "The disk is full.", True)
ARM = Platform("arm64", "v8")


def device(name: str, **fields: object) -> Device:
    """One that is enrolled, with room for everything."""
    made = Device(
        name, DeviceState.ENROLLED, (("site", "tokyo"),), ARM, Capacity(4.0, 1 << 30, 8 << 30), 1
    )
    return replace(made, **fields)  # type: ignore[arg-type]


@dataclass
class Site:
    """A deployment, its devices, and a clock."""

    policy: Policy = field(default_factory=Policy)
    size: int = 4
    now: int = 1_000_000
    rows: dict[str, Row] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    revisions: dict[int, Revision] = field(default_factory=dict)
    refuse: Callable[[Device], Cause | None] = lambda _: None
    roomier: set[str] = field(default_factory=set)
    told: list[Row] = field(default_factory=list)
    """Every row as it was written."""

    def __post_init__(self) -> None:
        for number in range(self.size):
            self.join(f"d{number}")
        first = revision(1)
        self.deployment: Deployment = bare(settings(1))
        self._take(FleetChange(created(self.deployment, first, self.at())))
        self.settle()

    def at(self) -> Now:
        """The time."""
        return Now(self.now)

    def join(self, name: str) -> None:
        """Another device."""
        self.devices[name] = device(name)

    def leave(self, name: str) -> None:
        """It is not meant any more."""
        self.devices.pop(name, None)
        self.settle()

    def back(self, name: str) -> None:
        """It is meant, as at first or again."""
        if name not in self.devices:
            self.join(name)
        self.settle()

    @property
    def fleet(self) -> FleetView:
        """What decisions are made from."""
        view = View(self.deployment, self.revisions)
        return FleetView(view, self.policy, self.rows, self.devices, self.refuse, self.roomier)

    @property
    def rollout(self) -> Rollout:
        """The newest roll-out."""
        assert self.deployment.rollout is not None
        return self.deployment.rollout

    def state(self) -> RolloutState:
        """Where it stands."""
        return self.rollout.state

    def stage(self, name: str) -> Stage:
        """Where a device stands."""
        return self.rows[name].stage

    @property
    def tally(self) -> Tally:
        """Who stands where."""
        return tally(self.rows.values())

    def names(self, *stages: Stage) -> list[str]:
        """Devices in these stages, by name."""
        return sorted(row.device for row in self.rows.values() if row.stage in stages)

    def runs(self, name: str) -> int:
        """The revision that a device is to run."""
        return revision_for(self.deployment, self.rows.get(name), self.policy)

    # -- what happens ---------------------------------------------------------------------------

    def deploy(self, number: int) -> None:
        """Another revision."""
        self._write(superseded(self.rows.values(), self.at()))
        self.rows = {}
        view = View(self.deployment, self.revisions)
        change = updated(view, self.deployment.settings, revision(number), "", self.at())
        assert change is not None
        self._take(FleetChange(change))
        self.settle()

    def resume(self) -> None:
        """Somebody lets it go on."""
        change = resumed(View(self.deployment, self.revisions), self.at())
        assert change is not None
        self.take(FleetChange(change))

    def say(self, names: Iterable[str], *stages: Stage, cause: Cause | None = None) -> None:
        """Devices say how they fare with the newest revision."""
        for stage in stages:
            why = cause if stage.bad else None
            words = [
                Word(name, self.rollout.to_revision, stage, self.rows[name].tries, why)
                for name in names
            ]
            self._write(said(self.fleet, words, self.at()))
        self.settle()

    def work(self, names: Iterable[str]) -> None:
        """Devices take it up, and it stays healthy there."""
        self.say(names, Stage.APPLYING, Stage.BAKING, Stage.SUCCEEDED)

    def fail(self, names: Iterable[str], cause: Cause = UNHEALTHY) -> None:
        """Devices take it up, and it does not work there."""
        self.say(names, Stage.APPLYING, Stage.FAILED, cause=cause)

    def pass_time(self, micros: int) -> None:
        """Time goes by."""
        self.now += micros
        self.settle()

    def report(self) -> None:
        """Every device has done what it is to do."""
        for name, one in self.devices.items():
            self.devices[name] = replace(one, acked=one.generation, reported=one.generation)
        self.settle()

    def settle(self) -> None:
        """All that follows by itself."""
        for _ in range(100):
            change = step(self.fleet, self.at())
            if change is None:
                self._compose()
                return
            self._take(change)
        raise AssertionError("it never comes to rest")

    def take(self, change: FleetChange) -> None:
        """What somebody asked for."""
        self._take(change)
        self.settle()

    def _take(self, change: FleetChange) -> None:
        if change.change is not None:
            assert change.change.expected == self.deployment.version
            self.deployment = change.change.deployment
            self.revisions |= {one.revision: one for one in change.change.revisions}
        self._write(change.rows)
        self._compose()

    def _write(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows[row.device] = row
            self.told.append(row)

    def _compose(self) -> None:
        for name, one in self.devices.items():
            number, row = self.runs(name), self.rows.get(name)
            tries = row.tries if row is not None else 0
            wants = [Want("reader", number, tries)] if number else []
            self.devices[name] = desired(one, wants)
