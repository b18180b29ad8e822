"""One deployment to devices: for whom it is, and where they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hatoba.v1 import device_pb2, worker_pb2
from hatoba_scheduler.control.deployments import Live
from hatoba_scheduler.convert_deployments import FleetShown, spec_of
from hatoba_scheduler.convert_devices import (
    Targets,
    needs_of,
    targets_of,
)
from hatoba_scheduler.domain.deployments import RolloutState
from hatoba_scheduler.domain.device_rollouts import (
    Row,
    Stage,
    Word,
    revision_for,
    tally,
)
from hatoba_scheduler.domain.devices import (
    Device,
    Misfit,
    Needs,
    Want,
    matches,
    misfit,
    roomier,
)
from hatoba_scheduler.domain.records import Cause, LabelRequirement
from hatoba_scheduler.domain.states import CauseCode, Origin

_GIVEN_UP = (RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK, RolloutState.FAILED)


@dataclass(eq=False, slots=True)
class Fleet:
    """One deployment to devices: for whom it is, and where they stand."""

    live: Live
    targets: Targets
    read_from: bytes
    """The specification that `targets` were read from."""
    connected: set[str]
    """Devices that can be reached now, whatever they are for."""
    number: int = 0
    """The roll-out that `rows` are of."""
    rows: dict[str, Row] = field(default_factory=dict)
    stages: Counter[Stage] = field(default_factory=Counter)
    """How many rows are of each stage."""
    meant: dict[str, Device] = field(default_factory=dict)
    words: dict[str, Word] = field(default_factory=dict)
    """What devices said of the newest revision since the last turn."""
    _running: dict[str, int] = field(default_factory=dict)
    """The revisions that devices say they run (0: none), of those whose last report was read."""
    roomier: set[str] = field(default_factory=set)
    """Devices that it may fit now, though it was refused there."""
    _needs: dict[int, Needs] = field(default_factory=dict)
    """By revision."""

    @property
    def name(self) -> str:
        """Its deployment (resource name)."""
        return self.live.deployment.resource

    @property
    def offers(self) -> bool:
        """Devices that come are offered the newest revision: it was not given up."""
        rollout = self.live.deployment.rollout
        return rollout is not None and rollout.state not in _GIVEN_UP

    def refresh(self) -> bool:
        """Read the specification, if it is another one; whether it was."""
        settings = self.live.deployment.settings
        if settings.spec == self.read_from:
            return False
        self.targets, self.read_from = targets_of(spec_of(settings)), settings.spec
        self._needs.clear()
        return True

    def select(self, devices: Iterable[Device]) -> None:
        """Look for whom it is, of all devices."""
        self.meant.clear()
        for device in devices:
            self.note(device)

    def note(self, device: Device) -> bool:
        """A device is new or changed; whether something is to be decided by that."""
        before = self.meant.get(device.name)
        if not matches(device, self.targets.selector):
            self.meant.pop(device.name, None)
            self._running.pop(device.name, None)
            return before is not None
        self.meant[device.name] = device
        if before is None or before.report != device.report:
            self._running.pop(device.name, None)
        row = self.rows.get(device.name)
        if row is not None and row.refused and (before is None or roomier(before, device)):
            self.roomier.add(device.name)
            return True
        return before is None

    def judged(self) -> None:
        """Nothing more follows now. What is paused is looked at when it goes on."""
        active = self.live.deployment.active
        if active is None or active.state is not RolloutState.PAUSED:
            self.roomier.clear()

    def take(self, number: int, rows: Iterable[Row]) -> None:
        """These are the rows of its newest roll-out. What was refused before we were here is
        looked at once more."""
        self.number, self.rows = number, {row.device: row for row in rows}
        self.stages = Counter(row.stage for row in self.rows.values())
        self.roomier = {row.device for row in self.rows.values() if row.refused}

    def put(self, row: Row) -> None:
        """A device stands elsewhere now."""
        before = self.rows.get(row.device)
        if before is not None:
            self.stages[before.stage] -= 1
        self.stages[row.stage] += 1
        self.rows[row.device] = row

    def template(self, revision: int) -> worker_pb2.ReplicaSpec | None:
        """What a revision is made from."""
        known = self.live.revisions.get(revision)
        return worker_pb2.ReplicaSpec.FromString(known.template) if known is not None else None

    def needs(self, revision: int) -> Needs:
        """What a revision asks of a device."""
        if (found := self._needs.get(revision)) is not None:
            return found
        template = self.template(revision)
        if template is None:
            return Needs()
        return self._needs.setdefault(revision, needs_of(template, self.targets))

    def want(self, device: Device) -> Want | None:
        """What a device is to run of it."""
        deployment, row = self.live.deployment, self.rows.get(device.name)
        number = revision_for(deployment, row, self.targets.policy)
        if not number or device.name not in self.meant:
            return None
        before = device.want(self.name)
        tries = before.tries if before is not None and before.revision == number else 0
        rollout = deployment.rollout
        if row is not None and rollout is not None and number == rollout.to_revision:
            tries = max(tries, row.tries)
        return Want(self.name, number, tries)

    # -- looking --------------------------------------------------------------------------------

    def shown(self) -> FleetShown:
        """See `FleetSeen`."""
        devices = self.meant.values()
        wants = (device.want(self.name) for device in devices)
        wanted = Counter(want.revision for want in wants if want is not None)
        running = Counter(map(self._runs, devices))
        del running[0]
        connected = len(self.connected & self.meant.keys())
        rollout = self.live.deployment.rollout
        # Of one that has just begun there are none yet.
        rows = self.rows if rollout is None or rollout.number == self.number else {}
        return FleetShown(tally(rows.values()), connected, wanted, running)

    def _runs(self, device: Device) -> int:
        """The revision that a device says it runs; each report is read once."""
        found = self._running.get(device.name)
        if found is None:
            slots = _slots(device, self.name)
            found = self._running[device.name] = next((slot.running for slot in slots), 0)
        return found

    def lost_by(self, selector: Sequence[LabelRequirement]) -> list[str]:
        """See `FleetSeen`."""
        return sorted(name for name, one in self.meant.items() if not matches(one, selector))


def unfit(fleet: Fleet, fleets: Iterable[Fleet], device: Device) -> Misfit | None:
    """Why the newest revision cannot be on a device beside what it goes on with of others."""
    rollout = fleet.live.deployment.rollout
    if rollout is None:
        return None
    others = [
        one.needs(want.revision)
        for one in fleets
        if one is not fleet and (want := device.want(one.name)) is not None
    ]
    return misfit(device, fleet.needs(rollout.to_revision), others)


def refusal(fleet: Fleet, fleets: Iterable[Fleet], device: Device) -> Cause | None:
    """That as the cause of a roll-out's row."""
    found = unfit(fleet, fleets, device)
    if found is None:
        return None
    return Cause(CauseCode.NO_CAPACITY, Origin.CAPACITY, found.message, found.passing)


def _slots(device: Device, deployment: str) -> Iterable[device_pb2.DeviceSlot]:
    """What a device said last of a deployment."""
    report = device_pb2.DeviceReport.FromString(device.report)
    return (slot for slot in report.slots if slot.deployment == deployment)
