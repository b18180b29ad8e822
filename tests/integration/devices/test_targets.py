"""Deployments to devices as people ask for them: selectors, groups, pauses, aliases, refusals."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from device_reports import BAD, CRASHES
from hand_device import HandStream
from waiting import eventually, until

from hatoba.v1 import deployment_pb2, device_pb2, job_pb2, model_pb2
from hatoba_scheduler.domain.device_rollouts import Stage

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

READY = deployment_pb2.DEPLOYMENT_STATE_READY
PAUSED = deployment_pb2.DEPLOYMENT_STATE_PAUSED


async def good(stream: HandStream, revision: int) -> None:
    """It takes it up, and it works."""
    await stream.report(await stream.wanted(revision))


async def refusal(call: object) -> tuple[grpc.StatusCode, str]:
    """How a call that must fail failed."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), str(caught.value.details())


async def test_another_selector_takes_it_away_only_if_that_is_meant(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        await good(stream, 1)
        await yard.until_state(READY)
        request = deployment_pb2.UpdateDeploymentRequest(name="reader")
        request.update_mask.paths.append("devices")
        request.spec.devices.selector.add(key="site", values=["osaka"])
        code, message = await refusal(yard.wire.once(request, deployment_pb2.Deployment))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "1 devices would lose deployment 'reader' (reader-1)" in message
        request.allow_removal = True
        changed = await yard.wire.once(request, deployment_pb2.Deployment)
        assert changed.rollout.number == 1
        await stream.wanted(0)


async def test_groups_an_approval_a_pause_and_a_promotion(yard: DeviceYard) -> None:
    devices = [await yard.device(f"reader-{number}") for number in (1, 2, 3)]
    groups = [
        deployment_pb2.DeviceGroup(devices=1),
        deployment_pb2.DeviceGroup(devices=1, approve=True),
    ]
    request = deployment_pb2.CreateDeploymentRequest(deployment="reader")
    request.spec.model = await yard.model()
    request.spec.devices.selector.add(key="site", values=["tokyo"])
    request.spec.devices.groups.extend(groups)
    await yard.wire.once(request, deployment_pb2.Deployment)
    streams = {device.name: device for device in devices}
    first = await _offered(yard)
    async with streams[first].connected() as stream:
        await good(stream, 1)
        shown = await yard.until_state(PAUSED)
        assert "next group of devices needs that" in shown.rollout.waiting_for
        resume = deployment_pb2.ResumeRolloutRequest(name="reader")
        await yard.wire.once(resume, deployment_pb2.Deployment)

        async def two() -> bool:
            return (await yard.shown()).devices.offered == 1

        await eventually(two)
        pause = deployment_pb2.PauseRolloutRequest(name="reader")
        paused = await yard.wire.once(pause, deployment_pb2.Deployment)
        assert paused.state == PAUSED
        promote = deployment_pb2.PromoteRolloutRequest(name="reader")
        await yard.wire.once(promote, deployment_pb2.Deployment)

        async def all_offered() -> bool:
            told = (await yard.shown()).devices
            return (told.offered, told.succeeded) == (2, 1)

        await eventually(all_offered)


async def _offered(yard: DeviceYard) -> str:
    """The one device that was offered it."""

    async def offered() -> str:
        told = [(await yard.get(f"reader-{number}")) for number in (1, 2, 3)]
        found = [one.name for one in told if one.desired.wants]
        return found[0].rpartition("/")[2] if len(found) == 1 else ""

    await eventually(offered)
    return await offered()


async def test_where_devices_stood_in_earlier_rollouts_is_told(yard: DeviceYard) -> None:
    here, _ = await yard.device("here"), await yard.device("away")
    await yard.deploy(await yard.model())
    async with here.connected() as stream:
        await good(stream, 1)
        await yard.update(await yard.model())
        await good(stream, 2)

        async def newest() -> bool:
            return await _stages(yard, 0) == {"away": Stage.OFFERED, "here": Stage.SUCCEEDED}

        await eventually(newest)
    assert await _stages(yard, 1) == {"away": Stage.SUPERSEDED, "here": Stage.SUCCEEDED}
    assert await _stages(yard, 2) == await _stages(yard, 0)
    code, message = await refusal(_stages(yard, 3))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "those of 1 to 2 are kept" in message


async def _stages(yard: DeviceYard, rollout: int) -> dict[str, Stage]:
    request = device_pb2.ListRolloutDevicesRequest(deployment="reader", rollout=rollout)
    told = await yard.wire.once(request, device_pb2.ListRolloutDevicesResponse)
    return {one.device.removeprefix("devices/"): Stage(one.stage) for one in told.devices}


async def test_what_nobody_approves_is_given_up(yard: DeviceYard) -> None:
    await yard.device("reader-1")
    request = deployment_pb2.CreateDeploymentRequest(deployment="reader")
    request.spec.model = await yard.model()
    request.spec.devices.selector.add(key="site", values=["tokyo"])
    request.spec.devices.groups.add(devices=1, approve=True)
    request.spec.devices.approve_deadline.seconds = 2
    await yard.wire.once(request, deployment_pb2.Deployment)
    shown = await yard.until_state(deployment_pb2.DEPLOYMENT_STATE_FAILED)
    assert "Nobody resumed the roll-out of revision 1" in shown.rollout.cause.message


async def test_a_device_that_works_while_the_server_is_away_has_not_failed(
    yard: DeviceYard,
) -> None:
    device = await yard.device("reader-1")
    request = deployment_pb2.CreateDeploymentRequest(deployment="reader")
    request.spec.model = await yard.model()
    targets = request.spec.devices
    targets.selector.add(key="site", values=["tokyo"])
    targets.apply_deadline.seconds, targets.retries = 4, 0
    await yard.wire.once(request, deployment_pb2.Deployment)
    async with device.connected() as stream:
        desired = await stream.wanted(1)
        await stream.report(desired, device_pb2.SLOT_PHASE_FETCHING)

        async def taken_up() -> bool:
            return await _stages(yard, 0) == {"reader-1": Stage.APPLYING}

        await eventually(taken_up)
        over = time.monotonic() + 4
        await yard.server.kill()
    await until(lambda: time.monotonic() > over)
    await yard.server.start()
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))
        shown = await yard.until_state(READY)
    assert (shown.devices.succeeded, shown.devices.timed_out) == (1, 0)


