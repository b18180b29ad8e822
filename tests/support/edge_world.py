"""A real server, a NAT router, and machines behind it with real agents: links, disks and power fail
as a test says.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import wrong_clock
from bed_device import FarMachine
from bed_edge import EdgeNetwork, edge_network, prepare
from bed_place import Unavailable
from bed_processes import free_port
from command_line import CommandLine
from counting_link import CountingLink, counting_link
from cryptography import x509
from server_process import HatobaServer, configured, running_server
from serving_house import ready
from trees import put_tree
from waiting import eventually, until
from wire import Wire

from hatoba.v1 import deployment_pb2, device_pb2, job_pb2, model_pb2

HERE = Path(__file__).parent
QUICK_LINKS = {"PYTHONPATH": str(HERE / "quick_links")}
"""For an agent whose link is cut often: see there."""
CONFIG = """
[server]
listen = "{api}"

[devices]
listen = "{devices}"
alive_every = {alive}
{more}

[backends.mock]
type = "mock"

[backends.edge]
type = "iot-edge-arm"
"""
NAME = "reader"
PATIENCE = 90.0
HOUR = 3_600.0
GOOD = "SLOT_PHASE_GOOD"
# Says what it was made of, as it lies on the device; breaks as its `does` says.
HANDLER = b"""
import hashlib, os, platform, sys, threading, time
from pathlib import Path


class Model:
    def __init__(self, model_dir):
        self.name = (model_dir / "name").read_text()
        parts = sorted(model_dir.glob("weights*"))
        self.weights = hashlib.sha256(b"".join(one.read_bytes() for one in parts)).hexdigest()
        does, _, what = (model_dir / "does").read_text().partition(" ")
        if does == "crashes":
            sys.exit("no luck at load")
        if does == "needs" and not Path(what).exists():
            sys.exit(f"{what} is not there")
        if does == "dies":
            threading.Thread(target=self.die, args=(float(what),), daemon=True).start()

    def die(self, seconds):
        time.sleep(seconds)
        os._exit(1)

    def predict(self, inputs):
        told = {"name": self.name, "weights": self.weights, "machine": platform.machine()}
        return {**told, "pid": os.getpid()}
"""
# Asks a model on the device that it runs on.
ASK = """
import json, sys, urllib.request
request = urllib.request.Request(
    f"http://{sys.argv[1]}/predict", b"{}", {"content-type": "application/json"}
)
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


def why_not() -> str:
    """What keeps this machine from having such a world; empty: nothing."""
    try:
        prepare()
    except Unavailable as error:
        return str(error)
    return ""


def certificate(machine: FarMachine) -> x509.Certificate:
    """What a device shows to the server; blocks."""
    tls = machine.seen / "tls"
    slot = (tls / "current").read_text().strip()
    return x509.load_pem_x509_certificate((tls / f"device-{slot}.pem").read_bytes())


