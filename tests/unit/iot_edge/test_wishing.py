"""Wishes on AWS IoT: guarded by the shadow's version, so that no older one wins."""

from __future__ import annotations

import asyncio
import random

import pytest
from scripted_iot import CLUSTER_ID, IotDesk, iot_desk

from hatoba.shadows import pack, wanted
from hatoba.v1 import device_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.conformance.sites import document
from hatoba_plugins.errors import BackendError, Conflict, Invalid, Retry, Throttled
from hatoba_plugins.values import Accepted, DeviceWish, RefusedWish, Superseded, WishOutcome

UPDATE = "iot-data:UpdateThingShadow"
GET = "iot-data:GetThingShadow"


def refusal(outcome: WishOutcome) -> BackendError:
    assert isinstance(outcome, RefusedWish)
    return outcome.error


def somebody_else_wants(desk: IotDesk, generation: int) -> None:
    """Another server, or one of before whose call lands late."""
    state = wanted(generation, pack(document(generation)), 1200.0)
    desk.aws.put("hatoba-a", "hatoba", state)


async def test_what_is_known_needs_no_call() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        assert await desk.wish("a", 1, 2, 2, 1) == [
            Accepted("a"),
            Accepted("a"),
            Accepted("a"),
            Superseded("a", 2),
        ]
        assert desk.wanted_of("a") == document(2)
        desk.aws.calls.clear()
        assert await desk.wish("a", 2, 1) == [Accepted("a"), Superseded("a", 2)]
        assert set(desk.aws.calls) <= {"sqs:ReceiveMessage"}


async def test_a_newer_wish_of_somebody_else_is_not_written_over() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        await desk.wish("a", 1)
        desk.aws.before(UPDATE, lambda: somebody_else_wants(desk, 5))
        assert await desk.wish("a", 3) == [Superseded("a", 5)]
        assert desk.wanted_of("a") == document(5)


async def test_an_older_wish_of_somebody_else_is_written_over() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        await desk.wish("a", 2)
        desk.aws.before(UPDATE, lambda: somebody_else_wants(desk, 3))
        assert await desk.wish("a", 4) == [Accepted("a")]
        assert desk.wanted_of("a") == document(4)


async def test_a_shadow_that_is_not_there_is_made_without_losing_a_wish() -> None:
    async with iot_desk() as desk:
        desk.aws.things["hatoba-a"] = CLUSTER_ID
        desk.aws.before(UPDATE, lambda: somebody_else_wants(desk, 5))
        assert await desk.wish("a", 3) == [Superseded("a", 5)]
        assert desk.wanted_of("a") == document(5)


async def test_a_shadow_that_changes_all_the_time_is_given_up() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        for generation in range(20):
            desk.aws.before(UPDATE, lambda at=generation: somebody_else_wants(desk, at))  # type: ignore[misc]
        error = refusal((await desk.wish("a", 100))[0])
        assert type(error) is Retry
        assert error.after


async def test_what_nobody_answered_is_looked_up() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        desk.aws.lose(UPDATE)
        assert await desk.wish("a", 1) == [Accepted("a")]
        assert desk.aws.counts[UPDATE] == 1


async def test_what_perhaps_happened_is_never_called_refused() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        desk.device("b")
        for name in ("a", "b"):
            await desk.wish(name, 1)
        desk.aws.lose(UPDATE)
        desk.aws.refuse(GET, "AccessDeniedException", 403)
        async with asyncio.TaskGroup() as tasks:
            wishes = [DeviceWish(name, document(2)) for name in ("a", "b")]
            asked = tasks.create_task(expect_unanswered(desk, wishes), name="wish")
            while not asked.done():
                await desk.clock.advance(0.1)
        assert (desk.wanted_of("a"), desk.wanted_of("b")) == (document(2), document(2))
        assert await desk.wish("a", 2) == [Accepted("a")]


async def expect_unanswered(desk: IotDesk, wishes: list[DeviceWish]) -> None:
    with pytest.raises(Unanswered):
        await desk.role.desire(wishes)


async def test_too_much_is_refused_with_figures() -> None:
    rng = random.Random(0)
    large = device_pb2.DeviceDesired(generation=3)
    for number in range(40):
        digest = rng.randbytes(200).hex()
        large.wants.add(deployment=f"d{number}").spec.model_version = digest
    async with iot_desk() as desk:
        desk.device("a")
        (outcome,) = await desk.role.desire([DeviceWish("a", large)])
        error = refusal(outcome)
        assert type(error) is Invalid
        assert "device 'a' takes 1" in error.message
        assert "AWS takes 8,192" in error.message
        assert desk.wanted_of("a") is None
        assert await desk.wish("a", 3) == [Accepted("a")]


async def test_who_has_no_thing_is_refused_and_not_asked_for_each_time() -> None:
    async with iot_desk() as desk:
        (first,) = await desk.wish("nobody", 1)
        assert "enroll it" in refusal(first).message
        await desk.wish("nobody", 2)
        assert desk.aws.counts["iot:DescribeThing"] == 1
        desk.device("nobody")
        await desk.pass_time(31.0)
        assert await desk.wish("nobody", 2) == [Accepted("nobody")]


async def test_a_thing_of_somebody_else_is_left_alone() -> None:
    async with iot_desk() as desk:
        thing = desk.device("a")
        desk.aws.things[thing] = "another"
        assert type(refusal((await desk.wish("a", 1))[0])) is Conflict
        assert desk.wanted_of("a") is None


async def test_a_shadow_in_which_somebody_scribbled_is_not_guessed_at() -> None:
    async with iot_desk() as desk:
        thing = desk.device("a")
        desk.aws.put(thing, "hatoba", {"desired": {"generation": "seven"}})
        error = refusal((await desk.wish("a", 1))[0])
        assert type(error) is Invalid
        assert "delete that shadow" in error.message


async def test_throttling_says_when_to_come_again() -> None:
    async with iot_desk() as desk:
        desk.device("a")
        desk.aws.refuse(UPDATE, "ThrottlingException", 429)
        error = refusal((await desk.wish("a", 1))[0])
        assert type(error) is Throttled
        assert error.after
        assert desk.wanted_of("a") is None


async def test_a_doorbell_carries_nothing_and_is_taken_away() -> None:
    async with iot_desk(jobs=True) as desk:
        thing = desk.device("a")
        await desk.wish("a", 1)
        (first,) = desk.aws.jobs
        await desk.wish("a", 2)
        ((name, job),) = desk.aws.jobs.items()
        assert name != first
        assert job["targets"] == [f"arn:thing/{thing}"]
        assert "generation" not in job["document"]
        assert await desk.role.forget(["a"])
        assert desk.aws.jobs == {}


async def test_a_wish_is_well_though_nobody_can_ring() -> None:
    async with iot_desk(jobs=True) as desk:
        desk.device("a")
        desk.aws.refuse("iot:CreateJob", "LimitExceededException", 409)
        assert await desk.wish("a", 1) == [Accepted("a")]
        assert desk.wanted_of("a") == document(1)


async def test_devices_are_told_how_often_to_live() -> None:
    async with iot_desk(alive_every=60.0) as desk:
        thing = desk.device("a")
        await desk.wish("a", 1)
        assert desk.aws.document(thing, "hatoba")["state"]["desired"]["alive_every"] == 60
