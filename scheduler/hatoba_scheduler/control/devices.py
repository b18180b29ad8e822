"""All devices of this installation in memory, and every guarded change of one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.devices import GRPC, Device, DeviceState
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.errors import Aborted, HatobaError, NotFound, Resource
from hatoba_scheduler.store.devices import DeviceEvent, DeviceStore, NotEnrolled, Write, batches
from hatoba_scheduler.whole import whole

log = structlog.get_logger(__name__)

Decide = Callable[[Device], Device | None]
DENIALS = 1_000
"""Refusals that wait to be stored."""
SEEN_EVERY = 60.0
"""Seconds between two notes of when devices were seen last."""


class Happening(NamedTuple):
    """What an event of a device tells."""

    kind: str
    message: str
    actor: str = "system"


class Enrolment(NamedTuple):
    """A machine that becomes a device."""

    write: Write
    event: DeviceEvent


class DeviceBook:
    """Devices by name."""

    def __init__(self, store: DeviceStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._all: dict[str, Device] = {}
        self._seen: dict[str, Micros] = {}
        self._listeners: list[Callable[[Device], None]] = []
        self._lock = asyncio.Lock()
        self._denials: asyncio.Queue[tuple[str, str]] = asyncio.Queue(DENIALS)

    async def recover(self) -> None:
        """Load what there is."""
        self._all = {one.name: one for one in await self._store.load()}

    def listen(self, listener: Callable[[Device], None]) -> None:
        """Tell this listener of each device that is new, changed or gone."""
        self._listeners.append(listener)

    def _tell(self, device: Device) -> None:
        for listener in self._listeners:
            listener(device)

    # -- looking --------------------------------------------------------------------------------

    def get(self, name: str) -> Device | None:
        """A device by name."""
        return self._all.get(name)

    @property
    def by_name(self) -> Mapping[str, Device]:
        """All devices; changes as they do."""
        return self._all

    def dials(self, name: str) -> bool:
        """Whether there is such a device, and it dials us."""
        device = self._all.get(name)
        return device is not None and device.transport == GRPC

    def all(self) -> list[Device]:
        """All devices."""
        return list(self._all.values())

    def named(self, text: str) -> Device:
        """The device that somebody named, `devices/NAME` or NAME. Raises NotFound."""
        name = text.removeprefix("devices/")
        device = self._all.get(name)
        if device is None:
            raise NotFound(
                f"no device {name!r}; `hatoba devices list` names those there are",
                resource=Resource("device", f"devices/{name}"),
            )
        return device

    def last_seen(self, device: Device) -> Micros:
        """When it was heard last."""
        return max(device.last_seen, self._seen.get(device.name, 0))

    # -- changing -------------------------------------------------------------------------------

    async def enroll(
        self, name: str, make: Callable[[Device | None], Enrolment], key: str, token: str
    ) -> Device | NotEnrolled | None:
        """See `DeviceStore.enroll`; `make` is given the device of that name. Raises Unavailable."""
        async with self._lock:
            write, event = make(self._all.get(name))
            known = await whole(self._store.enroll(write, key, token, event))
            if known is None:
                self._all[name] = write.device
                self._tell(write.device)
            return known

    async def adopt(self, device: Device, happening: Happening) -> None:
        """Take in a device that somebody else has made ours, unless there is one of its name.
        Raises Aborted, Unavailable.
        """
        async with self._lock:
            if device.name not in self._all:
                event = self._event(device.name, happening)
                await whole(self._write([Write(device, 0)], [event]))

    async def change(self, name: str, decide: Decide, *events: Happening) -> Device:
        """Carry out what `decide` makes of a device as it is now; None: nothing, and no event.

        Raises NotFound, Aborted, Unavailable.
        """
        async with self._lock:
            before = self.named(name)
            after = decide(before)
            if after is None:
                return before
            happened = [self._event(name, one) for one in events]
            await whole(self._write([Write(after, before.version)], happened))
            return after

    async def change_all(self, names: Iterable[str], decide: Decide) -> list[Device]:
        """Carry it out for many; those that were changed. Raises Aborted, Unavailable."""
        async with self._lock:
            pairs = [(one, decide(one)) for name in names if (one := self._all.get(name))]
            writes = [Write(after, before.version) for before, after in pairs if after is not None]
            for some in batches(writes):
                await whole(self._write(some, ()))
            return [one.device for one in writes]

    async def _write(self, writes: Sequence[Write], events: Sequence[DeviceEvent]) -> None:
        stale = await self._store.write(writes, events)
        if stale:
            names = ", ".join(sorted(stale)[:5])
            raise Aborted(f"devices were changed at the same time: {names}; read again and retry")
        for one in writes:
            self._all[one.device.name] = one.device
            self._tell(one.device)

    async def note(self, name: str, happening: Happening) -> None:
        """Keep an event of a device. Raises Unavailable."""
        await self._store.write((), [self._event(name, happening)])

    def _event(self, name: str, happening: Happening) -> DeviceEvent:
        time = round(self._clock.time() * 1e6)
        return DeviceEvent(name, time, happening.kind, happening.message, happening.actor)

    async def remove(self, name: str) -> None:
        """Forget a device. Raises Unavailable."""
        async with self._lock:
            device = self._all.get(name)
            if device is None:
                return
            await whole(self._store.remove(name))
            del self._all[name]
            self._seen.pop(name, None)
        log.info("device.forgotten", device=name)
        self._tell(changed(device, state=DeviceState.REVOKED))

    # -- signs of life --------------------------------------------------------------------------

    def saw(self, name: str) -> None:
        """A sign of life; on the disk within a while."""
        self._seen[name] = round(self._clock.time() * 1e6)

    async def run(self) -> None:
        """Keep when devices were seen last, and what they were refused, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_seen_forever(), name="devices-seen")
            tasks.create_task(self._keep_denials(), name="devices-denied")

    async def _keep_seen_forever(self) -> None:
        while True:
            await self._clock.sleep(SEEN_EVERY)
            with _told_of_failures("device.not_noted"):
                await self.keep_seen()

    def denied(self, device: str, message: str) -> None:
        """A call that was made in a device's name was refused; one too many is in the log alone."""
        if device in self._all and not self._denials.full():
            self._denials.put_nowait((device, message))

    async def _keep_denials(self) -> None:
        while True:
            device, message = await self._denials.get()
            with _told_of_failures("device.not_noted"):
                await self.note(device, Happening("denied", message))

    async def keep_seen(self) -> None:
        """Put on the disk when devices were seen last. Raises Unavailable."""
        for some in batches(list(self._fresh())):
            await self._store.touch(some)

    def _fresh(self) -> Iterator[tuple[str, Micros]]:
        for name, time in list(self._seen.items()):
            device = self._all.get(name)
            if device is not None and time > device.last_seen:
                self._all[name] = changed(device, last_seen=time)
                yield name, time


@contextlib.contextmanager
def _told_of_failures(event: str) -> Iterator[None]:
    """What cannot be stored now is in the log."""
    try:
        yield
    except HatobaError as error:
        log.warning(event, error=error.message)


def relabelled(device: Device, labels: Iterable[tuple[str, str]]) -> Device | None:
    """With other labels; None: they are the same."""
    told = tuple(sorted(labels))
    if told == device.labels:
        return None
    return changed(device, labels=told, version=device.version + 1)


def showed(device: Device, since: Micros) -> Device | None:
    """After it has shown a certificate that begins then; None: it has shown a newer one, or it."""
    if since <= device.certificate_since:
        return None
    return changed(device, certificate_since=since, version=device.version + 1)


def put_into(device: Device, state: DeviceState, *, told: bool = False) -> Device | None:
    """In another state; None: it is in it. One that was revoked stays so. `told`: the device has to
    hear of it, and say so, by a newer generation.
    """
    if device.state in (state, DeviceState.REVOKED):
        return None
    newer = device.generation + told
    return changed(device, state=state, generation=newer, version=device.version + 1)
