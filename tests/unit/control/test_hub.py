"""What the hub keeps of hosts whatever happens at the same time, and whom it tells what."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest
from domain_rows import NOW, intent, new_job
from fake_hosts import FakeHost, KeptHosts

from hatoba.v1 import runner_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import CapacitySnapshot, Gap
from hatoba_scheduler.control.activity import Activity
from hatoba_scheduler.control.draining import (
    Drainer,
    Drains,
    Place,
    backend_place,
    host_place,
    queue_places,
)
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.domain import causes, gangs
from hatoba_scheduler.domain.records import Attempt, BackendNote, Change, Host, Queue, Terms
from hatoba_scheduler.domain.states import AttemptState, CauseCode
from hatoba_scheduler.domain.transitions import Outcome, Rows, View, ended, launch, running
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.errors import StorageFailed

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books

TURNS = 20


class SlowHosts(KeptHosts):
    """A store whose writes take effect when the test says so, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()

    async def put_host(self, host: Host) -> None:
        await self.open.wait()
        await super().put_host(host)


def hub_on(store: KeptHosts) -> Hub:
    return Hub(cast(Store, store), FakeClock(), "0")


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


# -- what operators say ----------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["cordon", "stream"])
async def test_a_cordon_while_a_host_comes_and_goes_is_kept(first: str) -> None:
    store = SlowHosts()
    hub = hub_on(store)
    host = FakeHost("a")
    await host.connect(hub)
    for stream in (host.leave, partial(FakeHost("a").connect, hub)):
        await hub.cordon("a", False)
        store.open.clear()
        ways = [hub.cordon("a", True, "new fans", drain=True), stream()]
        async with asyncio.TaskGroup() as tasks:
            for way in ways if first == "cordon" else reversed(ways):
                tasks.create_task(way)
                await asyncio.sleep(0)
            await turns()
            store.open.set()
        for one in (hub.host("a"), store.kept["a"]):
            assert (one.cordoned, one.draining, one.cordon_reason) == (True, True, "new fans")


# -- what backends hear ----------------------------------------------------------------------------


async def test_who_is_slow_gets_one_snapshot_for_all_that_changed() -> None:
    hub = hub_on(KeptHosts())
    watch = hub.watch()
    assert isinstance(await anext(watch), CapacitySnapshot)
    await anext(watch)
    for number in range(50):
        await FakeHost(f"host-{number}").connect(hub)
    first = await anext(watch)
    assert isinstance(first, CapacitySnapshot)
    assert len(first.pools) == 50
    assert [await anext(watch) for _ in range(50)] == [Gap(f"host-{n}") for n in range(50)]
    await hub.cordon("host-7", True)
    news = await anext(watch)
    assert isinstance(news, CapacitySnapshot)
    assert [pool.name for pool in news.pools if not pool.accepting] == ["host-7"]


# -- what members of gangs hear --------------------------------------------------------------------


class Machine(FakeHost):
    """A host that shows what was said to it."""

    def called(self) -> list[str]:
        """Attempts that may ask for their claim again."""
        assert self._session is not None
        items, self._session.out = self._session.out, []
        answers = [item.claimed for item in items if item.WhichOneof("item") == "claimed"]
        assert {one.verdict for one in answers} <= {runner_pb2.CLAIM_VERDICT_WAIT}
        assert not any(one.HasField("retry_after") for one in answers)
        return sorted(one.attempt for one in answers)


async def claim(books: Books, index: int) -> None:
    def decide(rows: Rows) -> Change | None:
        view = rows.view(index)
        return gangs.claimed(view, "n" * 16, f"h:{index}", NOW) if view else None

    await books.ledger.decide("g", decide)


