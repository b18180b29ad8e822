"""AWS IoT as far as it is here: ministack's registry, shadows, jobs, rules, queues and broker,
behind a proxy, and devices that are clients of its broker.

What ministack lacks is done here as AWS does it: a certificate is asked for when a device connects
(its port for WebSockets asks for none), and a connection of which nothing comes is ended.
"""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import boto3
import pytest
from held_link import HeldLink
from mqtt_client import MqttClient, Publication
from testbed_fixtures import AwsEmulator, fresh_name

from hatoba.shadows import (
    compact,
    goodbye_state,
    hello_state,
    part_names,
    report_states,
    set_of,
    shadow_of,
)
from hatoba.v1 import device_pb2
from hatoba_plugins.backends.iot_edge import EdgeType
from hatoba_plugins.backends.iot_edge.backend import EdgeBackend
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.shadows import AwsIotDevices
from hatoba_plugins.conformance import DeviceFaults, FarHarness
from hatoba_plugins.conformance.far import Ability
from hatoba_plugins.conformance.proxy import Aws, Call, FaultProxy, Json
from hatoba_worker import keys

REGION = "us-east-1"
TEMPLATE = Path(__file__).resolve().parents[2] / "deploy" / "aws" / "iot.yaml"


@functools.cache
def aws(emulator_at: str, service: str) -> Any:
    """A plain client, for what a test does behind the backend's back."""
    return boto3.client(
        service,
        endpoint_url=emulator_at,
        region_name=REGION,
        aws_access_key_id="hatoba-test",
        aws_secret_access_key="hatoba-test-secret",
    )


@dataclass(frozen=True)
class IotYard:
    """What deploy/aws/iot.yaml has made: a queue with two rules, and the policy of devices."""

    emulator: AwsEmulator
    prefix: str
    queue: str
    policy: str
    fleet: str
    template: str
    """Of fleet provisioning."""

    @property
    def options(self) -> dict[str, object]:
        """Of an instance here, as quick as tests need it."""
        return {
            "transport": "aws-iot",
            "region": REGION,
            "endpoint": self.emulator.endpoint,
            "thing_prefix": self.prefix,
            "policy": self.policy,
            "queue": self.queue,
            "away_after": 0.3,
        }

    def send(self, body: str) -> None:
        """Put a message into the queue."""
        aws(self.emulator.endpoint, "sqs").send_message(QueueUrl=self.queue, MessageBody=body)


@pytest.fixture
def iot_yard(ministack: AwsEmulator) -> Iterator[IotYard]:
    """One of a test's own: a call for messages that was given up may still take one."""
    name = fresh_name("iot")
    formation = aws(ministack.endpoint, "cloudformation")
    given = {"Name": name, "ThingPrefix": f"{name}-", "Fleet": name}
    formation.create_stack(
        StackName=name,
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": given[key]} for key in given],
        Capabilities=["CAPABILITY_IAM"],
    )
    (stack,) = formation.describe_stacks(StackName=name)["Stacks"]
    made = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
    quick = {"ReceiveMessageWaitTimeSeconds": "1", "VisibilityTimeout": "1"}
    aws(ministack.endpoint, "sqs").set_queue_attributes(QueueUrl=made["Queue"], Attributes=quick)
    queue, policy = made["Queue"], made["DevicePolicy"]
    yield IotYard(ministack, made["ThingPrefix"], queue, policy, name, made["Template"])
    formation.delete_stack(StackName=name)


class IotDialect(Aws):
    """Calls of shadows are named by what is done to which: `update hatoba`, `get hatoba-said`."""

    _verbs: ClassVar = {"GET": "get", "POST": "update", "DELETE": "delete"}

    def operation(self, call: Call) -> str:
        """The shadow's, else as AWS names it."""
        if call.path[-1] == "shadow":
            return f"{self._verbs[call.method]} {call.query.get('name', '')}"
        return super().operation(call)