async def test_it_follows_an_alias_and_goes_back_by_hand_at_once(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    first, second = await yard.model(), await yard.model()

    async def point(model: str) -> None:
        request = model_pb2.SetAliasRequest(model="digits", alias="production")
        request.version = int(model.partition(":")[2])
        await yard.wire.once(request, model_pb2.SetAliasResponse)

    await point(first)
    await yard.deploy("digits@production", per_minute=1)
    async with device.connected() as stream:
        await good(stream, 1)
        await yard.until_state(READY)
        await point(second)
        await good(stream, 2)
        await yard.until_state(READY)
        back = deployment_pb2.RollBackDeploymentRequest(name="reader")
        await yard.wire.once(back, deployment_pb2.Deployment)
        # The rate is for what is new.
        await good(stream, 1)
        shown = await yard.until_state(READY)
        assert (shown.current_revision, shown.following) == (1, False)


async def test_one_that_fails_everywhere_leaves_nothing(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model(), retries=0)
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1), BAD, cause=CRASHES)
        await stream.wanted(0)
        shown = await yard.until_state(deployment_pb2.DEPLOYMENT_STATE_FAILED)
        assert "exit code 1" in shown.cause.message
        assert not shown.urls


async def test_what_is_for_replicas_says_what_devices_have_instead(yard: DeviceYard) -> None:
    await yard.deploy(await yard.model())
    request = deployment_pb2.UpdateDeploymentRequest(name="reader")
    request.update_mask.paths.append("replicas")
    request.spec.replicas = 3
    code, message = await refusal(yard.wire.once(request, deployment_pb2.Deployment))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "each that matches has one" in message


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("strategy.steps", "use groups of devices"),
        ("capture", "must name the dataset"),
        ("backend", "has no devices"),
    ],
)
async def test_what_devices_have_not_is_refused(yard: DeviceYard, field: str, words: str) -> None:
    request = deployment_pb2.CreateDeploymentRequest(deployment="reader")
    request.spec.model = "digits:1"
    request.spec.devices.selector.append(job_pb2.LabelRequirement(key="a", values=["b"]))
    if field == "backend":
        request.spec.backend = "mock"
    elif field == "capture":
        request.spec.capture.rate = 0.5
    else:
        request.spec.strategy.steps.add(percent=5)
    code, message = await refusal(yard.wire.once(request, deployment_pb2.Deployment))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in message
