"""A real server with a port for devices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bed_processes import free_port
from hand_device import HandDevice
from server_process import HatobaServer, configured, running_server
from serving_house import unloaded
from waiting import eventually
from wire import Wire

from hatoba.v1 import deployment_pb2, device_pb2, job_pb2

HOST = "127.0.0.1"
CONFIG = """
[server]
listen = "127.0.0.1:{api}"

[devices]
listen = "127.0.0.1:{devices}"
alive_every = {alive}

[backends.mock]
type = "mock"

[backends.edge]
type = "iot-edge-arm"
"""


@dataclass
class DeviceYard:
    """The server, its administrator's calls, and models to deploy."""

    server: HatobaServer
    wire: Wire

    async def token(self, uses: int = 1, **fields: object) -> str:
        """A device token's text."""
        request = device_pb2.CreateDeviceTokenRequest(uses=uses, **fields)  # type: ignore[arg-type]
        return (await self.wire.once(request, device_pb2.DeviceToken)).secret

    async def device(self, name: str, site: str = "tokyo", **fields: object) -> HandDevice:
        """A machine that became a device."""
        device = HandDevice(**fields)  # type: ignore[arg-type]
        await device.enroll(self.server.address, await self.token(), name, site=site)
        return device

    async def model(self, name: str = "digits") -> str:
        """Another version of a model, as `digits:3`."""
        return await unloaded(self.wire, name)

    async def deploy(
        self, model: str, name: str = "reader", *, site: str = "tokyo", **targets: object
    ) -> deployment_pb2.Deployment:
        """A new deployment to the devices of a site."""
        request = deployment_pb2.CreateDeploymentRequest(deployment=name)
        request.spec.model = model
        request.spec.devices.selector.append(selector(site))
        for field, value in targets.items():
            setattr(request.spec.devices, field, value)
        return await self.wire.once(request, deployment_pb2.Deployment)

    async def update(self, model: str, name: str = "reader") -> deployment_pb2.Deployment:
        """Another model for a deployment."""
        request = deployment_pb2.UpdateDeploymentRequest(name=name)
        request.update_mask.paths.append("model")
        request.spec.model = model
        return await self.wire.once(request, deployment_pb2.Deployment)

    async def shown(self, name: str = "reader") -> deployment_pb2.Deployment:
        """A deployment as it is now."""
        request = deployment_pb2.GetDeploymentRequest(name=name)
        return await self.wire.once(request, deployment_pb2.Deployment)

    async def get(self, device: str) -> device_pb2.Device:
        """A device as the server knows it."""
        return await self.wire.once(device_pb2.GetDeviceRequest(name=device), device_pb2.Device)

    async def events(self, device: str) -> list[str]:
        """Kinds of what happened to a device, newest first."""
        request = device_pb2.ListDeviceEventsRequest(name=device)
        told = await self.wire.once(request, device_pb2.ListDeviceEventsResponse)
        return [one.kind for one in told.events]

    async def until_state(
        self, state: deployment_pb2.DeploymentState.ValueType, name: str = "reader"
    ) -> deployment_pb2.Deployment:
        """Wait until a deployment is like this."""

        async def holds() -> bool:
            return (await self.shown(name)).state == state

        await eventually(holds)
        return await self.shown(name)


def selector(site: str) -> job_pb2.LabelRequirement:
    """Devices of a site."""
    return job_pb2.LabelRequirement(key="site", values=[site])


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[DeviceYard]:
    """One that is up."""
    text = CONFIG.format(api=free_port(HOST), devices=free_port(HOST), alive=5.0)
    data = configured(tmp_path / "data", text)
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        yield DeviceYard(server, wire)
