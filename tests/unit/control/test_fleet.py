"""Deployments to devices: what devices are told, and what becomes of what they say."""

from __future__ import annotations

import pytest
from device_house import BAKING, NAME, FleetHouse
from device_reports import BAD, CRASHES, GOOD, PASSES
from rollout_rows import version

from hatoba.v1 import common_pb2, deployment_pb2, device_pb2
from hatoba_plugins.errors import Throttled
from hatoba_plugins.values import Gap
from hatoba_scheduler.control.devices import Happening, put_into, relabelled
from hatoba_scheduler.convert_devices import NEWEST_GENERATION
from hatoba_scheduler.domain.deployments import RolloutState
from hatoba_scheduler.domain.device_rollouts import Stage
from hatoba_scheduler.domain.devices import Capacity, DeviceState, Platform
from hatoba_scheduler.domain.rollouts import deleted, paused, resumed
from hatoba_scheduler.errors import FailedPrecondition

READY = deployment_pb2.DEPLOYMENT_STATE_READY
THREE = ("a", "b", "c")
HOUR = 3600.0


async def test_those_that_match_get_it_and_say_how_it_works() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        await house.add("elsewhere", labels=(("site", "osaka"),))
        live = await house.deploy()
        for name in THREE:
            (want,) = house.wanted(name).wants
            assert (want.deployment, want.revision) == (NAME, 1)
            assert want.spec.model_version == version(1)
            assert want.bake.seconds == 60
        assert not house.wanted("elsewhere").wants
        shown = house.shown(live)
        assert shown.state == deployment_pb2.DEPLOYMENT_STATE_PROGRESSING
        assert (shown.devices.total, shown.devices.offered, shown.devices.connected) == (3, 3, 3)
        await house.say(THREE, BAKING)
        assert house.shown(live).devices.under_way == 3
        await house.say(THREE, GOOD)
        shown = house.shown(live)
        assert (shown.state, shown.devices.succeeded) == (READY, 3)
        (status,) = shown.revisions
        assert (status.revision, status.wanted, status.ready) == (1, 3, 3)
        assert live.deployment.current == 1


async def test_a_bad_one_is_taken_back_and_what_was_good_is_not_begun_anew() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy(retries=0)
        await house.work(*THREE)
        await house.update(live, 2)
        assert [house.runs(name) for name in THREE] == [[(2, 0)]] * 3
        await house.say(THREE, BAD, running=1, cause=CRASHES)
        rollout = live.deployment.rollout
        assert rollout is not None
        assert rollout.cause is not None
        assert CRASHES.message in rollout.cause.message
        assert rollout.state is RolloutState.ROLLING_BACK
        assert [house.runs(name) for name in THREE] == [[(1, 0)]] * 3
        await house.say(THREE, GOOD)
        assert live.deployment.rollout is not None
        assert live.deployment.rollout.state is RolloutState.ROLLED_BACK
        assert house.shown(live).state == READY


async def test_who_was_away_is_told_only_the_newest() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy()
        await house.work(*THREE)
        await house.go("c")
        for number in range(2, 7):
            await house.update(live, number)
            await house.work("a", "b")
        before = len(house.streams.got["c"])
        await house.come("c", generation=1)
        assert [one.wants[0].revision for one in house.streams.got["c"][before:]] == [6]
        await house.work("c")
        assert house.shown(live).devices.succeeded == 3


async def test_another_server_tells_the_same_and_no_newer_generation() -> None:
    house = FleetHouse()
    async with house.running():
        await house.add(*THREE)
        await house.deploy()
        await house.work("a")
    before = {name: house.wanted(name) for name in THREE}
    writes = house.store.writes
    async with house.running():
        assert house.store.writes == writes
        await house.come(*THREE)
        assert {name: house.wanted(name) for name in THREE} == before
        await house.work("b", "c")
        (live,) = house.book.all()
        assert house.shown(live).state == READY


