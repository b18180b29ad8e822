"""Devices that reach AWS alone, as a user has them: a real server whose devices dial AWS IoT
(ministack behind TLS), all or some of them, its models in a bucket (moto), and real agents.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from agent_house import AgentHouse
from agent_things import is_let_in
from command_line import CommandLine, Done
from credential_provider import CredentialProvider, provider
from iot_front import HOST, IotFront, device_authority
from iot_yard import REGION, IotYard, aws, iot_yard
from s3_server import CREDENTIALS, PYTHON, S3Server, running_s3
from server_process import ColdLauncher, HatobaServer, configured, running_server
from waiting import eventually, until

__all__ = ["iot_yard"]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="the emulators' environment is missing"),
]

CONFIG = """
[blobs]
url = "s3://models/hatoba"
endpoint = "{s3}"
region = "us-east-1"
allow_http = true

[devices]
{port}

[backends.local]
type = "hosts"

[backends.edge]
type = "iot-edge-arm"

[backends.edge.options]
transport = "{transport}"
region = "{region}"
endpoint = "{aws}"
thing_prefix = "{prefix}"
policy = "{policy}"
queue = "{queue}"
fleet = "{fleet}"
device_endpoint = "{front}"
content = "{content}"
away_after = 1.0
"""
MODEL = """
class Shelf:
    def __init__(self, model_dir):
        self.low = int((model_dir / "low").read_text())

    def predict(self, inputs):
        return {"order": inputs["left"] < self.low}
