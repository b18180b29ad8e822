"""Roll-outs to devices by the command line: groups, approval, rates, errors and deadlines. The
server is a real one; devices do as a test says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from acting_devices import Actor, acting
from command_line import CommandLine
from device_reports import CRASHES, PASSES
from hand_device import HandDevice
from waiting import eventually

from hatoba.v1 import common_pb2, deployment_pb2, device_pb2

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

NEW = ("--name", "reader", "--selector", "site=tokyo", "--bake", "1s", "--no-wait")
PAUSED = deployment_pb2.ROLLOUT_STATE_PAUSED
SUCCEEDED = deployment_pb2.ROLLOUT_STATE_SUCCEEDED
ROLLED_BACK = deployment_pb2.ROLLOUT_STATE_ROLLED_BACK
FAILED = deployment_pb2.ROLLOUT_STATE_FAILED
BAD = {1: CRASHES}
READY = deployment_pb2.DEPLOYMENT_STATE_READY
COLUMNS = (
    *("waiting", "offered", "under_way", "succeeded", "failed", "rejected", "timed_out"),
    *("not_reached", "superseded", "left"),
)


@pytest.fixture
def cli(yard: DeviceYard, tmp_path: Path) -> CommandLine:
    """`hatoba`, for the server's administrator."""
    return CommandLine(yard.server, tmp_path)


async def ran(cli: CommandLine, *words: str) -> str:
    """What a command that has to work says."""
    done = await cli(*words)
    assert done.code == 0, done.err
    return done.out


async def crew(
    yard: DeviceYard, count: int, bad: dict[int, common_pb2.Cause] | None = None
) -> list[Actor]:
    """So many devices in tokyo."""
    return [Actor(await yard.device(f"d{number:02}"), bad or {}) for number in range(count)]


async def shown(
    yard: DeviceYard, count: int, holds: Callable[[deployment_pb2.Deployment], object]
) -> deployment_pb2.Deployment:
    """The deployment once it is like this; whenever it is looked at, its columns add up to so many
    devices.
    """

    async def look() -> deployment_pb2.Deployment | None:
        found = await yard.shown()
        columns = [getattr(found.devices, column) for column in COLUMNS]
        assert sum(columns) == found.devices.total == count, found.devices
        return found if holds(found) else None

    return await eventually(look)


async def settled(yard: DeviceYard, actor: Actor) -> None:
    """Wait until a device is there, and has done all that is wanted of it."""

    async def holds() -> bool:
        found = await yard.get(actor.device.name)
        return found.connected and found.settled == found.desired.generation

    await eventually(holds)


async def in_ring(yard: DeviceYard, name: str) -> HandDevice:
    """A device in tokyo that is of the first ring, too."""
    device = HandDevice()
    await device.enroll(yard.server.address, await yard.token(), name, site="tokyo", ring="first")
    return device


async def gone(yard: DeviceYard, actors: Sequence[Actor]) -> None:
    """Wait until none of these is there."""

    async def holds() -> bool:
        return not any([(await yard.get(one.device.name)).connected for one in actors])

    await eventually(holds)


def got(actors: Sequence[Actor], revision: int) -> int:
    """How many devices were told to run a revision."""
    return sum(any(number == revision for number, _ in one.told) for one in actors)


async def stages(yard: DeviceYard) -> dict[str, device_pb2.DeviceStage.ValueType]:
    """Where devices stand."""
    request = device_pb2.ListRolloutDevicesRequest(deployment="reader")
    told = await yard.wire.once(request, device_pb2.ListRolloutDevicesResponse)
    return {one.device.removeprefix("devices/"): one.stage for one in told.devices}


async def test_a_group_waits_for_another_and_the_last_for_somebody(
    yard: DeviceYard, cli: CommandLine
) -> None:
    actors = await crew(yard, 8)
    async with acting(actors):
        groups = ("--group", "2", "--group", "50%,approve")
        await ran(cli, "deploy", await yard.model(), *NEW, *groups)
        told = await shown(yard, 8, lambda one: one.rollout.state == PAUSED)
        assert (told.devices.succeeded, told.devices.waiting, got(actors, 1)) == (2, 6, 2)
        await ran(cli, "deployments", "resume", "reader")
        told = await shown(yard, 8, lambda one: one.rollout.state == SUCCEEDED)
        assert told.devices.succeeded == told.devices.total == 8


async def test_a_pause_holds_it_and_a_promotion_skips_what_is_left(
    yard: DeviceYard, cli: CommandLine
) -> None:
    actors = await crew(yard, 6)
    async with acting(actors):
        await ran(cli, "deploy", await yard.model(), *NEW, "--per-minute", "2")
        await shown(yard, 6, lambda one: one.devices.succeeded == 2)
        await ran(cli, "deployments", "pause", "reader")
        await shown(yard, 6, lambda one: one.rollout.state == PAUSED)
        assert got(actors, 1) == 2
        groups = ("--group", "1,approve", "--per-minute", "0")
        await ran(cli, "deploy", await yard.model(), "--name", "reader", *groups, "--no-wait")
        await ran(cli, "deployments", "promote", "reader")
        told = await shown(yard, 6, lambda one: one.rollout.state == SUCCEEDED)
        assert told.devices.succeeded == 6


async def test_the_rate_grows_with_those_on_which_it_works(
    yard: DeviceYard, cli: CommandLine
) -> None:
    actors = await crew(yard, 12)
    rate = ("--per-minute", "2", "--growth", "10", "--growth-after", "2")
    async with acting(actors):
        await ran(cli, "deploy", await yard.model(), *NEW, *rate)
        # Within less than the minute that twelve would take six times, at two a minute.
        await shown(yard, 12, lambda one: one.rollout.state == SUCCEEDED)