async def test_what_a_server_left_open_when_it_died_is_superseded_by_the_next_one() -> None:
    house = FleetHouse()
    async with house.running():
        await house.add("a", "b")
        live = await house.deploy()
        await house.work("a")
    for number in (2, 3):
        await house.update(live, number)
    async with house.running():
        rows = await house.store.rows(live.uid, 1)
        assert {row.device: row.stage for row in rows} == {
            "a": Stage.SUCCEEDED,
            "b": Stage.SUPERSEDED,
        }
        assert {row.stage for row in await house.store.rows(live.uid, 3)} == {Stage.OFFERED}


async def test_an_error_that_passes_is_tried_again() -> None:
    async with FleetHouse().running() as house:
        await house.add("a")
        live = await house.deploy()
        await house.work("a")
        await house.update(live, 2)
        await house.say(["a"], BAD, running=1, cause=PASSES)
        assert house.runs("a") == [(1, 0)]
        assert house.shown(live).state == deployment_pb2.DEPLOYMENT_STATE_PROGRESSING
        await house.turn(301)
        assert house.runs("a") == [(2, 1)]
        await house.work("a")
        assert house.shown(live).state == READY


async def test_a_model_that_fails_is_not_tried_again_whatever_the_device_says() -> None:
    async with FleetHouse().running() as house:
        await house.add("a", "b")
        live = await house.deploy()
        await house.work("a", "b")
        await house.update(live, 2)
        await house.say(["b"], BAKING)
        cause = common_pb2.Cause()
        cause.CopyFrom(CRASHES)
        cause.retryable = True
        await house.say(["a"], BAD, running=1, cause=cause)
        assert house.shown(live).rollout.state == deployment_pb2.ROLLOUT_STATE_ROLLING_BACK
        await house.say(["a", "b"], GOOD)
        told = house.shown(live).devices
        assert (told.failed, told.superseded, told.under_way) == (1, 1, 0)


async def test_it_is_tried_again_when_somebody_says_so() -> None:
    bad = (Stage.FAILED, Stage.REJECTED, Stage.TIMED_OUT)
    async with FleetHouse().running() as house:
        await house.add("a", "b")
        live = await house.deploy(retries=0, abort_share=1.0)
        await house.work("a", "b")
        await house.update(live, 2)
        await house.work("a")
        await house.say(["b"], BAD, running=1, cause=PASSES)
        assert house.shown(live).state == deployment_pb2.DEPLOYMENT_STATE_DEGRADED
        assert await house.loop.retry(live.uid, ["b"], bad, "ann") == 1
        assert await house.loop.retry(live.uid, ["b"], bad, "ann") == 0
        await house.turn()
        assert house.runs("b") == [(2, 1)]
        await house.work("b")
        assert house.shown(live).state == READY
        with pytest.raises(FailedPrecondition, match="'reader': its roll-out is not for nobody"):
            await house.loop.retry(live.uid, ["nobody"], bad, "ann")
        told = [one.message for _, one in house.deployments.log if one.actor == "ann"]
        assert told[-1] == "It is tried again on 1 device."


async def test_groups_wait_for_each_other() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        group = deployment_pb2.DeviceGroup(devices=1)
        live = await house.deploy(groups=[group])
        first = [name for name in THREE if house.wanted(name).wants]
        assert len(first) == 1
        assert "1 to take it up" in house.shown(live).rollout.waiting_for
        await house.work(*first)
        assert all(house.wanted(name).wants for name in THREE)


async def test_what_does_not_fit_is_refused_with_figures_and_the_former_stays() -> None:
    async with FleetHouse().running() as house:
        await house.add("big")
        await house.add("small", capacity=Capacity(1.0, 64 << 20, 1 << 30))
        live = await house.deploy(abort_share=1.0)
        await house.work("big", "small")
        await house.update(live, 2, memory=100 << 20)
        assert (house.runs("big"), house.runs("small")) == ([(2, 0)], [(1, 0)])
        row = house.deployments.rows[live.uid, 2, "small"]
        assert row.stage is Stage.REJECTED
        assert row.cause is not None
        assert "100 MiB of memory, there are 64 MiB" in row.cause.message
        await house.work("big")
        shown = house.shown(live)
        assert shown.state == deployment_pb2.DEPLOYMENT_STATE_DEGRADED
        assert (shown.devices.succeeded, shown.devices.rejected) == (1, 1)


