"""Which devices have something to do, whether they hear of it, and what ends with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from device_rows import device
from domain_rows import NOW, new_job
from memory_store import parked_of

from hatoba.v1 import device_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.device_hub import DeviceHub
from hatoba_scheduler.control.device_work import REMIND, DeviceWork
from hatoba_scheduler.control.devices import DeviceBook
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.devices import Device, DeviceState
from hatoba_scheduler.domain.records import Host, Job, Resources, Terms
from hatoba_scheduler.domain.states import JobState, WaitReason
from hatoba_scheduler.domain.transitions import cancel
from hatoba_scheduler.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.control.conftest import Books


@dataclass
class Known:
    """Devices that a test puts there, as a DeviceBook has them."""

    devices: dict[str, Device] = field(default_factory=dict)
    listeners: list[Callable[[Device], None]] = field(default_factory=list)

    def get(self, name: str) -> Device | None:
        return self.devices.get(name)

    def listen(self, listener: Callable[[Device], None]) -> None:
        self.listeners.append(listener)

    def last_seen(self, one: Device) -> int:
        return one.last_seen

    def put(self, one: Device) -> None:
        self.devices[one.name] = one
        for listener in self.listeners:
            listener(one)


@dataclass
class Streams:
    """Devices whose stream for jobs is open."""

    open: set[str] = field(default_factory=set)
    known: dict[str, Host] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)
    """Of those that are not to be removed yet."""

    def reachable(self, name: str) -> bool:
        return name in self.open

    def hosts(self) -> list[Host]:
        return list(self.known.values())

    async def declare_gone(self, name: str) -> Host:
        host = self.known[name] = replace(self.known[name], declared_gone=True)
        return host

    async def remove(self, name: str) -> Host:
        if name in self.busy:
            raise FailedPrecondition("it has something")
        return self.known.pop(name)


@dataclass
class Place:
    """All of it."""

    books: Books
    clock: FakeClock = field(default_factory=FakeClock)
    known: Known = field(default_factory=Known)
    streams: Streams = field(default_factory=Streams)

    def __post_init__(self) -> None:
        self.devices = DeviceHub(self.clock, 30.0)
        book, hub = cast(DeviceBook, self.known), cast(Hub, self.streams)
        self.work = DeviceWork(self.books.ledger, self.clock, book, self.devices, hub)

    def come(self, name: str) -> Callable[[], bool]:
        """A device connects; whether it was told that it has jobs, since it was asked last."""
        hello = device_pb2.DeviceHello(device=name, boot_id="b", installation="i" * 8)
        session = self.devices.open(hello, "peer")

        def told() -> bool:
            response = session.take()
            return response is not None and response.items[0].HasField("work")

        return told

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """With its loops."""

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.work.run(), name="work"),
                group.create_task(self.work.remind(), name="remind"),
            ]
            await self.clock.advance(0.0)
            yield
            for task in tasks:
                task.cancel()


def place_of(books: Books, *names: str) -> Place:
    """With these devices."""
    place = Place(books)
    for name in names:
        place.known.put(device(name, last_seen=NOW.time))
    return place


def job(*devices: str, uid: str = "job-1") -> Job:
    """One task on each."""
    return replace(new_job(uid, size=len(devices)), terms=Terms(devices=devices))


async def test_devices_have_work_until_their_tasks_are_over(books: Books) -> None:
    place = place_of(books, "a", "b")
    told = place.come("a")
    assert not told()
    await books.submit(job("a", "b"))
    assert told()
    assert place.come("b")()
    assert place.work.jobs("b") == ["job-1-1"]
    await books.ledger.decide("job-1", lambda rows: cancel(rows, causes.cancelled("ann", ""), NOW))
    assert not place.work.has("a")
    assert not place.work.has("b")


async def test_who_does_not_ask_for_its_jobs_is_told_again(books: Books) -> None:
    place = place_of(books, "a", "b")
    await books.submit(job("a", "b"))
    told = {name: place.come(name) for name in "ab"}
    assert all(one() for one in told.values())
    place.streams.open.add("b")
    async with place.running():
        await place.clock.advance(REMIND + 1)
    assert told["a"]()
    assert not told["b"]()


async def test_what_is_none_of_ours_any_more_is_declared_gone_and_forgotten(books: Books) -> None:
    place = place_of(books, "stays", "left", "lost")
    place.known.put(device("left", state=DeviceState.REVOKED))
    place.known.put(device("lost", state=DeviceState.REVOKED))
    place.streams.known = {one: a_host(one) for one in ("stays", "left", "lost", "forgotten")}
    place.streams.open, place.streams.busy = {"left"}, {"lost"}
    async with place.running():
        await place.clock.advance(REMIND + 1)
        assert [*place.streams.known] == ["stays", "left", "lost"]
        gone = [one.name for one in place.streams.hosts() if one.declared_gone]
        assert gone == ["lost"]
        place.streams.open.clear()
        place.streams.busy.clear()
        await place.clock.advance(REMIND + 1)
        assert [*place.streams.known] == ["stays"]


def a_host(name: str) -> Host:
    """A device as its stream for jobs told of it."""
    return Host(name, "boot", "keeper", Resources(), (), (), (), "1", embedded=False)


async def test_a_new_process_knows_what_the_last_one_did(books: Books) -> None:
    await books.submit(job("a", "b"))
    place = place_of(books, "a", "b", "c")
    place.work.recover()
    place.work.on_parked([parked_of(job("c", uid="job-2"))])
    assert all(map(place.work.has, "abc"))


async def test_why_it_waits_names_the_devices_that_are_away(books: Books) -> None:
    place = place_of(books, "a", "b")
    await books.submit(job("a", "b"))
    place.come("a")
    told = place.work.away(books.rows())
    assert told is not None
    assert told.reason is WaitReason.DEVICE_AWAY
    assert "Device a is connected" in told.message
    assert "Device b is offline since 1970" in told.message
    place.streams.open.add("a")
    assert place.work.away(books.rows()) is None


async def test_a_job_for_no_devices_never_waits_for_one(books: Books) -> None:
    place = place_of(books)
    await books.submit(new_job())
    assert place.work.away(books.rows()) is None


async def test_what_is_for_a_device_that_is_revoked_ends(books: Books) -> None:
    place = place_of(books, "a", "b")
    await books.submit(job("a", "b"))
    async with place.running():
        place.known.put(device("a", state=DeviceState.REVOKED))
        await place.clock.advance(1.0)
        assert books.rows().tasks == {}
        assert list(books.rows().job.unstarted) == [1]
        place.known.put(device("b", state=DeviceState.LEAVING))
        await place.clock.advance(1.0)
    assert books.rows().job.state is JobState.FAILED


async def test_what_comes_late_for_a_device_that_is_forgotten_ends_too(books: Books) -> None:
    place = place_of(books, "a")
    async with place.running():
        await books.submit(job("gone"))
        await place.clock.advance(1.0)
    ended = books.rows().job
    assert ended.state is JobState.FAILED
    assert ended.cause == causes.device_gone("gone", "was decommissioned")
