"""A device that reaches AWS alone, as a user has one: a real server whose devices dial AWS IoT
(ministack behind TLS), its models in a bucket (moto), and a real agent that runs one of them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
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
from waiting import eventually

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

[backends.local]
type = "hosts"

[backends.edge]
type = "iot-edge-arm"

[backends.edge.options]
transport = "aws-iot"
region = "{region}"
endpoint = "{aws}"
thing_prefix = "{prefix}"
policy = "{policy}"
queue = "{queue}"
fleet = "{fleet}"
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


@pytest.fixture
async def s3() -> AsyncIterator[S3Server]:
    """With the bucket of the server."""
    with running_s3() as server:
        await asyncio.to_thread(server.make_bucket, "models")
        yield server


@pytest.fixture
async def server(iot_yard: IotYard, s3: S3Server, tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """Its devices dial AWS IoT."""
    config = CONFIG.format(
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


async def test_a_model_is_deployed_to_a_device_that_reaches_aws_alone(
    iot_yard: IotYard,
    s3: S3Server,
    server: HatobaServer,
    front: IotFront,
    device: AgentHouse,
    tmp_path: Path,
) -> None:
    hatoba = await asyncio.to_thread(CommandLine, server, tmp_path)

    async def done(*arguments: str) -> Done:
        ended = await hatoba(*arguments)
        assert ended.code == 0, f"{arguments}:\n{ended.out}\n{ended.err}"
        return ended

    async def told(*arguments: str) -> Any:
        return json.loads((await done(*arguments, "-o", "json")).out)

    async def there() -> bool:
        listed = await told("devices", "list")
        return any(one.get("connected") for one in listed.get("devices", ()))

    async def logged() -> bool:
        return "link.connected" in (await done("devices", "logs", NAME)).out

    clients = await asyncio.to_thread(device_authority, iot_yard.emulator.endpoint)
    credentials = CredentialProvider(front.authority, clients)
    async with provider(credentials, await asyncio.to_thread(credentials.tls)):
        content = (
            f"s3://models/hatoba?region=us-east-1&role-alias=hatoba-device"
            f"&credentials={HOST}:{credentials.port}&endpoint={s3.endpoint}"
        )
        await enroll(device, iot_yard, front, content)
        await device.start()
        await eventually(there)
        made = await told("devices", "get", NAME)
        assert made["transport"] == "aws-iot"
        await done("devices", "label", NAME, "site=tokyo")
        model = hatoba.work / "v1"
        await asyncio.to_thread(write_model, model)
        asked = ["--handler", "serve:Shelf", "--example", '{"left": 4}', "--python", "3"]
        await done("models", "register", "shelf", str(model), *asked)
        where = ["--name", "shelf", "--selector", "site=tokyo", "--bake", "1s"]
        await done("deploy", "shelf:1", *where)
        assert (await device.asks(left=4))["order"] is False
        await eventually(logged)
        await done("devices", "decommission", NAME, "--yes")
        await eventually(lambda: gone(iot_yard))
        assert (await told("devices", "list")).get("devices", []) == []


def write_model(directory: Path) -> None:
    directory.mkdir()
    (directory / "serve.py").write_text(MODEL)
    (directory / "low").write_text("3")


async def gone(yard: IotYard) -> bool:
    """Whether nothing is left at AWS."""
    iot = aws(yard.emulator.endpoint, "iot")
    listed = await asyncio.to_thread(iot.list_things)
    return yard.prefix + NAME not in {one["thingName"] for one in listed["things"]}