async def test_what_was_refused_is_offered_once_the_device_has_more_memory() -> None:
    async with FleetHouse().running() as house:
        await house.add("big")
        await house.add("small", capacity=Capacity(1.0, 64 << 20, 1 << 30))
        live = await house.deploy(abort_share=1.0)
        await house.work("big", "small")
        await house.update(live, 2, memory=100 << 20)
        await house.work("big")
        assert house.runs("small") == [(1, 0)]
        has = device_pb2.DeviceCapacity(
            memory_bytes=4 << 30, disk_bytes=1 << 30, limits_memory=True, images=True
        )
        await house.come("small", generation=1, capacity=has)
        assert house.runs("small") == [(2, 0)]
        await house.work("small")
        assert house.shown(live).state == READY


async def test_disk_that_becomes_free_is_told_by_reports() -> None:
    house = FleetHouse()
    async with house.running():
        await house.add("a", capacity=Capacity(1.0, 1 << 30, 50 << 20))
        live = await house.deploy(abort_share=1.0)
        await house.work("a")
        await house.update(live, 2, disk=100 << 20)
        assert house.runs("a") == [(1, 0)]
        await house.say(["a"], GOOD, disk=90 << 20)
        assert house.runs("a") == [(1, 0)]
        writes = house.store.writes
        await house.say(["a"], GOOD, disk=90 << 20)
        assert house.store.writes == writes
        assert house.devices.named("a").capacity.disk == 90 << 20
    async with house.running():
        await house.say(["a"], GOOD, disk=110 << 20)
        assert house.runs("a") == [(2, 0)]


async def test_what_was_refused_is_offered_once_another_deployment_is_gone() -> None:
    async with FleetHouse().running() as house:
        await house.add("a", capacity=Capacity(1.0, 150 << 20, 1 << 30))
        other = await house.deploy(name="other")
        await house.update(other, 2, memory=100 << 20)
        live = await house.deploy(abort_share=1.0)
        await house.update(live, 2, memory=100 << 20)
        row = house.deployments.rows[live.uid, 2, "a"]
        assert row.stage is Stage.REJECTED
        await house.book.change(other, lambda view: deleted(view, house.book.now("ann")))
        await house.turn()
        assert house.runs("a") == [(2, 0)]


async def test_what_was_refused_is_looked_at_again_once_a_pause_ends() -> None:
    async with FleetHouse().running() as house:
        await house.add("big")
        await house.add("small", capacity=Capacity(1.0, 64 << 20, 1 << 30))
        live = await house.deploy(abort_share=1.0)
        await house.update(live, 2, memory=100 << 20)
        await house.book.change(live, lambda view: paused(view, house.book.now("ann")))
        has = device_pb2.DeviceCapacity(memory_bytes=4 << 30, limits_memory=True)
        await house.come("small", capacity=has)
        assert house.deployments.rows[live.uid, 2, "small"].stage is Stage.REJECTED
        await house.book.change(live, lambda view: resumed(view, house.book.now("ann")))
        await house.turn()
        assert house.runs("small") == [(2, 0)]


async def test_each_device_gets_the_image_for_it_and_who_has_none_is_refused() -> None:
    async with FleetHouse().running() as house:
        await house.add("arm")
        await house.add("pc", platform=Platform("amd64"))
        await house.add("odd", platform=Platform("arm", "v7"))
        live = await house.deploy(abort_share=1.0)
        await house.work("arm", "pc", "odd")
        await house.update(live, 2, images={"arm64": "sha256:a", "amd64": "sha256:b"})
        found = {name: house.wanted(name).wants[0].spec for name in ("arm", "pc")}
        images = {name: spec.serving.environment.image for name, spec in found.items()}
        assert images == {"arm": "r.example/m@sha256:a", "pc": "r.example/m@sha256:b"}
        assert not any(spec.images for spec in found.values())
        row = house.deployments.rows[live.uid, 2, "odd"]
        assert (row.stage, house.runs("odd")) == (Stage.REJECTED, [(1, 0)])
        assert row.cause is not None
        assert row.cause.message == "its image is there for arm64, amd64, the device is arm/v7"