"""
NAME = "shelf-1"
TILL = "till-1"
"""One that dials the server."""
PORTS = {"aws-iot": "", "both": 'listen = "127.0.0.1:0"'}


@pytest.fixture
async def s3() -> AsyncIterator[S3Server]:
    """With the bucket of the server."""
    with running_s3() as server:
        await asyncio.to_thread(server.make_bucket, "models")
        yield server


@pytest.fixture
def transport() -> str:
    """How devices reach the server, unless a test says something else."""
    return "aws-iot"


@pytest.fixture
async def server(
    iot_yard: IotYard,
    s3: S3Server,
    front: IotFront,
    content: str,
    tmp_path: Path,
    transport: str,
) -> AsyncIterator[HatobaServer]:
    """Its devices dial AWS IoT."""
    config = CONFIG.format(
        front=f"{HOST}:{front.port}",
        content=content,
        port=PORTS[transport],
        transport=transport,
        s3=s3.endpoint,
        region=REGION,
        aws=iot_yard.emulator.endpoint,
        prefix=iot_yard.prefix,
        policy=iot_yard.policy,
        queue=iot_yard.queue,
        fleet=iot_yard.fleet,
    )
    data = await asyncio.to_thread(configured, tmp_path / "data", config)
    launcher = ColdLauncher()
    launcher.environ.update(CREDENTIALS)
    try:
        async with running_server(data, launcher=launcher) as made:
            yield made
    finally:
        await asyncio.to_thread(launcher.close)


@pytest.fixture
async def front(iot_yard: IotYard, tmp_path: Path) -> AsyncIterator[IotFront]:
    """What devices dial."""
    there = iot_yard.emulator.endpoint

    def let_in(certificate: str) -> bool:
        return is_let_in(there, certificate)

    made = await asyncio.to_thread(IotFront, tmp_path / "front", there, let_in)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def device(tmp_path: Path) -> AsyncIterator[AgentHouse]:
    """A machine that is no device yet."""
    made = await asyncio.to_thread(AgentHouse, tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def till(tmp_path: Path) -> AsyncIterator[AgentHouse]:
    """Another."""
    root = tmp_path / "till"
    await asyncio.to_thread(root.mkdir)
    made = await asyncio.to_thread(AgentHouse, root)
    yield made
    await made.close()


def thing_with(yard: IotYard, csr: str) -> str:
    """A thing of the fleet as somebody at AWS makes it; its certificate (PEM). Blocks."""
    iot, thing = aws(yard.emulator.endpoint, "iot"), yard.prefix + NAME
    attributes = {"attributes": {"hatoba-cluster": yard.fleet}}
    iot.create_thing(thingName=thing, attributePayload=attributes)
    made = iot.create_certificate_from_csr(certificateSigningRequest=csr, setAsActive=True)
    iot.attach_policy(policyName=yard.policy, target=made["certificateArn"])
    iot.attach_thing_principal(thingName=thing, principal=made["certificateArn"])
    return str(made["certificatePem"])


async def enroll(device: AgentHouse, yard: IotYard, front: IotFront, content: str) -> None:
    """Make the machine a thing."""
    there = f"{HOST}:{front.port}"
    asked = await device.command("enroll-aws-iot", there, "--request")
    certificate = device.data / "certificate.pem"
    pem = await asyncio.to_thread(thing_with, yard, asked.out)
    await asyncio.to_thread(certificate.write_text, pem)
    done = await device.command(
        *("enroll-aws-iot", there, "--certificate", str(certificate), "--name", NAME),
        *("--thing", yard.prefix + NAME, "--ca-file", str(front.authority.pem)),
        *("--content", content),
    )
    assert done.code == 0, done.err


@dataclass
class Operator:
    """Who works with the server."""

    hatoba: CommandLine

    async def done(self, *arguments: str) -> Done:
        """A command that goes well."""
        ended = await self.hatoba(*arguments)
        assert ended.code == 0, f"{arguments}:\n{ended.out}\n{ended.err}"
        return ended

    async def told(self, *arguments: str) -> Any:
        """What a command tells."""
        return json.loads((await self.done(*arguments, "-o", "json")).out)

    async def token(self, *arguments: str) -> list[str]:
        """What a machine is to show to become a device."""
        made = await self.told("devices", "add", *arguments)
        return ["--server", made["address"], "--token", made["secret"]]

    async def enrolls(
        self, device: AgentHouse, *arguments: str, authority: Path | None = None
    ) -> Done:
        """The machine becomes a device with a token of the server's."""
        token = await self.token(*arguments)
        more = ["--aws-ca-file", str(authority)] if authority else []
        done = await device.command("enroll", *token, *more)
        assert done.code == 0, done.err
        return done

    async def devices(self) -> dict[str, dict[str, Any]]:
        """Those there are, by name."""
        listed = await self.told("devices", "list")
        return {one["name"].removeprefix("devices/"): one for one in listed.get("devices", ())}

    async def until_there(self, *names: str) -> None:
        """Wait until these are connected."""

        async def there() -> bool:
            known = await self.devices()
            return all(known.get(name, {}).get("connected") for name in names)

        await eventually(there)

    async def deploy(self) -> None:
        """The model, to the devices of a place; returns once it is there."""
        model = self.hatoba.work / "v1"
        await asyncio.to_thread(write_model, model)
        asked = ["--handler", "serve:Shelf", "--example", '{"left": 4}', "--python", "3"]
        await self.done("models", "register", "shelf", str(model), *asked)
        where = ["--name", "shelf", "--selector", "site=tokyo", "--bake", "1s"]
        await self.done("deploy", "shelf:1", *where)


@pytest.fixture
async def operator(server: HatobaServer, tmp_path: Path) -> Operator:
    """With the command line."""
    return Operator(await asyncio.to_thread(CommandLine, server, tmp_path))


@pytest.fixture
async def content(iot_yard: IotYard, front: IotFront, s3: S3Server) -> AsyncIterator[str]:
    """What devices are told of the bucket, for which credentials are given."""
    clients = await asyncio.to_thread(device_authority, iot_yard.emulator.endpoint)
    credentials = CredentialProvider(front.authority, clients)
    async with provider(credentials, await asyncio.to_thread(credentials.tls)):
        yield (
            f"s3://models/hatoba?region=us-east-1&role-alias=hatoba-device"
            f"&credentials={HOST}:{credentials.port}&endpoint={s3.endpoint}"
        )