@dataclass
class Mail:
    """What the queue brings, shuffled and doubled as SQS may do it."""

    yard: IotYard
    reports: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Words with reports, by thing, as they came first."""
    _held: dict[str, list[Json]] = field(default_factory=dict)

    def swap(self, thing: str) -> None:
        """The next two words of a thing come in the other order."""
        self._held[thing] = []

    async def __call__(self, proxy: FaultProxy, operation: str, asked: Json, reply: Json) -> None:
        """See `Rewrite`."""
        del proxy, asked
        if operation == "receivemessage":
            letters = [one for letter in reply.get("Messages", []) for one in self._pass(letter)]
            reply["Messages"] = letters

    def _pass(self, letter: Json) -> list[Json]:
        if not letter["Body"].startswith('{"thing"'):
            return [letter]
        told = json.loads(letter["Body"])
        thing = told["thing"]
        if told["shadow"]["state"].get("reported", {}).get("report"):
            self.reports[thing].append(letter["Body"])
        if thing not in self._held:
            return [letter]
        held = self._held[thing]
        held.append(letter)
        return list(reversed(self._held.pop(thing))) if len(held) == 2 else []


class MqttDevice:
    """A `FarDevice`: a client of AWS IoT's broker, with the client id of its thing."""

    def __init__(
        self, name: str, yard: IotYard, certificate: str, link: HeldLink, tasks: asyncio.TaskGroup
    ) -> None:
        self.name = name
        self.thing = yard.prefix + name
        self.certificate = certificate
        self.heard: list[device_pb2.DeviceDesired] = []
        self.link = link
        self.links = 0
        """How often it said hello."""
        self._yard = yard
        self._options = EdgeOptions()
        self._tasks = tasks
        self._client: MqttClient | None = None
        self._reading: asyncio.Task[None] | None = None
        self._hello = device_pb2.DeviceHello()
        self._id = ""
        self._turn = 0
        self._seen = 0

    async def come(self, hello: device_pb2.DeviceHello) -> bool:
        """See FarDevice."""
        await self.leave()
        if not await asyncio.to_thread(self._is_let_in):
            return False
        self._client = client = await MqttClient.connect(self.link.port, self.thing)
        wanted, said = self._options.shadow, self._options.said
        await client.subscribe(
            [
                self._topic(wanted, "get/accepted"),
                self._topic(wanted, "update/delta"),
                self._topic(said, "update/delta"),
            ]
        )
        self._reading = self._tasks.create_task(self._read(client), name=f"device:{self.name}")
        self._hello = hello
        await self._say_hello()
        await client.publish(self._topic(wanted, "get"), b"")
        return True

    def _is_let_in(self) -> bool:
        """As the broker asks: whether its certificate is there, active, and this thing's."""
        iot = aws(self._yard.emulator.endpoint, "iot")
        try:
            told = iot.describe_certificate(certificateId=self.certificate.rsplit("/", 1)[-1])
            things = iot.list_principal_things(principal=self.certificate)["things"]
        except iot.exceptions.ResourceNotFoundException:
            return False
        return bool(told["certificateDescription"]["status"] == "ACTIVE" and things == [self.thing])

    async def _say_hello(self) -> None:
        self._id, self.links = uuid.uuid4().hex, self.links + 1
        await self._write(self._options.said, hello_state(self._id, self._hello))

    async def _read(self, client: MqttClient) -> None:
        async for message in client.messages():
            await self._hear(message)

    async def _hear(self, message: Publication) -> None:
        told = json.loads(message.payload)
        if message.topic == self._topic(self._options.said, "update/delta"):
            if told["state"].get("gone") == self._id:
                await self._say_hello()
            return
        if message.topic.endswith("/update/delta"):
            told = {**told, "state": {"desired": told["state"]}}
        shadow = shadow_of(told)
        # A reply to `get` is what there is; notices come in any order.
        if message.topic.endswith("/get/accepted") or shadow.version > self._seen:
            self._seen = shadow.version
            if (wanted := set_of(shadow)) is not None:
                self.heard.append(wanted)

    async def go(self) -> None:
        """See FarDevice."""
        if self._client is not None:
            await self._write(self._options.said, goodbye_state())
            await self._client.disconnect()
        await self.leave()

    async def leave(self) -> None:
        """Give up a link that it has, whatever the other end knows of it."""
        client, self._client = self._client, None
        if client is not None and self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
            await client.leave()

    async def close(self) -> None:
        """It is no more."""
        await self.leave()
        await self.link.close()

    async def tell(self, report: device_pb2.DeviceReport) -> None:
        """See FarDevice."""
        if self._client is None:
            return
        self._turn += 1
        states = report_states(report, self._id, self._turn)
        names = reversed(part_names(self._options.said, len(states)))
        for name, state in zip(names, states, strict=True):
            await self._write(name, state)

    async def _write(self, shadow: str, state: Json) -> None:
        if self._client is not None:
            payload = compact({"state": state})
            await self._client.publish(self._topic(shadow, "update"), payload)

    def _topic(self, shadow: str, verb: str) -> str:
        return f"$aws/things/{self.thing}/shadow/name/{shadow}/{verb}"