async def test_an_image_is_not_offered_to_a_device_without_an_engine() -> None:
    async with FleetHouse().running() as house:
        await house.add("with")
        await house.add("without", capacity=Capacity(images=False))
        live = await house.deploy(abort_share=1.0)
        await house.work("with", "without")
        await house.update(live, 2, images={"arm64": "sha256:a"})
        assert (house.runs("with"), house.runs("without")) == ([(2, 0)], [(1, 0)])
        row = house.deployments.rows[live.uid, 2, "without"]
        assert row.stage is Stage.REJECTED
        assert row.cause is not None
        assert "no container engine" in row.cause.message


async def test_other_labels_take_it_away_and_bring_it() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy()
        await house.work(*THREE)
        moved = (("site", "osaka"),)
        await house.devices.change("a", lambda one: relabelled(one, moved))
        await house.turn()
        assert not house.wanted("a").wants
        assert house.shown(live).devices.total == 3
        back = (("site", "tokyo"),)
        await house.devices.change("a", lambda one: relabelled(one, back))
        await house.turn()
        assert house.runs("a") == [(1, 0)]


async def test_who_is_away_and_loses_its_label_for_a_while_gets_the_newest_all_the_same() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy()
        await house.work(*THREE)
        await house.go("c")
        await house.update(live, 2)
        await house.work("a", "b")
        for site in ("osaka", "tokyo"):
            labels = (("site", site),)
            await house.devices.change("c", lambda one, to=labels: relabelled(one, to))  # type: ignore[misc]
            await house.turn()
        await house.come("c", generation=1)
        assert house.runs("c") == [(2, 1)]
        await house.work("c")
        shown = house.shown(live)
        assert (shown.state, shown.devices.succeeded, shown.devices.left) == (READY, 3, 0)


async def test_a_lost_device_that_is_made_anew_gets_the_newest() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy()
        await house.work("a", "b")
        await house.devices.change("c", lambda one: put_into(one, DeviceState.REVOKED))
        await house.turn()
        assert house.shown(live).state == READY
        await house.make_anew("c")
        await house.come("c")
        assert house.runs("c") == [(1, 1)]
        await house.work("c")
        assert house.shown(live).devices.succeeded == 3


async def test_a_deleted_one_is_wanted_of_nobody_also_of_who_is_away() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy()
        await house.work(*THREE)
        await house.go("c")
        await house.book.change(live, lambda view: deleted(view, house.book.now("ann")))
        await house.turn()
        assert not house.book.all()
        assert not house.wanted("a").wants
        await house.come("c")
        assert not house.wanted("c").wants


async def test_who_is_to_leave_is_forgotten_once_it_says_that_nothing_runs() -> None:
    async with FleetHouse().running() as house:
        await house.add("a")
        await house.deploy()
        await house.work("a")
        leaving = Happening("leaving", "It goes.")
        await house.devices.change("a", lambda one: put_into(one, DeviceState.LEAVING), leaving)
        await house.turn()
        assert not house.wanted("a").wants
        assert house.devices.get("a") is not None
        await house.say(["a"], GOOD)
        assert house.devices.get("a") is None
        assert house.streams.forgotten == ["a"]
        assert [one.kind for one in house.store.events] == ["leaving"]


async def test_a_generation_that_was_never_given_is_outrun_and_an_absurd_one_is_not() -> None:
    async with FleetHouse().running() as house:
        await house.add("a", "b", comes=False)
        await house.deploy()
        await house.come("a", generation=40)
        await house.come("b", generation=NEWEST_GENERATION + 1)
        assert house.wanted("a").generation == 41
        assert house.wanted("b").generation == 1
        assert [one.kind for one in house.store.events] == ["generation", "generation"]
        await house.work("a", "b")
        (live,) = house.book.all()
        assert house.shown(live).state == READY


async def test_without_a_device_it_waits_for_one() -> None:
    async with FleetHouse().running() as house:
        live = await house.deploy()
        assert house.shown(live).rollout.waiting_for == "a device that matches its selector"
        await house.add("a")
        await house.work("a")
        assert house.shown(live).state == READY


async def test_a_wish_that_is_refused_is_wished_again() -> None:
    async with FleetHouse().running() as house:
        await house.add("a")
        house.streams.refusals += [Throttled("slower")] * 10
        await house.deploy()
        assert not house.wanted("a").wants
        for _ in range(12):
            await house.turn(6)
        assert not house.streams.refusals
        assert house.runs("a") == [(1, 0)]