async def test_members_hear_at_once_that_the_last_has_claimed(books: Books) -> None:
    hub = hub_on(KeptHosts())
    books.ledger.listen(hub.on_commit)
    one, two = Machine("one"), Machine("two")
    await one.connect(hub)
    await two.connect(hub)
    await books.submit(replace(new_job("g", size=3), terms=Terms(gang=True, gang_timeout=60.0)))

    def begun(rows: Rows) -> Change | None:
        hosts = ("one", "one", "two")
        intents = [replace(intent(rows, n), host=host) for n, host in enumerate(hosts)]
        return gangs.launch_all(rows, intents, NOW)

    await books.ledger.decide("g", begun)
    await claim(books, 0)
    await claim(books, 2)
    assert (one.called(), two.called()) == ([], [])
    await claim(books, 1)
    names = [attempt.name for _, attempt in sorted(books.rows("g").attempts.items())]
    assert (one.called(), two.called()) == (names[:2], names[2:])
    for index in range(3):
        attempt = books.rows("g").attempts[index]
        await books.ledger.decide("g", of_attempt(index, attempt.name, run))
    assert (one.called(), two.called()) == ([], [])


def run(view: View) -> Change | None:
    return running(view, 5, "", NOW)


# -- drains ----------------------------------------------------------------------------------------


class Broken(StorageFailed):
    """A store that cannot write now."""


async def placed(books: Books, uid: str, host: str) -> Attempt:
    """A job that runs on a host."""
    await books.submit(new_job(uid))
    await books.ledger.decide(uid, lambda rows: launch(rows, replace(intent(rows), host=host), NOW))
    name = books.rows(uid).attempts[0].name
    await books.ledger.decide(uid, of_attempt(0, name, run))
    return books.rows(uid).attempts[0]


def states(books: Books, *uids: str) -> list[AttemptState]:
    return [books.rows(uid).attempts[0].state for uid in uids]


def drainer_of(books: Books, clock: FakeClock) -> Drainer:
    activity = Activity(clock)
    activity.recover(books.ledger.all_rows())
    books.ledger.listen(activity.on_commit)
    return Drainer(books.ledger, clock, lambda: activity.live)


async def test_a_drain_goes_on_until_nothing_is_left(books: Books) -> None:
    clock = FakeClock()
    hub = hub_on(KeptHosts())
    books.ledger.listen(hub.on_commit)
    for name in ("a", "b"):
        await FakeHost(name).connect(hub)
    await placed(books, "early", "a")
    await placed(books, "elsewhere", "b")
    drainer = drainer_of(books, clock)
    drains = Drains(
        drainer, clock, lambda: [host_place(host) for host in hub.hosts() if host.draining]
    )
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(drains.run())
        await clock.advance(10.0)
        assert states(books, "early") == [AttemptState.RUNNING]
        # The server ended before it had told anybody; then the disk is full for a while.
        await hub.cordon("a", True, "new fans", drain=True)
        books.store.fail_with = Broken("disk full")
        await clock.advance(6.0)
        assert states(books, "early") == [AttemptState.RUNNING]
        books.store.fail_with = None
        await clock.advance(6.0)
        assert states(books, "early", "elsewhere") == [AttemptState.STOPPING, AttemptState.RUNNING]
        # An intent that was on its way when the host was cordoned.
        await placed(books, "late", "a")
        await clock.advance(6.0)
        assert states(books, "late") == [AttemptState.STOPPING]
        task.cancel()
    cause = books.rows("late").attempts[0].cause
    assert cause is not None
    assert cause.code is CauseCode.DRAINED
    assert cause.message == "Host 'a' was drained by an operator: new fans."


async def test_what_has_moved_on_meanwhile_is_not_drained(books: Books) -> None:
    clock = FakeClock()
    attempt = await placed(books, "a", "old")
    drainer = drainer_of(books, clock)
    books.store.open.clear()
    lost = Outcome(AttemptState.LOST, causes.lost("Its host is gone."), gone=True)
    books.ledger.ask("a", of_attempt(0, attempt.name, lambda view: ended(view, lost, NOW)))
    books.ledger.ask("a", lambda rows: launch(rows, replace(intent(rows), host="new"), NOW))
    async with asyncio.TaskGroup() as tasks:
        drain = drainer.drain(
            Place("Host 'old'", "fans", lambda _, one: one.host == "old"), "admin"
        )
        draining = tasks.create_task(drain)
        await turns()
        books.store.open.set()
    assert draining.result() == 0
    assert books.rows("a").attempts[0].state is AttemptState.LAUNCHING


