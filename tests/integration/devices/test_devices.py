"""Devices and a real server: enrolled, told what is wanted, heard, and taken back from the bad."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from device_reports import BAD, CRASHES, GOOD, report_on
from hand_device import HandDevice, HandStream
from waiting import eventually

from hatoba.v1 import admin_pb2, dataset_pb2, deployment_pb2, device_pb2, job_pb2

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

READY = deployment_pb2.DEPLOYMENT_STATE_READY
NAME = "projects/default/deployments/reader"


async def test_a_model_goes_to_a_device_and_a_bad_one_is_taken_back(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        assert stream.welcome.time.seconds > 1_700_000_000
        desired = await stream.wanted(1)
        assert desired.wants[0].deployment == NAME
        assert desired.wants[0].spec.model.digest.startswith("sha256:")
        await stream.report(desired)
        shown = await yard.until_state(READY)
        assert (shown.devices.total, shown.devices.succeeded, shown.devices.connected) == (1, 1, 1)
        await yard.update(await yard.model())
        desired = await stream.wanted(2)
        await stream.report(desired, BAD, running=1, cause=CRASHES)
        await stream.report(await stream.wanted(1))
        shown = await yard.until_state(READY)
        assert shown.rollout.state == deployment_pb2.ROLLOUT_STATE_ROLLED_BACK
        assert "exit code 1" in shown.rollout.cause.message
        found = await yard.get("reader-1")
        assert (found.connected, found.settled) == (True, found.desired.generation)
        assert "connected; has done all of generation" in found.explanation


async def test_after_a_restart_of_the_server_nothing_is_told_anew(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))
        await yard.until_state(READY)
    before = await yard.get("reader-1")
    await yard.server.restart()
    async with device.connected() as stream:
        assert (await stream.wanted(1)).generation == before.desired.generation
    assert (await yard.shown()).state == READY


async def test_a_server_that_stops_says_so(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    async with device.connected() as stream, asyncio.TaskGroup() as tasks:
        tasks.create_task(yard.server.terminate(), name="stop")
        told = await stream.next(lambda one: one.HasField("going_away"))
        assert told.going_away.after.seconds == 2
    await yard.server.start()


async def test_a_token_makes_as_many_devices_as_it_says(yard: DeviceYard) -> None:
    token, address = await yard.token(uses=2, labels={"site": "kobe"}), yard.server.address
    first, second, third = HandDevice(), HandDevice(), HandDevice()
    await first.enroll(address, token, "a")
    again = HandDevice(key=first.key)
    await again.enroll(address, token, "a")
    assert again.name == "a"
    with pytest.raises(grpc.aio.AioRpcError) as taken:
        await second.enroll(address, token, "a")
    assert taken.value.code() is grpc.StatusCode.ALREADY_EXISTS
    await second.enroll(address, token, "b")
    with pytest.raises(grpc.aio.AioRpcError) as used:
        await third.enroll(address, token, "c")
    assert used.value.code() is grpc.StatusCode.UNAUTHENTICATED
    listed = await yard.wire.once(device_pb2.ListDevicesRequest(), device_pb2.ListDevicesResponse)
    assert [one.name for one in listed.devices] == ["devices/a", "devices/b"]
    told = await yard.wire.once(admin_pb2.ListTokensRequest(), admin_pb2.ListTokensResponse)
    (shown,) = (one for one in told.tokens if one.role == admin_pb2.ROLE_ENROLL)
    assert (shown.uses, shown.used, shown.transport) == (2, 2, "grpc")
    assert dict(shown.labels) == {"site": "kobe"}


async def test_a_copy_of_a_device_cuts_the_older_one_and_both_are_named(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    copy = HandDevice(device.key, device.identity, "installation-2", "boot-2")
    async with device.connected() as older, copy.connected():
        code, message = await older.ended()
        assert code is grpc.StatusCode.ABORTED
        assert "another stream" in message
        request = device_pb2.ListDeviceEventsRequest(name="reader-1")
        told = await yard.wire.once(request, device_pb2.ListDeviceEventsResponse)
        cloned = told.events[0]
        assert cloned.kind == "cloned"
        one, other = re.findall(r"one at (\S+) \(boot (\S+), installation (\S+)\)", cloned.message)
        assert one[1:] == ("boot-1", "installation-1")
        assert other[1:] == ("boot-2", "installation-2")
        assert one[0] != other[0]
        assert all(peer.startswith("ipv4:127.0.0.1:") for peer in (one[0], other[0]))


async def test_a_copied_disk_shows_when_both_come_by_turns(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    copy = HandDevice(device.key, device.identity, boot="boot-2")
    async with device.connected(), copy.connected():
        # It may have been started anew.
        assert "cloned" not in await yard.events("reader-1")
        async with device.connected():
            assert (await yard.events("reader-1"))[0] == "cloned"


@pytest.mark.parametrize("protocol", [0, 2])
async def test_an_agent_of_another_version_is_refused_and_both_are_named(
    yard: DeviceYard, protocol: int
) -> None:
    """It keeps its model, and goes on with it once an agent that fits is there."""
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))
        await yard.until_state(READY)
    async with device.channel() as stub:
        call = stub.Connect(metadata=device.metadata())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await HandStream(device, call).hello(protocol=protocol)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    words = str(refused.value.details())
    assert f"the agent speaks protocol {protocol}, this server 1" in words
    found = await yard.get("reader-1")
    assert found.settled == found.desired.generation
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))
        assert (await yard.shown()).devices.succeeded == 1


async def test_what_a_newer_agent_adds_is_passed_over(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.channel() as stub:
        call = stub.Connect(metadata=device.metadata())
        stream = HandStream(device, call)
        await stream.hello(version="999.0.0+later")
        desired = await stream.wanted(1)
        report = device_pb2.DeviceReport()
        # A field of the number 500, in the report and in what goes with it.
        report.ParseFromString(report_on(desired, GOOD).SerializeToString() + b"\xa2\x1f\x05later")
        item = device_pb2.DeviceItem()
        item.MergeFromString(b"\xa2\x1f\x05later")
        await stream.say(item, device_pb2.DeviceItem(report=report))
        await yard.until_state(READY)
        assert (await yard.get("reader-1")).settled == desired.generation
        call.cancel()


async def test_a_revoked_device_is_cut_and_does_not_come_back(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    async with device.connected() as stream:
        request = device_pb2.RevokeDeviceRequest(name="reader-1", reason="stolen")
        await yard.wire.once(request, device_pb2.Device)
        code, _ = await stream.ended()
        assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
    async with device.channel() as stub:
        call = stub.Connect(metadata=device.metadata())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_lost_device_that_is_made_anew_gets_the_newest(yard: DeviceYard) -> None:
    stays, lost = await yard.device("reader-1"), await yard.device("reader-2")
    await yard.deploy(await yard.model())
    async with stays.connected() as stream, lost.connected() as other:
        await stream.report(await stream.wanted(1))
        await other.report(await other.wanted(1))
        await yard.until_state(READY)
    await yard.update(await yard.model())
    async with stays.connected() as stream:
        desired = await stream.wanted(2)
        await yard.wire.once(device_pb2.RevokeDeviceRequest(name=lost.name), device_pb2.Device)
        await stream.report(desired)
        assert (await yard.until_state(READY)).devices.left == 1
    found = HandDevice(installation="installation-2")
    await found.enroll(yard.server.address, await yard.token(device=lost.name), lost.name)
    async with found.connected() as stream:
        await stream.report(await stream.wanted(2))

        async def has_it() -> bool:
            return (await yard.shown()).devices.succeeded == 2

        await eventually(has_it)


async def test_nobody_speaks_for_another(yard: DeviceYard) -> None:
    device, other = await yard.device("reader-1"), await yard.device("reader-2")
    async with device.channel() as stub:
        call = stub.Connect(metadata=device.metadata(other.name))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED

    async def told() -> bool:
        return "denied" in await yard.events(other.name)

    await eventually(told)


async def test_labels_bring_and_take_what_runs_and_taking_is_asked_for(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))
        move = device_pb2.UpdateDeviceRequest(name="reader-1", labels={"site": "osaka"})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await yard.wire.once(move, device_pb2.Device)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "would lose reader" in str(refused.value.details())
        move.allow_removal = True
        await yard.wire.once(move, device_pb2.Device)
        await stream.wanted(0)
        plan = device_pb2.PlanDevicesRequest(deployment="reader")
        plan.selector.add(key="site", values=["osaka", "tokyo"])
        told = await yard.wire.once(plan, device_pb2.DevicePlan)
        assert (told.comes, list(told.coming)) == (1, ["reader-1"])


async def test_a_decommissioned_device_is_forgotten_once_it_runs_nothing(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    await yard.deploy(await yard.model())
    async with device.connected() as stream:
        await stream.report(await stream.wanted(1))
        request = device_pb2.DecommissionDeviceRequest(name="reader-1")
        await yard.wire.once(request, device_pb2.Device)
        await stream.report(await stream.wanted(0))
        await stream.ended()

    async def forgotten() -> bool:
        listed = await yard.wire.once(
            device_pb2.ListDevicesRequest(), device_pb2.ListDevicesResponse
        )
        return not listed.devices

    await eventually(forgotten)


async def test_what_a_device_kept_is_stored_once_and_gaps_are_told(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    async with device.connected() as stream:
        records = device_pb2.DeviceRecords(first=1)
        for text in ("one", "two"):
            records.records.add().log.text = text
        await stream.say(device_pb2.DeviceItem(records=records))
        stored = await stream.next(lambda one: one.HasField("stored"))
        assert stored.stored.position == 2
        records.records.add().log.text = "three"
        await stream.say(device_pb2.DeviceItem(records=records))
        await stream.next(lambda one: one.stored.position == 3)
        late = device_pb2.DeviceRecords(first=9)
        late.records.add().log.text = "nine"
        await stream.say(device_pb2.DeviceItem(records=late))
        await stream.next(lambda one: one.stored.position == 9)
    request = device_pb2.ListDeviceLogsRequest(name="reader-1")
    told = await yard.wire.once(request, device_pb2.ListDeviceLogsResponse)
    lines = [(one.position, one.text, one.lost) for one in told.lines]
    assert lines == [(1, "one", 0), (2, "two", 0), (3, "three", 0), (9, "nine", 5)]


async def test_figures_and_happenings_are_told_by_kind(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    async with device.connected() as stream:
        records = device_pb2.DeviceRecords(first=1)
        records.records.add().happening.kind = "boot"
        for value in (7.5, 8.5):
            one = records.records.add()
            one.time.FromSeconds(1_790_000_000)
            one.figure.name, one.figure.value = "free_disk_bytes", value
        records.records.add().log.text = "a line"
        await stream.say(device_pb2.DeviceItem(records=records))
        await stream.next(lambda one: one.stored.position == 4)
    figures = await told(yard, device_pb2.DEVICE_RECORD_KIND_FIGURE)
    assert [(one.position, one.record.figure.value) for one in figures] == [(2, 7.5), (3, 8.5)]
    assert figures[0].record.time.seconds == 1_790_000_000
    (last,) = await told(yard, device_pb2.DEVICE_RECORD_KIND_FIGURE, after=2)
    assert last.position == 3
    (booted,) = await told(yard, device_pb2.DEVICE_RECORD_KIND_HAPPENING)
    assert booted.record.happening.kind == "boot"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await told(yard, device_pb2.DEVICE_RECORD_KIND_UNSPECIFIED)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_gap_shows_in_every_kind_of_records(yard: DeviceYard) -> None:
    """Also where the record behind it is of another kind, or of none that the server knows."""
    device = await yard.device("reader-1")
    async with device.connected() as stream:
        records = device_pb2.DeviceRecords(first=1)
        records.records.add().log.text = "one"
        await stream.say(device_pb2.DeviceItem(records=records))
        await stream.next(lambda one: one.stored.position == 1)
        late = device_pb2.DeviceRecords(first=9)
        late.records.add().figure.name = "free_disk_bytes"
        late.records.add().time.FromSeconds(1_790_000_000)
        await stream.say(device_pb2.DeviceItem(records=late))
        await stream.next(lambda one: one.stored.position == 10)
    request = device_pb2.ListDeviceLogsRequest(name="reader-1", deployment="quiet")
    lines = (await yard.wire.once(request, device_pb2.ListDeviceLogsResponse)).lines
    assert [(one.position, one.text, one.lost) for one in lines] == [(10, "", 8)]
    figures = await told(yard, device_pb2.DEVICE_RECORD_KIND_FIGURE)
    assert [(one.position, one.lost) for one in figures] == [(9, 7), (10, 1)]
    assert figures[1].record.WhichOneof("record") is None
    assert [one.lost for one in await told(yard, device_pb2.DEVICE_RECORD_KIND_HAPPENING)] == [8]
    assert await told(yard, device_pb2.DEVICE_RECORD_KIND_FIGURE, after=10) == []


async def test_predictions_of_what_is_not_its_own_are_dropped(yard: DeviceYard) -> None:
    request = deployment_pb2.CreateDeploymentRequest(deployment="reader")
    request.spec.model = await yard.model()
    request.spec.devices.selector.append(job_pb2.LabelRequirement(key="a", values=["b"]))
    request.spec.capture.dataset, request.spec.capture.rate = "seen", 1.0
    deployment = await yard.wire.once(request, deployment_pb2.Deployment)
    device = await yard.device("reader-1")
    async with device.connected() as stream:
        records = device_pb2.DeviceRecords(first=1)
        made = records.records.add().prediction
        made.deployment, made.revision, made.trace_id = deployment.name, 1, "ab" * 16
        made.captured.input = b"[1]"
        await stream.say(device_pb2.DeviceItem(records=records))
        await stream.next(lambda one: one.stored.position == 1)
    explain = deployment_pb2.ExplainPredictionRequest(name="ab" * 16)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await yard.wire.once(explain, deployment_pb2.PredictionExplanation)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    datasets = await yard.wire.once(
        dataset_pb2.ListDatasetsRequest(), dataset_pb2.ListDatasetsResponse
    )
    assert "seen" not in {one.name.rpartition("/")[2] for one in datasets.datasets}


async def told(
    yard: DeviceYard, kind: device_pb2.DeviceRecordKind.ValueType, after: int = 0
) -> list[device_pb2.StoredDeviceRecord]:
    """What the device sent of one kind."""
    request = device_pb2.ListDeviceRecordsRequest(name="reader-1", kind=kind, after=after)
    return list((await yard.wire.once(request, device_pb2.ListDeviceRecordsResponse)).records)


async def test_without_a_selector_or_a_port_it_says_what_to_do(yard: DeviceYard) -> None:
    request = deployment_pb2.CreateDeploymentRequest(deployment="reader")
    request.spec.model = await yard.model()
    request.spec.devices.per_minute = 5
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await yard.wire.once(request, deployment_pb2.Deployment)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "selector" in str(refused.value.details())