async def test_it_is_given_up_over_those_that_began_and_nobody_else_begins(
    yard: DeviceYard, cli: CommandLine
) -> None:
    actors = await crew(yard, 12, {2: CRASHES})
    there, away = actors[:8], actors[8:]
    async with acting(there):
        async with acting(away):
            await ran(cli, "deploy", await yard.model(), *NEW)
            await shown(yard, 12, lambda one: one.rollout.state == SUCCEEDED)
        await gone(yard, away)
        few = ("--abort-share", "0.5", "--abort-least", "3")
        await ran(cli, "deploy", await yard.model(), "--name", "reader", *few, "--no-wait")
        told = await shown(yard, 12, lambda one: one.rollout.state == ROLLED_BACK)
        # It was offered to all, and so many took it up.
        assert got(there, 2) == 8
        assert told.devices.failed >= 3
        assert told.devices.failed + told.devices.superseded == 12
        assert told.devices.superseded >= 4
        async with acting(away):
            for actor in actors:
                await settled(yard, actor)
            await shown(yard, 12, lambda one: one.state == READY)
        assert got(away, 2) == 0
        assert {one.told[-1][0] for one in actors} == {1}
        assert "exit code 1" in await ran(cli, "deployments", "get", "reader")


@pytest.mark.parametrize(("share", "goes_on"), [("0.5", True), ("0.6", False)])
async def test_the_next_group_begins_once_enough_of_the_first_succeeded(
    yard: DeviceYard, cli: CommandLine, share: str, goes_on: bool
) -> None:
    first = [Actor(await in_ring(yard, "works"), {}), Actor(await in_ring(yard, "fails"), BAD)]
    others = await crew(yard, 3)
    groups = ("--group", "ring=first", "--go-on-share", share, "--abort-share", "1")
    async with acting([*first, *others]):
        await ran(cli, "deploy", await yard.model(), *NEW, *groups)
        told = await shown(yard, 5, lambda one: one.rollout.state in (SUCCEEDED, FAILED))
    assert got(first, 1) == 2
    if goes_on:
        assert told.rollout.state == SUCCEEDED
        assert (told.devices.succeeded, told.devices.failed, got(others, 1)) == (4, 1, 3)
    else:
        assert "works on 1 of 2 devices that took it up" in told.rollout.cause.message
        assert (told.devices.superseded, told.devices.failed, got(others, 1)) == (3, 1, 0)


async def test_what_may_pass_is_tried_again_and_what_is_wrong_with_it_is_not(
    yard: DeviceYard, cli: CommandLine
) -> None:
    passes = Actor(await yard.device("passes"), {1: PASSES})
    crashes = Actor(await yard.device("crashes"), {1: CRASHES})
    again = ("--retries", "2", "--retry-wait", "1s", "--abort-share", "1")
    async with acting([passes, crashes]):
        await ran(cli, "deploy", await yard.model(), *NEW, *again)
        await shown(yard, 2, lambda one: one.devices.failed == 2)
    assert passes.told[:3] == [(1, 0), (1, 1), (1, 2)]
    assert (1, 1) not in crashes.told


async def test_it_is_tried_again_on_those_that_somebody_names(
    yard: DeviceYard, cli: CommandLine
) -> None:
    bad = dict(BAD)
    actors = [*await crew(yard, 2), Actor(await yard.device("fails"), bad)]
    retry = ("deployments", "retry", "reader", "--device", "fails")
    async with acting(actors):
        await ran(cli, "deploy", await yard.model(), *NEW, "--abort-share", "1")
        await shown(yard, 3, lambda one: one.rollout.state == SUCCEEDED and one.devices.failed)
        bad.clear()
        assert "tried again on 1 device" in await ran(cli, *retry)
        told = await shown(yard, 3, lambda one: one.devices.succeeded == 3)
        assert (told.state, told.rollout.state) == (READY, SUCCEEDED)
        assert actors[-1].told[-1] == (1, 1)
        assert "nothing is to be tried again" in await ran(cli, *retry)
        refused = await cli(*retry[:-1], "elsewhere")
        assert "its roll-out is not for elsewhere" in refused.err
        bad[2] = CRASHES
        few = ("--abort-share", "0.2", "--abort-least", "1")
        await ran(cli, "deploy", await yard.model(), "--name", "reader", *few, "--no-wait")
        await shown(yard, 3, lambda one: one.rollout.state == ROLLED_BACK)
        refused = await cli(*retry)
        assert "its newest revision was given up; deploy it anew" in refused.err


async def test_nobody_is_waited_for_for_ever(yard: DeviceYard, cli: CommandLine) -> None:
    """Neither who does not come nor who takes it up and says no more; who comes late gets it."""
    away = Actor(await yard.device("away"), {})
    silent = Actor(await yard.device("silent"), {}, silent=[1])
    works = Actor(await yard.device("works"), {})
    ends = ("--offer-deadline", "3s", "--apply-deadline", "3s", "--retries", "0")
    async with acting([silent, works]):
        await ran(cli, "deploy", await yard.model(), *NEW, *ends, "--abort-share", "0.9")
        told = await shown(yard, 3, lambda one: one.rollout.state == SUCCEEDED)
        assert (told.devices.timed_out, told.devices.not_reached) == (1, 1)
        found = await stages(yard)
        assert found["away"] == device_pb2.DEVICE_STAGE_NOT_REACHED
        async with acting([away]):
            told = await shown(yard, 3, lambda one: one.devices.succeeded == 2)
            assert told.devices.not_reached == 0
