"""Who devices are, at a real server's two ports."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from device_desk import Machine
from hand_device import PATIENCE, HandDevice
from waiting import eventually

from hatoba.v1 import device_pb2, device_pb2_grpc

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard


async def test_the_port_of_devices_is_told_to_who_starts_the_server(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    assert yard.server.ready["devices"] == device.identity.address
    assert yard.server.ready["devices"] != yard.server.address


async def test_a_device_that_speaks_for_another_is_refused_and_both_are_told(
    yard: DeviceYard,
) -> None:
    hostile = await yard.device("hostile")
    await yard.device("reader-1")
    async with hostile.channel() as stub:
        request = device_pb2.RenewDeviceRequest(csr=hostile.csr())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.RenewDevice(request, metadata=hostile.metadata("reader-1"), timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    for name in ("reader-1", "hostile"):
        event = await eventually(partial(_denied, yard, name))
        assert "devices/hostile at ipv4:127.0.0.1:" in event.message


async def _denied(yard: DeviceYard, name: str) -> device_pb2.DeviceEvent | None:
    request = device_pb2.ListDeviceEventsRequest(name=name)
    told = await yard.wire.call(request, device_pb2.ListDeviceEventsResponse)
    return next((one for one in told.events if one.kind == "denied"), None)


async def test_a_proof_by_its_key_renews_a_device_at_the_ordinary_port(yard: DeviceYard) -> None:
    device = await yard.device("reader-1")
    fresh = HandDevice()
    csr = fresh.csr()
    shown = Machine(device.name, device.key, device.identity.certificate).renewal(csr)
    async with grpc.aio.insecure_channel(yard.server.address) as channel:
        stub = device_pb2_grpc.DeviceServiceStub(channel)
        request = device_pb2.RenewDeviceRequest(csr=csr)
        metadata = [("authorization", f"Bearer {shown}")]
        fresh.identity = await stub.RenewDevice(request, metadata=metadata, timeout=PATIENCE)
    async with fresh.connected() as stream:
        assert stream.welcome.time.seconds
    assert fresh.name == device.name