async def test_a_drain_of_a_queue_is_of_what_is_in_it(books: Books) -> None:
    clock = FakeClock()
    for number in range(3):
        await placed(books, f"job-{number}", "a")
    drainer = drainer_of(books, clock)
    place = Place("Queue 'q'", "", lambda job, _: job.uid != "job-1")
    assert await drainer.drain(place, "admin") == 2
    assert states(books, "job-0", "job-1", "job-2") == [
        AttemptState.STOPPING,
        AttemptState.RUNNING,
        AttemptState.STOPPING,
    ]


class StoredQueues:
    """A store of these queues alone."""

    def __init__(self, *queues: Queue) -> None:
        self._queues = list(queues)

    async def queues(self, project: str | None, after: str, limit: int) -> list[Queue]:
        return self._queues if not after else []


async def test_drains_of_queues_and_backends_go_on_after_a_restart(books: Books) -> None:
    clock = FakeClock()
    drainer = drainer_of(books, clock)
    stored = StoredQueues(
        Queue("default", "above", 1, "admin", 0, cordoned=True, draining=True),
        Queue("default", "below", 1, "admin", 0, parent="above"),
    )
    queues = QueueBook(cast(Store, stored), lambda _: None, lambda _: None)
    await queues.recover()
    notes = [BackendNote("spot", cordoned=True, cordon_reason="prices", draining=True)]
    drains = Drains(drainer, clock, lambda: queue_places(queues), lambda: map(backend_place, notes))
    for uid, queue, backend in (("q", "below", "mock"), ("b", "other", "spot"), ("c", "o", "mock")):
        await books.submit(replace(new_job(uid), queue=queue, backend=backend))
        await books.ledger.decide(uid, lambda rows: launch(rows, intent(rows), NOW))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(drains.run())
        await clock.advance(6.0)
        task.cancel()
    launching, stopping = AttemptState.LAUNCHING, AttemptState.STOPPING
    assert states(books, "q", "b", "c") == [stopping, stopping, launching]
    told = [books.rows(uid).attempts[0].cause for uid in ("q", "b")]
    assert [cause.message for cause in told if cause is not None] == [
        "Queue 'above' was drained by an operator.",
        "Backend 'spot' was drained by an operator: prices.",
    ]


# -- devices ---------------------------------------------------------------------------------------


async def test_a_host_and_a_device_of_one_name_have_each_their_own(books: Books) -> None:
    clock = FakeClock()
    hosts = hub_on(KeptHosts())
    devices = Hub(cast(Store, KeptHosts()), clock, "0", of_devices=True)
    for hub in (hosts, devices):
        books.ledger.listen(hub.on_commit)
        await FakeHost("a").connect(hub)
    pinned = replace(new_job("pinned"), terms=Terms(devices=("a",)))
    await books.submit(pinned)
    await books.ledger.decide(
        "pinned", lambda rows: launch(rows, replace(intent(rows), host="a"), NOW)
    )
    assert [hub.held_of("a")[1] for hub in (hosts, devices)] == [0, 1]
    await placed(books, "plain", "a")
    assert [hub.held_of("a")[1] for hub in (hosts, devices)] == [1, 1]
    drainer = drainer_of(books, clock)
    await hosts.cordon("a", True, "new fans", drain=True)
    assert await drainer.drain(host_place(hosts.host("a")), "admin") == 1
    assert states(books, "plain", "pinned") == [AttemptState.STOPPING, AttemptState.LAUNCHING]