class World:
    """The server, its administrator's calls, and the machines."""

    def __init__(
        self,
        root: Path,
        server: HatobaServer,
        wire: Wire,
        network: EdgeNetwork,
        relay: CountingLink | None = None,
    ) -> None:
        self.root = root
        self.server = server
        self.wire = wire
        self.network = network
        self.relay = relay
        self.machines: dict[str, FarMachine] = {}
        self.cli = CommandLine(server, root)

    # -- machines -------------------------------------------------------------------------------

    async def machine(
        self, name: str, *, kind: type[FarMachine] = FarMachine, **fields: Any
    ) -> FarMachine:
        """One more machine, without power."""

        def made() -> FarMachine:
            link = self.network.add(name)
            return kind(self.root / name, link, hidden=(self.server.data,), **fields)

        machine = self.machines[name] = await asyncio.to_thread(made)
        return machine

    async def device(self, name: str, site: str = "tokyo", **fields: Any) -> FarMachine:
        """A machine that became a device, and is connected."""
        machine = await self.machine(name, **fields)
        await asyncio.to_thread(machine.power_on)
        await self.enroll(machine, name, await self.token({"site": site}))
        await asyncio.to_thread(machine.start_agent)
        await self.until_connected(name)
        return machine

    async def token(self, labels: Mapping[str, str], uses: int = 1) -> str:
        """A device token."""
        request = device_pb2.CreateDeviceTokenRequest(uses=uses, labels=labels)
        return (await self.wire.once(request, device_pb2.DeviceToken)).secret

    async def enroll(self, machine: FarMachine, name: str, token: str, *more: str) -> None:
        """Make a machine a device."""
        words = ("agent", "enroll", "--server", self.server.address, "--token", token, *more)
        where = ("--name", name, "--data", machine.data)
        done = await asyncio.to_thread(machine.hatoba, *words, *where)
        assert done.returncode == 0, done.stderr

    async def answer(self, machine: FarMachine) -> dict[str, Any]:
        """What its model says, asked on the machine, once it answers."""

        async def asked() -> dict[str, Any] | None:
            # What was written before a power cut names an address of before.
            address = (await self.slot(machine)).get("address")
            return await self._asked(machine, address) if address else None

        return await eventually(asked, PATIENCE)

    async def _asked(self, machine: FarMachine, address: str) -> dict[str, Any]:
        command = await asyncio.to_thread(machine.beside, sys.executable, "-c", ASK, address)
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await process.communicate()
        found: dict[str, Any] = json.loads(out) if out else {}
        return found

    async def slot(self, machine: FarMachine) -> dict[str, Any]:
        """What the machine's own agent says of its deployment."""
        return await asyncio.to_thread(machine.slot)

    async def until_slot(self, machine: FarMachine, **fields: Any) -> dict[str, Any]:
        """Wait until the machine's agent says this of the deployment."""

        def holds() -> bool:
            slot = machine.slot()
            return all(slot.get(key) == value for key, value in fields.items())

        await until(holds, PATIENCE)
        return await self.slot(machine)

    async def until_runs(self, machine: FarMachine, revision: int) -> None:
        """Wait until a revision is good on the machine, as it says itself."""
        await self.until_slot(machine, phase=GOOD, running=revision, revision=revision)

    async def later(self, hours: float, library: Path) -> None:
        """The server is killed, and started again so many hours after now."""
        self.server.launcher.environ |= wrong_clock.wrong_by(hours * HOUR, library)
        await self.server.restart()

    # -- models and deployments -----------------------------------------------------------------

    async def model(
        self,
        name: str,
        weights: bytes = b"",
        does: str = "works",
        parts: int = 1,
        python: str = "",
    ) -> str:
        """Another version of the model `toy`, which says this name; as `toy:3`. `python`: of where
        it runs, not the one that runs this.
        """
        step = -(-len(weights) // parts)
        files = {"name": name.encode(), "does": does.encode()}
        files |= {f"weights-{n:04}": weights[n * step : (n + 1) * step] for n in range(parts)}
        tree = await put_tree(self.wire, files)
        code = await put_tree(self.wire, {"toy.py": HANDLER})
        request = model_pb2.RegisterModelRequest(model="toy", manifest=tree)
        request.serving.handler = "toy:Model"
        request.serving.code.digest = code.digest
        if python:
            request.serving.environment.python = python
        else:
            request.serving.environment.caller_interpreter = sys.executable
        request.serving.example.data = b"{}"
        request.serving.example.media_type = "application/json"
        return await ready(self.wire, request)

    async def deploy(
        self,
        model: str,
        *,
        name: str = NAME,
        site: str = "tokyo",
        bake: float = 0.5,
        memory: int = 0,
        captured_in: str = "",
        **targets: Any,
    ) -> deployment_pb2.Deployment:
        """Have a model run on the devices of a site."""
        request = deployment_pb2.CreateDeploymentRequest(deployment=name)
        request.spec.model = model
        if captured_in:
            request.spec.capture.dataset, request.spec.capture.rate = captured_in, 1.0
        request.spec.strategy.bake.FromNanoseconds(round(bake * 1e9))
        request.spec.resources.memory_bytes = memory
        devices = {"abort_least": 1, "retries": 0, **targets}
        chosen = job_pb2.LabelRequirement(key="site", values=[site])
        request.spec.devices.CopyFrom(deployment_pb2.DeviceTargets(selector=[chosen], **devices))
        return await self.wire.once(request, deployment_pb2.Deployment)

    async def update(
        self, model: str, *, name: str = NAME, bake: float | None = None
    ) -> deployment_pb2.Deployment:
        """Another model."""
        request = deployment_pb2.UpdateDeploymentRequest(name=name)
        request.update_mask.paths.append("model")
        request.spec.model = model
        if bake is not None:
            request.update_mask.paths.append("strategy")
            request.spec.strategy.bake.FromNanoseconds(round(bake * 1e9))
        return await self.wire.once(request, deployment_pb2.Deployment)

    async def promote(self, model: str, alias: str) -> None:
        """Have an alias of `toy` name a version, given as `toy:3`."""
        request = model_pb2.SetAliasRequest(model="toy", alias=alias)
        request.version = int(model.partition(":")[2])
        await self.wire.once(request, model_pb2.SetAliasResponse)

    async def shown(self) -> deployment_pb2.Deployment:
        """The deployment as it is now."""
        request = deployment_pb2.GetDeploymentRequest(name=NAME)
        return await self.wire.once(request, deployment_pb2.Deployment)

    async def until_shown(
        self, holds: Callable[[deployment_pb2.Deployment], object]
    ) -> deployment_pb2.Deployment:
        """The deployment, once it is like this."""

        async def look() -> deployment_pb2.Deployment | None:
            found = await self.shown()
            return found if holds(found) else None

        return await eventually(look, PATIENCE)

    async def rows(self, name: str = NAME, rollout: int = 0) -> dict[str, device_pb2.RolloutDevice]:
        """Where devices stand on the way to the newest revision, or how an earlier one ended."""
        request = device_pb2.ListRolloutDevicesRequest(deployment=name, rollout=rollout)
        told = await self.wire.once(request, device_pb2.ListRolloutDevicesResponse)
        return {one.device.removeprefix("devices/"): one for one in told.devices}

    async def stage(self, device: str, stage: device_pb2.DeviceStage.ValueType) -> None:
        """Wait until a device stands there."""

        async def holds() -> bool:
            row = (await self.rows()).get(device)
            return row is not None and row.stage == stage

        await eventually(holds, PATIENCE)

    # -- devices as the server knows them -------------------------------------------------------

    async def get(self, device: str) -> device_pb2.Device:
        """A device."""
        return await self.wire.once(device_pb2.GetDeviceRequest(name=device), device_pb2.Device)

    async def until_connected(self, device: str, *, there: bool = True) -> None:
        """Wait until the server has a device's stream, or misses it."""

        async def holds() -> bool:
            return (await self.get(device)).connected is there

        await eventually(holds, PATIENCE)

    async def events(self, device: str) -> list[str]:
        """Kinds of what happened to a device, newest first."""
        request = device_pb2.ListDeviceEventsRequest(name=device)
        told = await self.wire.once(request, device_pb2.ListDeviceEventsResponse)
        return [one.kind for one in told.events]

    async def close(self) -> None:
        """Nothing is left of the machines."""
        for one in self.machines.values():
            await asyncio.to_thread(one.close)


@asynccontextmanager
async def edge_world(
    root: Path,
    *,
    relayed: bool = False,
    alive_every: int = 1,
    more: str = "",
    port: int = 0,
) -> AsyncIterator[World]:
    """A world. `relayed`: devices reach their port through a link that counts and breaks; what else
    is given is said of that port. `port`: both of the server's have this number, each on an address
    of its own.
    """
    async with AsyncExitStack() as stack:
        beside = ExitStack()
        stack.push_async_callback(asyncio.to_thread, beside.close)
        network = await asyncio.to_thread(beside.enter_context, edge_network())
        api, devices = await asyncio.to_thread(_places, network, port)
        relay = None
        if relayed:
            there = devices.rpartition(":")[2]
            link = counting_link(network.address, int(there), network.address)
            relay = await stack.enter_async_context(link)
            more += f'\nadvertise = "{network.address}:{relay.port}"'
        text = CONFIG.format(api=api, devices=devices, alive=alive_every, more=more)
        data = await asyncio.to_thread(configured, root / "server", text)
        server = await stack.enter_async_context(running_server(data, worker=False))
        authority = await asyncio.to_thread(Path(server.ready["ca_file"]).read_bytes)
        credentials = grpc.ssl_channel_credentials(authority)
        wire = await stack.enter_async_context(Wire(server, credentials=credentials))
        world = World(root, server, wire, network, relay)
        stack.push_async_callback(world.close)
        yield world


def _places(network: EdgeNetwork, port: int) -> tuple[str, str]:
    """Where the server listens for everybody, and where for devices."""
    if port:
        return f"{network.address}:{port}", f"{network.second_address()}:{port}"
    address = network.address
    return f"{address}:{free_port(address)}", f"{address}:{free_port(address)}"
