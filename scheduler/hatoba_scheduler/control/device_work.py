"""Jobs that are for devices: which devices have something to do, and what ends with a device.

A device opens a stream for jobs only while it has any, so it has to be told. Nothing here is
remembered that could not be made again from the ledger.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.device_hub import DeviceHub
from hatoba_scheduler.control.devices import DeviceBook
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.ledger import Commit, Ledger
from hatoba_scheduler.control.todo import Todo
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.device_jobs import queued_on, waiting_on, without_devices
from hatoba_scheduler.domain.devices import Device, DeviceState
from hatoba_scheduler.domain.planning.model import Explained
from hatoba_scheduler.domain.records import Cause, Change, Event, Host
from hatoba_scheduler.domain.states import JobState, WaitReason
from hatoba_scheduler.domain.timing import shown
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.errors import FailedPrecondition, NotFound
from hatoba_scheduler.store.base import Parked, ServerIdentity

log = structlog.get_logger(__name__)

REMIND = 15.0
"""Seconds until a device that did not open its stream for jobs is told again."""
GROUP = 100
AGAIN = 1.0
SAID = 5
"""So many devices are named in a reason."""
_GONE = {
    DeviceState.REVOKED: "was revoked",
    DeviceState.LEAVING: "is being decommissioned",
}


class DeviceWork:
    """Follows the jobs that are for devices. `hub` is that of their streams for jobs."""

    def __init__(
        self, ledger: Ledger, clock: Clock, book: DeviceBook, devices: DeviceHub, hub: Hub
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._book = book
        self._devices = devices
        self._hub = hub
        self._of_job: dict[str, frozenset[str]] = {}
        self._jobs: defaultdict[str, set[str]] = defaultdict(set)
        """By device: jobs that have something to do there."""
        self._ending = Todo(clock)
        """Jobs of which something is for a device that is gone."""
        devices.works = self.has
        book.listen(self._on_device)
        ledger.listen(self.on_commit, self.on_parked)

    # -- what it is told --------------------------------------------------------------------------

    def recover(self) -> None:
        """Take in what is in the ledger's memory, at start; devices are known by then."""
        for rows in self._ledger.all_rows():
            self._look_at(rows)

    def on_parked(self, batch: Sequence[Parked]) -> None:
        """Take in jobs that are not in the ledger's memory, at start."""
        for alike in batch:
            if alike.terms.devices and alike.state is JobState.QUEUED:
                for uid in alike.uids:
                    self._note(uid, frozenset(alike.terms.devices))

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Take in committed changes; a listener of the ledger."""
        del events
        for commit in commits:
            self._look_at(commit.rows)

    def _look_at(self, rows: Rows) -> None:
        if rows.job.terms.devices:
            self._note(rows.job.uid, frozenset(waiting_on(rows)))

    def _note(self, uid: str, devices: frozenset[str]) -> None:
        before = self._of_job.pop(uid, frozenset())
        if devices:
            self._of_job[uid] = devices
        for name in before - devices:
            self._jobs[name].discard(uid)
            if not self._jobs[name]:
                del self._jobs[name]
        for name in devices - before:
            self._jobs[name].add(uid)
            self._tell(name)
        if any(self._gone_for(name) for name in devices):
            self._ending.add(uid)

    def _on_device(self, device: Device) -> None:
        if self._gone_for(device.name) is not None:
            for uid in self._jobs.get(device.name, ()):
                self._ending.add(uid)

    def _tell(self, name: str) -> None:
        if not self._hub.reachable(name):
            self._devices.tell_of_work(name)

    # -- what it says -----------------------------------------------------------------------------

    def has(self, device: str) -> bool:
        """Whether something is to run on a device, or may be running there."""
        return device in self._jobs

    def jobs(self, device: str) -> list[str]:
        """Names of the jobs that have something to do on a device, oldest first."""
        return [self._name_of(uid) for uid in sorted(self._jobs.get(device, ()))]

    def _name_of(self, uid: str) -> str:
        rows = self._ledger.rows(uid)
        return rows.job.name if rows is not None else uid

    def _gone_for(self, name: str) -> Cause | None:
        """Why a device is gone for good; None: it is not."""
        device = self._book.get(name)
        if device is None:
            return causes.device_gone(name, "was decommissioned")
        if device.state is DeviceState.ENROLLED:
            return None
        return causes.device_gone(name, _GONE[device.state])

    def away(self, rows: Rows) -> Explained | None:
        """Why tasks of a job wait for their devices; None: the first that waits has all of that."""
        queued = list(queued_on(rows)) if rows.job.terms.devices else []
        names = [name for name in queued if not self._hub.reachable(name)]
        if not names or names[0] != queued[0]:
            return None
        told = [self._state_of(name) for name in names[:SAID]]
        if len(names) > SAID:
            told.append(f"{len(names) - SAID} more devices likewise")
        remedy = f"`hatoba devices get {names[0]}` says how it is."
        return Explained(WaitReason.DEVICE_AWAY, f"{'; '.join(told)}.", remedy)

    def _state_of(self, name: str) -> str:
        device = self._book.get(name)
        if self._devices.connected(name):
            return f"Device {name} is connected and was told; it starts when it is ready"
        seen = self._book.last_seen(device) if device is not None else 0
        since = f" since {shown(seen)}" if seen else ""
        return f"Device {name} is offline{since}; it starts when it connects"

    # -- the loops --------------------------------------------------------------------------------

    async def remind(self) -> None:
        """Tell devices again of their jobs while they do not ask for them, and forget what those
        had that are none of ours any more; until cancelled.
        """
        while True:
            await self._clock.sleep(REMIND)
            for name in list(self._jobs):
                self._tell(name)
            for host in self._hub.hosts():
                await self._bury(host)

    async def _bury(self, host: Host) -> None:
        """Nobody will ever say what became of the attempts of a device that may not come again."""
        device = self._book.get(host.name)
        comes = device is not None and device.state is not DeviceState.REVOKED
        if comes or self._hub.reachable(host.name):
            return
        # Both are refused while there is something: then it is for the next time.
        with suppress(FailedPrecondition, NotFound):
            if not host.declared_gone:
                await self._hub.declare_gone(host.name)
            await self._hub.remove(host.name)

    async def run(self) -> None:
        """End what is for devices that are gone, until cancelled."""
        while True:
            for uid in await self._ending.take(GROUP):
                try:
                    await self._ledger.ask(uid, self._decide)
                except Exception as error:  # noqa: BLE001 - it is asked for again
                    log.warning("device_work.not_stored", job=uid, error=repr(error))
                    self._ending.add_later(uid, AGAIN)

    def _decide(self, rows: Rows) -> Change | None:
        now = Now(round(self._clock.time() * 1e6))
        return without_devices(rows, self._gone_for, now)


class Unkept:
    """Keeps no hosts: what matters of a device's is told anew whenever it opens its stream."""

    def __init__(self, identity: ServerIdentity) -> None:
        self.identity = identity

    async def hosts(self) -> list[Host]:
        """None from before."""
        return []

    async def put_host(self, host: Host) -> None:
        """Not kept."""

    async def delete_host(self, name: str) -> None:
        """There is nothing to delete."""
