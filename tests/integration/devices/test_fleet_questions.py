"""What is asked of many devices at once: which are there, what would be refused, what is lost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import aiohttp
import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from waiting import eventually

from hatoba.v1 import deployment_pb2, device_pb2

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

READY = deployment_pb2.DEPLOYMENT_STATE_READY
GIB = 1 << 30


async def listed(yard: DeviceYard, **asked: object) -> list[str]:
    """Names of devices on all pages, of one device each."""
    request = device_pb2.ListDevicesRequest(page_size=1, **asked)  # type: ignore[arg-type]
    names: list[str] = []
    while True:
        page = await yard.wire.once(request, device_pb2.ListDevicesResponse)
        names += [one.name.removeprefix("devices/") for one in page.devices]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            assert page.total == len(names)
            return names


async def test_devices_are_found_by_how_they_are(yard: DeviceYard) -> None:
    here, _, gone = [await yard.device(name) for name in ("here", "idle", "gone")]
    await yard.wire.once(device_pb2.RevokeDeviceRequest(name=gone.name), device_pb2.Device)
    await yard.deploy(await yard.model())
    async with here.connected() as stream:
        await eventually(partial(_are_away, yard, "gone", "idle"))
        assert await listed(yard, away=Duration(seconds=3600)) == ["gone", "idle"]
        await stream.report(await stream.wanted(1))
        await yard.until_state(deployment_pb2.DEPLOYMENT_STATE_PROGRESSING)

        async def only_idle() -> bool:
            return await listed(yard, behind=True) == ["idle"]

        await eventually(only_idle)
        assert await listed(yard, states=[device_pb2.DEVICE_STATE_REVOKED]) == ["gone"]
        assert await listed(yard, platform="arm64", agent="none") == ["gone", "idle"]
        assert await listed(yard, platform="arm64/v9") == await listed(yard, platform="arm") == []
        version = (await yard.get("here")).agent
        assert await listed(yard, agent=version) == ["here"]
    async with here.connected():
        pass
    await eventually(partial(_are_away, yard, "gone", "here", "idle"))
    assert await listed(yard, away=Duration(seconds=3600)) == ["gone", "idle"]


async def _are_away(yard: DeviceYard, *names: str) -> bool:
    return await listed(yard, away=Duration()) == list(names)


async def test_a_plan_says_who_cannot_have_it_and_why(yard: DeviceYard) -> None:
    for name, memory in (("large", 4 * GIB), ("small", GIB)):
        await yard.device(name, memory=memory)
    request = deployment_pb2.CreateDeploymentRequest(deployment="reader")
    request.spec.model = await yard.model()
    request.spec.resources.memory_bytes = 2 * GIB
    request.spec.devices.selector.add(key="site", values=["osaka"])
    await yard.wire.once(request, deployment_pb2.Deployment)
    plan = device_pb2.PlanDevicesRequest(deployment="reader")
    plan.selector.add(key="site", values=["tokyo"])

    async def judged() -> bool:
        return (await yard.wire.once(plan, device_pb2.DevicePlan)).refused == 1

    await eventually(judged)
    told = await yard.wire.once(plan, device_pb2.DevicePlan)
    assert (told.comes, told.goes) == (2, 0)
    (refusal,) = told.refusals
    why = "it needs 2,048 MiB of memory, there are 1,024 MiB"
    assert (refusal.device, refusal.message) == ("small", why)


async def test_what_devices_run_is_deleted_only_if_that_is_meant(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))
        await yard.until_state(READY)
        request = deployment_pb2.DeleteDeploymentRequest(name="reader", request_id="once")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await yard.wire.once(request, deployment_pb2.Deployment)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "'reader' runs on 1 device, which would lose it" in str(refused.value.details())
        assert (await yard.shown()).state == READY
        request.allow_removal = True
        await yard.wire.once(request, deployment_pb2.Deployment)
        await stream.wanted(0)


async def test_the_metrics_page_counts_devices(yard: DeviceYard) -> None:
    device, _ = await yard.device("here"), await yard.device("idle")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))

        async def told() -> bool:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://{yard.server.ready['http']}/metrics") as reply,
            ):
                text = await reply.text()
            return all(
                line in text
                for line in (
                    'hatoba_devices{link="connected",state="ENROLLED"} 1.0',
                    'hatoba_devices{link="away",state="ENROLLED"} 1.0',
                    "hatoba_devices_behind 1.0",
                    'hatoba_device_rollout{deployment="reader",project="default",stage="OFFERED"} ',
                    "hatoba_device_certificates_ending 0.0",
                )
            )

        await eventually(told)


async def test_what_no_device_runs_is_deleted_without_a_word(yard: DeviceYard) -> None:
    await yard.device("reader-1")
    await yard.deploy(await yard.model())
    request = deployment_pb2.DeleteDeploymentRequest(name="reader")
    told = await yard.wire.once(request, deployment_pb2.Deployment)
    assert told.state == deployment_pb2.DEPLOYMENT_STATE_DELETING