class IotFaults(DeviceFaults):
    """What goes wrong on the way to AWS, in its queue, and on the way to the broker."""

    def __init__(self, harness: IotHarness) -> None:
        self._harness = harness

    async def reply_lost_after_effect(self) -> None:
        self._harness.proxy.lose_reply("update hatoba")

    async def double_reply(self) -> None:
        self._harness.proxy.double("update hatoba")

    async def land_late(self, seconds: float) -> None:
        self._harness.proxy.land_late("update hatoba", seconds)

    async def until_called(self) -> None:
        await self._harness.proxy.met.wait()

    async def throttle(self) -> None:
        self._harness.proxy.throttle("update hatoba")

    async def unreachable_for(self, seconds: float) -> None:
        self._harness.proxy.cut = True
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, setattr, self._harness.proxy, "cut", False)

    async def gap(self) -> None:
        await asyncio.to_thread(self._harness.yard.send, "who knows what this was to say")

    async def cut(self, device: str) -> None:
        self._harness.far[device].link.cut()

    async def hold(self, device: str) -> None:
        self._harness.far[device].link.hold()

    async def let_go(self, device: str) -> None:
        self._harness.far[device].link.let_go()

    async def silence(self, device: str) -> None:
        await self.hold(device)
        # As AWS does after one and a half keep-alives.
        self._harness.far[device].link.end_there()

    async def swap_reports(self, device: str) -> None:
        self._harness.mail.swap(self._harness.far[device].thing)

    async def repeat_report(self, device: str) -> None:
        first = self._harness.mail.reports[self._harness.far[device].thing][0]
        await asyncio.to_thread(self._harness.yard.send, first)


class IotHarness(FarHarness):
    """An instance of the backend before a proxy, and devices at the broker behind it."""

    abilities = frozenset({Ability.KEEPS, Ability.REMEMBERS})

    def __init__(self, yard: IotYard, **options: object) -> None:
        super().__init__(EdgeType(), yard.options | options, faults=IotFaults(self))
        self.cluster_id = fresh_name("kit")
        self.yard = yard
        self.mail = Mail(yard)
        self.far: dict[str, MqttDevice] = {}
        self._world = AsyncExitStack()
        self._tasks = asyncio.TaskGroup()

    @property
    def devices(self) -> AwsIotDevices:
        """The role as it is."""
        assert isinstance(self.backend, EdgeBackend)
        assert isinstance(self.backend.devices, AwsIotDevices)
        return self.backend.devices

    async def __aenter__(self) -> Self:
        running = FaultProxy.running(self.yard.emulator.endpoint, IotDialect())
        self.proxy = await self._world.enter_async_context(running)
        self.proxy.rewrite.append(self.mail)
        await self._world.enter_async_context(self._tasks)
        self.options = self.options | {"endpoint": self.proxy.endpoint}
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for one in self.far.values():
            await one.close()
        await super().__aexit__(None, None, None)
        await self._world.aclose()

    async def reopen(self) -> None:
        """Devices keep their links to AWS."""
        await self.shut()
        await self.open()

    async def shut(self) -> None:
        """The server is away."""
        await super().__aexit__(None, None, None)

    async def open(self) -> None:
        """It is there again."""
        await super().__aenter__()

    async def device(self, name: str) -> MqttDevice:
        """See DeviceHarness."""
        if former := self.far.get(name):
            await former.close()
        identity = await self.devices.things.enroll(name, keys.request_for(keys.new_key()))
        return await self.dials(name, identity.certificate_arn)

    async def dials(self, name: str, certificate: str) -> MqttDevice:
        """A device that has this certificate already."""
        there = urlsplit(self.yard.emulator.endpoint)
        link = HeldLink(there.port or 0, there.hostname or "")
        await link.open()
        made = MqttDevice(name, self.yard, certificate, link, self._tasks)
        self.far[name] = made
        return made


@pytest.fixture
def iot_credentials(ministack: AwsEmulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """ministack's, in the environment of a test."""
    for key, text in ministack.credentials.items():
        monkeypatch.setenv(key, text)
