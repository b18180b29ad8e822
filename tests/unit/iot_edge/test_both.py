"""Two roles as one: whose a device is, what is told of both, and what neither does to the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

import pytest
from waiting import turns

from hatoba.v1 import device_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.backend import BringsRecords, SignsDevices
from hatoba_plugins.backends.iot_edge.both import PAUSE, WAITING, BothDevices
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance.sites import document, hello, report
from hatoba_plugins.errors import Conflict, Denied, Retry
from hatoba_plugins.values import (
    Accepted,
    Away,
    DeviceCame,
    DeviceKept,
    DeviceNews,
    DeviceTold,
    DeviceWent,
    DeviceWish,
    Gap,
    Health,
    HealthStatus,
    NotYet,
    RefusedWish,
    Released,
    ReleaseOutcome,
    Synced,
    WishOutcome,
)

HERE = frozenset({"here-1", "here-2"})
"""Devices that dial us."""
End = Exception | None


@dataclass
class Half:
    """A role that answers as it is told to, and tells what it is given; None ends its reports."""

    answer: type[Accepted] | type[Away] = Accepted
    failure: Exception | None = None
    answers: asyncio.Event | None = None
    """It answers once this is set."""
    released: bool = True
    well: Health = field(default_factory=lambda: Health(HealthStatus.HEALTHY))
    wished: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    kept: list[DeviceKept] = field(default_factory=list)
    durable: list[tuple[str, int]] = field(default_factory=list)
    enrolled: list[str] = field(default_factory=list)
    asked: int = 0
    told: int = 0
    open: int = 0
    """Reports that are followed now."""
    news: asyncio.Queue[DeviceNews | End] = field(default_factory=asyncio.Queue)

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        await self._think()
        if self.failure is not None:
            raise self.failure
        self.wished += [wish.device for wish in wishes]
        return [self.answer(wish.device) for wish in wishes]

    async def reports(self) -> AsyncIterator[DeviceNews]:
        self.open += 1
        try:
            while (one := await self.news.get()) is not None:
                if isinstance(one, Exception):
                    raise one
                self.told += 1
                yield one
        finally:
            self.open -= 1

    async def forget(self, devices: Sequence[str]) -> list[ReleaseOutcome]:
        await self._think()
        self.forgotten += devices
        return [Released(one) if self.released else NotYet(one, 2.0) for one in devices]

    async def records(self) -> AsyncIterator[DeviceKept]:
        for one in self.kept:
            yield one

    async def stored(self, device: str, position: int) -> None:
        self.durable.append((device, position))

    async def check_free(self, device: str) -> None:
        if device in self.enrolled:
            raise Conflict(device)

    async def enroll(self, device: str, csr: str) -> device_pb2.DeviceIdentity:
        self.enrolled.append(device)
        return device_pb2.DeviceIdentity(device=device, certificate=f"signed {csr}")

    async def revoke(self, device: str) -> None:
        self.enrolled.remove(device)

    async def health(self) -> Health:
        return self.well

    async def _think(self) -> None:
        if self.answers is not None:
            self.asked += 1
            await self.answers.wait()

    def tells(self, *news: DeviceNews | End) -> None:
        for one in news:
            self.news.put_nowait(one)


@dataclass
class Pair:
    """Both halves and what they are together."""

    streams: Half = field(default_factory=Half)
    far: Half = field(default_factory=Half)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        dials, patience = HERE.__contains__, 0.02
        self.both = BothDevices(self.streams, self.far, dials, self.clock, patience)

    def following(self) -> aclosing[AsyncGenerator[DeviceNews, None]]:
        return aclosing(cast("AsyncGenerator[DeviceNews, None]", self.both.reports()))

    def sync(self) -> None:
        self.streams.tells(Synced())
        self.far.tells(Synced())


def wish(device: str) -> DeviceWish:
    return DeviceWish(device, document(1))


def came(device: str, transport: str = "grpc") -> DeviceCame:
    return DeviceCame(device, hello(device), transport)


# -- telling ---------------------------------------------------------------------------------------


async def test_each_is_wished_where_it_is_and_answered_in_its_turn() -> None:
    pair = Pair(Half(answer=Away))
    asked = [wish(name) for name in ("far-1", "here-1", "far-2", "here-2", "far-1")]
    assert await pair.both.desire(asked) == [
        Accepted("far-1"),
        Away("here-1"),
        Accepted("far-2"),
        Away("here-2"),
        Accepted("far-1"),
    ]
    assert pair.streams.wished == ["here-1", "here-2"]
    assert pair.far.wished == ["far-1", "far-2", "far-1"]


async def test_a_half_that_nothing_is_wished_of_is_not_asked() -> None:
    pair = Pair(far=Half(failure=Denied("no")))
    assert await pair.both.desire([wish("here-1")]) == [Accepted("here-1")]
    assert await pair.both.desire([]) == []


@pytest.mark.parametrize("failure", [Denied("not yours"), Unanswered("who knows")])
async def test_what_fails_at_aws_loses_nobody_elses_answer(failure: Exception) -> None:
    pair = Pair(far=Half(failure=failure))
    refused, accepted = await pair.both.desire([wish("far-1"), wish("here-1")])
    assert accepted == Accepted("here-1")
    assert isinstance(refused, RefusedWish)
    assert refused.device == "far-1"
    assert isinstance(refused.error, Denied if isinstance(failure, Denied) else Retry)
    assert str(failure) in str(refused.error)


async def test_while_aws_does_not_answer_the_others_do_not_wait_for_it() -> None:
    pair = Pair(far=Half(answers=asyncio.Event()))
    asked = [wish("far-1"), wish("here-1")]
    for _ in range(3):
        refused, accepted = await pair.both.desire(asked)
        assert accepted == Accepted("here-1")
        assert isinstance(refused, RefusedWish)
        assert isinstance(refused.error, Retry)
        assert isinstance((await pair.both.forget(["far-1"]))[0], NotYet)
    assert pair.far.asked == 1
    assert pair.far.answers is not None
    pair.far.answers.set()
    await pair.clock.advance(PAUSE)
    assert await pair.both.desire(asked) == [Accepted("far-1"), Accepted("here-1")]
    assert await pair.both.forget(["far-1"]) == [Released("far-1")]


@pytest.mark.parametrize(
    ("here", "there", "outcome"),
    [
        (True, True, Released("a")),
        (True, False, NotYet("a", 2.0)),
        (False, True, NotYet("a", 2.0)),
    ],
)
async def test_it_is_forgotten_once_it_is_in_both(
    here: bool, there: bool, outcome: ReleaseOutcome
) -> None:
    pair = Pair(Half(released=here), Half(released=there))
    assert await pair.both.forget(["a"]) == [outcome]
    assert pair.streams.forgotten == pair.far.forgotten == ["a"]


# -- hearing ---------------------------------------------------------------------------------------


async def test_it_is_synced_once_both_are() -> None:
    pair, first = Pair(), came("here-1")
    pair.streams.tells(first, Synced())
    async with pair.following() as news:
        assert await anext(news) == first
        async with asyncio.TaskGroup() as tasks:
            coming = tasks.create_task(anext(news), name="coming")
            await turns()
            assert not coming.done()
            pair.far.tells(DeviceWent("far-1"), Synced(), DeviceWent("far-2"))
        assert coming.result() == DeviceWent("far-1")
        assert await anext(news) == Synced()
        assert await anext(news) == DeviceWent("far-2")


async def test_after_a_gap_of_either_it_ends_and_tells_all_of_both_anew() -> None:
    pair = Pair()
    pair.sync()
    async with pair.following() as news:
        assert await anext(news) == Synced()
        pair.far.tells(Gap())
        assert [one async for one in news] == [Gap()]
    assert (pair.streams.open, pair.far.open) == (0, 0)
    pair.sync()
    async with pair.following() as news:
        assert await anext(news) == Synced()


@pytest.mark.parametrize("half", ["streams", "far"])
async def test_it_ends_with_either(half: str) -> None:
    pair = Pair()
    pair.sync()
    async with pair.following() as news:
        assert await anext(news) == Synced()
        getattr(pair, half).tells(DeviceWent("far-1"), None)
        assert [one async for one in news] == [DeviceWent("far-1")]
    assert (pair.streams.open, pair.far.open) == (0, 0)


async def test_what_one_raises_is_raised_and_the_other_let_go() -> None:
    pair = Pair()
    pair.far.tells(Retry("away"))
    async with pair.following() as news:
        with pytest.raises(Retry, match="away"):
            await anext(news)
    assert (pair.streams.open, pair.far.open) == (0, 0)


async def test_nobody_is_followed_any_more_once_it_is_closed() -> None:
    pair = Pair()
    pair.sync()
    async with pair.following() as news:
        assert await anext(news) == Synced()
        assert (pair.streams.open, pair.far.open) == (1, 1)
    assert (pair.streams.open, pair.far.open) == (0, 0)
    assert not {task.get_name() for task in asyncio.all_tasks()} & {
        "iot-edge:streams",
        "iot-edge:far",
    }


async def test_nobody_is_followed_any_more_by_who_is_called_off() -> None:
    pair = Pair()

    async def follow() -> None:
        async with pair.following() as news:
            async for _ in news:
                pass

    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow(), name="following")
        await turns()
        assert (pair.streams.open, pair.far.open) == (1, 1)
        following.cancel()
    assert (pair.streams.open, pair.far.open) == (0, 0)


async def test_who_reads_slowly_has_the_halves_wait() -> None:
    pair = Pair()
    pair.streams.tells(*(DeviceWent("here-1") for _ in range(10 * WAITING)))
    async with pair.following() as news:
        await anext(news)
        await turns(20 * WAITING)
        assert pair.streams.told <= WAITING + 2


async def test_who_dials_us_is_not_heard_by_aws() -> None:
    pair = Pair()
    pair.far.tells(came("here-1", "aws-iot"), DeviceTold("here-1", report(1)), DeviceWent("here-1"))
    pair.sync()
    async with pair.following() as news:
        assert await anext(news) == Synced()


# -- records, certificates and health --------------------------------------------------------------


async def test_records_come_by_aws_of_its_own_devices_alone() -> None:
    records = device_pb2.DeviceRecords(first=1)
    pair = Pair(far=Half(kept=[DeviceKept(name, records) for name in ("here-1", "far-1")]))
    assert isinstance(pair.both, BringsRecords)
    assert [one.device async for one in pair.both.records()] == ["far-1"]
    await pair.both.stored("far-1", 7)
    assert pair.far.durable == [("far-1", 7)]


async def test_aws_signs_for_its_own() -> None:
    pair = Pair()
    assert isinstance(pair.both, SignsDevices)
    await pair.both.check_free("far-1")
    made = await pair.both.enroll("far-1", "request")
    assert (made.device, made.certificate) == ("far-1", "signed request")
    with pytest.raises(Conflict):
        await pair.both.check_free("far-1")
    await pair.both.revoke("far-1")
    assert pair.far.enrolled == []


async def test_health_says_what_aws_lacks_and_that_the_others_are_served() -> None:
    pair = Pair()
    assert (await pair.both.health()).status is HealthStatus.HEALTHY
    pair.far.well = Health(HealthStatus.UNHEALTHY, "no rights")
    told = await pair.both.health()
    assert told.status is HealthStatus.DEGRADED
    assert told.message == "AWS IoT: no rights; devices that dial this server are served"