async def test_who_is_not_told_of_after_a_gap_is_away() -> None:
    async with FleetHouse().running() as house:
        await house.add("a")
        assert house.loop.connected("a")
        house.streams.tell.put_nowait(Gap())
        await house.turn(2)
        assert not house.loop.connected("a")


async def test_who_is_forgotten_at_once_is_forgotten_by_the_backend_too() -> None:
    async with FleetHouse().running() as house:
        await house.add("a")
        await house.devices.remove("a")
        await house.turn()
        assert house.streams.forgotten == ["a"]


async def test_a_device_that_its_backend_vouches_for_is_taken_in_and_told() -> None:
    async with FleetHouse().running() as house:
        await house.deploy("cam-1")
        await house.come("nobody")
        assert house.devices.get("nobody") is None
        await house.come("a", transport="aws-iot", vouched=True)
        found = house.devices.named("a")
        assert (found.state, found.transport) == (DeviceState.ENROLLED, "aws-iot")
        assert [(one.device, one.kind) for one in house.store.events] == [("a", "enrolled")]
        labels = (("site", "cam-1"),)
        await house.devices.change("a", lambda one: relabelled(one, labels))
        await house.turn()
        await house.work("a")
        assert house.runs("a") == [(1, 0)]


async def test_who_cannot_be_forgotten_yet_is_forgotten_later_and_not_taken_in_again() -> None:
    async with FleetHouse().running() as house:
        await house.come("a", transport="aws-iot", vouched=True)
        house.streams.clinging.add("a")
        await house.devices.remove("a")
        await house.come("a", transport="aws-iot", vouched=True)
        for _ in range(3):
            await house.turn(6)
        assert house.devices.get("a") is None
        assert house.streams.forgotten.count("a") > 1
        house.streams.clinging.clear()
        await house.turn(6)
        count = house.streams.forgotten.count("a")
        await house.turn(60)
        assert house.streams.forgotten.count("a") == count


async def test_who_could_not_be_heard_because_no_server_was_there_has_not_failed() -> None:
    """Nor is it told anything anew."""
    house = FleetHouse()
    async with house.running():
        await house.add(*THREE)
        await house.deploy(retries=0)
        await house.say(THREE, BAKING)
    told = {name: house.wanted(name) for name in THREE}
    await house.clock.advance(2 * HOUR)
    async with house.running():
        await house.turn(60)
        await house.come(*THREE)
        await house.say(THREE, GOOD)
        (live,) = house.book.all()
        shown = house.shown(live).devices
        assert (shown.succeeded, shown.timed_out) == (3, 0)
        assert {name: house.wanted(name) for name in THREE} == told


async def test_who_says_nothing_after_that_either_is_not_waited_for_for_ever() -> None:
    house = FleetHouse()
    async with house.running():
        await house.add(*THREE)
        await house.deploy(retries=0)
        await house.say(THREE, BAKING)
    await house.clock.advance(2 * HOUR)
    async with house.running():
        await house.turn(180)
        (live,) = house.book.all()
        assert house.shown(live).devices.timed_out == 3


async def test_nobody_fails_by_a_clock_that_was_set() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy(retries=0)
        await house.say(THREE, BAKING)
        house.clock.set_by(2 * HOUR)
        await house.turn(61)
        assert house.shown(live).devices.under_way == 3
        await house.say(THREE, GOOD)
        assert house.shown(live).devices.succeeded == 3


async def test_nobody_fails_while_the_backend_cannot_be_followed() -> None:
    async with FleetHouse().running() as house:
        await house.add(*THREE)
        live = await house.deploy(retries=0)
        await house.say(THREE, BAKING)
        house.streams.deaf = True
        house.streams.tell.put_nowait(Gap())
        await house.turn(2 * HOUR)
        assert house.shown(live).devices.under_way == 3
        house.streams.deaf = False
        await house.turn(61)
        await house.come(*THREE)
        await house.say(THREE, GOOD)
        assert house.shown(live).devices.succeeded == 3