async def test_a_model_is_deployed_to_a_device_that_reaches_aws_alone(
    iot_yard: IotYard, content: str, operator: Operator, front: IotFront, device: AgentHouse
) -> None:
    async def logged() -> bool:
        return "link.connected" in (await operator.done("devices", "logs", NAME)).out

    await enroll(device, iot_yard, front, content)
    await device.start()
    await operator.until_there(NAME)
    assert (await operator.devices())[NAME]["transport"] == "aws-iot"
    await operator.done("devices", "label", NAME, "site=tokyo")
    await operator.deploy()
    assert (await device.asks(left=4))["order"] is False
    await eventually(logged)
    await operator.done("devices", "decommission", NAME, "--yes")
    await eventually(lambda: gone(iot_yard))
    assert await operator.devices() == {}


@pytest.mark.parametrize("transport", ["both"])
async def test_one_deployment_reaches_devices_of_both_kinds(
    iot_yard: IotYard, operator: Operator, front: IotFront, device: AgentHouse, till: AgentHouse
) -> None:
    """Each with a token of the server's."""
    here = await operator.enrolls(till, "--name", TILL, "--label", "site=tokyo")
    assert "its server is" in here.out
    there = await operator.enrolls(
        device,
        *("--name", NAME, "--label", "site=tokyo", "--transport", "aws-iot"),
        authority=front.authority.pem,
    )
    assert f"it dials {HOST}:{front.port}" in there.out
    for one in (device, till):
        await one.start()
    await operator.until_there(NAME, TILL)
    known = await operator.devices()
    ways = {name: one["transport"] for name, one in known.items()}
    assert ways == {NAME: "aws-iot", TILL: "grpc"}
    await operator.deploy()
    for one in (device, till):
        assert (await one.asks(left=2))["order"] is True
    for name in (NAME, TILL):
        await operator.done("devices", "decommission", name, "--yes")
    await eventually(lambda: gone(iot_yard))

    async def forgotten() -> bool:
        return not await operator.devices()

    await eventually(forgotten)


async def test_a_device_that_was_revoked_is_let_in_by_aws_no_more(
    iot_yard: IotYard, operator: Operator, front: IotFront, device: AgentHouse, till: AgentHouse
) -> None:
    token = await operator.token("--transport", "aws-iot", "--label", "site=tokyo")
    asked = ("--name", NAME, "--aws-ca-file", str(front.authority.pem))
    for _ in range(2):
        done = await device.command("enroll", *token, *asked)
        assert done.code == 0, done.err
    held = await asyncio.to_thread(certificates, iot_yard)
    assert len(held) == 1
    used = await till.command("enroll", *token, "--name", TILL)
    assert used.code == 1
    assert "has made as many devices as it may" in used.err
    await device.start()
    await operator.until_there(NAME)
    said = await operator.done("devices", "revoke", NAME, "--yes")
    assert "its certificates at AWS IoT are ended" in said.err
    assert await asyncio.to_thread(certificates, iot_yard) == []
    assert (await operator.devices())[NAME]["state"] == "REVOKED"
    await device.kill()
    await device.start()
    await until(lambda: front.refused)
    await operator.done("devices", "decommission", NAME, "--yes")
    await eventually(lambda: gone(iot_yard))


def write_model(directory: Path) -> None:
    directory.mkdir()
    (directory / "serve.py").write_text(MODEL)
    (directory / "low").write_text("3")


def certificates(yard: IotYard) -> list[str]:
    """ARNs of those that the device has at AWS; blocks."""
    iot = aws(yard.emulator.endpoint, "iot")
    held: list[str] = iot.list_thing_principals(thingName=yard.prefix + NAME)["principals"]
    return held


async def gone(yard: IotYard) -> bool:
    """Whether nothing is left at AWS."""
    iot = aws(yard.emulator.endpoint, "iot")
    listed = await asyncio.to_thread(iot.list_things)
    return yard.prefix + NAME not in {one["thingName"] for one in listed["things"]}
