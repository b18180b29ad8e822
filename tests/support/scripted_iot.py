"""AWS IoT and SQS in memory, behind the protocol by which backends call AWS: it keeps versions as
AWS does, counts what is called, and refuses or loses what a test wants refused or lost.
"""

from __future__ import annotations

import asyncio
import copy
import datetime as dt
import json
import random
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hatoba.shadows import Json, hello_state, set_of, shadow_of
from hatoba.v1 import device_pb2
from hatoba_plugins.aws import AwsRefusal, Paging, Unanswered
from hatoba_plugins.aws.errors import AwsAnswer, meaning
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge.calls import CLUSTER, IotCalls
from hatoba_plugins.backends.iot_edge.listening import Listener
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.shadows import AwsIotDevices
from hatoba_plugins.backends.iot_edge.things import Things
from hatoba_plugins.backends.iot_edge.wishing import Wishes
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.conformance import GatedBudget, NoWorkers
from hatoba_plugins.conformance.sites import document, hello
from hatoba_plugins.values import DeviceNews, DeviceWish, WishOutcome

CLUSTER_ID = "c1"
SAID = "hatoba-said"
Act = Callable[[], None]


class Payload:
    """A body as the SDK gives it: read once, later."""

    def __init__(self, document: Json) -> None:
        self._raw = json.dumps(document).encode()

    async def read(self) -> bytes:
        """All of it."""
        await asyncio.sleep(0)
        return self._raw


@dataclass
class KeptShadow:
    """A shadow; its version outlives it."""

    version: int = 0
    there: bool = False
    state: Json = field(default_factory=lambda: {"desired": {}, "reported": {}})
    spoke: float = 0.0


class ScriptedIot:
    """See `AwsClients`."""

    region = "eu-central-1"

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.counts: Counter[str] = Counter()
        self.calls: list[str] = []
        self.shadows: defaultdict[tuple[str, str], KeptShadow] = defaultdict(KeptShadow)
        self.things: dict[str, str] = {}
        """Of each its installation."""
        self.principals: defaultdict[str, list[str]] = defaultdict(list)
        self.certificates: dict[str, str] = {}
        """Status, by ARN."""
        self.pems: dict[str, str] = {}
        self.sign: Callable[[str], str] = lambda csr: f"signed {csr}"
        self.policies: defaultdict[str, set[str]] = defaultdict(set)
        self.jobs: dict[str, Json] = {}
        self.queue: deque[str] = deque()
        self.taken: list[str] = []
        self.waits = True
        """Whether the queue waits for messages."""
        self._before: defaultdict[str, deque[Act]] = defaultdict(deque)
        self._after: defaultdict[str, deque[Act]] = defaultdict(deque)

    # -- what a test does -----------------------------------------------------------------------

    def refuse(self, operation: str, code: str, status: int = 400, message: str = "no") -> None:
        """The next call of this is refused so."""
        self.before(operation, lambda: refuse(operation, code, status, message))

    def lose(self, operation: str) -> None:
        """The next call of this takes effect, and nobody hears of it."""

        def lost() -> None:
            raise Unanswered(f"{operation}: no answer")

        self._after[operation].append(lost)

    def before(self, operation: str, act: Act) -> None:
        """Do this just before the next call of this takes effect."""
        self._before[operation].append(act)

    def put(self, thing: str, name: str, state: Json) -> int:
        """Somebody writes into a shadow; its version."""
        kept = self.shadows[thing, name]
        for section, patch in state.items():
            _merge(kept.state[section], patch)
        if "reported" in state:
            kept.spoke = self.clock.time()
        kept.version, kept.there = kept.version + 1, True
        return kept.version

    def document(self, thing: str, name: str) -> Json:
        """As AWS tells of a shadow, in whole seconds."""
        kept = self.shadows[thing, name]
        spoken = {"turn": {"timestamp": int(kept.spoke)}} if kept.spoke else {}
        return {
            "state": copy.deepcopy(kept.state),
            "metadata": {"reported": spoken},
            "version": kept.version,
            "timestamp": int(self.clock.time()),
        }

    def say(self, thing: str, state: Json) -> str:
        """A device writes what it says, and a rule's message of it comes; the message."""
        self.put(thing, SAID, state)
        told = json.dumps({"thing": thing, "shadow": self.document(thing, SAID)})
        self.queue.append(told)
        return told

    # -- AwsClients -----------------------------------------------------------------------------

    def can(self, operation: str) -> bool:
        """See `AwsClients`."""
        return hasattr(self, _name(operation))

    async def read(self, operation: str, **parameters: object) -> Json:
        """See `AwsClients`; it asks once."""
        return await self.write(operation, **parameters)

    async def pages(
        self, operation: str, paging: Paging, **parameters: object
    ) -> AsyncIterator[Any]:
        """See `AwsClients`."""
        for one in (await self.write(operation, **parameters))[paging.items]:
            yield one

    async def write(self, operation: str, **parameters: object) -> Json:
        """See `AwsClients`."""
        self.counts[operation] += 1
        self.calls.append(operation)
        await asyncio.sleep(0)
        if operation == "sqs:ReceiveMessage" and self.waits:
            await self._wait()
        if self._before[operation]:
            self._before[operation].popleft()()
        called: Callable[..., Json] = getattr(self, _name(operation))
        reply = called(**parameters)
        if self._after[operation]:
            self._after[operation].popleft()()
        return reply

    async def _wait(self) -> None:
        """As long as the template's queue does."""
        for _ in range(10):
            if self.queue:
                return
            await self.clock.sleep(1.0)

    # -- operations -----------------------------------------------------------------------------

    def on_get_thing_shadow(self, thingName: str, shadowName: str) -> Json:
        if not self.shadows[thingName, shadowName].there:
            missing("iot-data:GetThingShadow")
        return {"payload": Payload(self.document(thingName, shadowName))}

    def on_update_thing_shadow(self, thingName: str, shadowName: str, payload: bytes) -> Json:
        told = json.loads(payload)
        if told.get("version", self.shadows[thingName, shadowName].version) != (
            self.shadows[thingName, shadowName].version
        ):
            refuse("iot-data:UpdateThingShadow", "ConflictException", 409, "Version conflict")
        version = self.put(thingName, shadowName, told["state"])
        return {"payload": Payload({"state": told["state"], "version": version})}

    def on_delete_thing_shadow(self, thingName: str, shadowName: str) -> Json:
        kept = self.shadows[thingName, shadowName]
        if not kept.there:
            missing("iot-data:DeleteThingShadow")
        self.shadows[thingName, shadowName] = KeptShadow(kept.version)
        return {"payload": Payload({"version": kept.version})}

    def on_describe_endpoint(self, endpointType: str) -> Json:
        assert endpointType == "iot:Data-ATS"
        return {"endpointAddress": "x-ats.iot.eu-central-1.amazonaws.com"}

    def on_describe_thing(self, thingName: str) -> Json:
        if thingName not in self.things:
            missing("iot:DescribeThing")
        return self._thing(thingName)

    def _thing(self, name: str) -> Json:
        attributes = {CLUSTER: self.things[name]}
        return {"thingName": name, "thingArn": f"arn:thing/{name}", "attributes": attributes}

    def on_create_thing(self, thingName: str, attributePayload: Json) -> Json:
        cluster = attributePayload["attributes"][CLUSTER]
        if self.things.setdefault(thingName, cluster) != cluster:
            refuse("iot:CreateThing", "ResourceAlreadyExistsException", 409, "another one")
        return self._thing(thingName)

    def on_list_things(self, attributeName: str, attributeValue: str) -> Json:
        assert attributeName == CLUSTER
        ours = [name for name, cluster in self.things.items() if cluster == attributeValue]
        return {"things": [self._thing(name) for name in ours]}

    def on_delete_thing(self, thingName: str) -> Json:
        if self.principals[thingName]:
            text = f"Cannot delete. Thing {thingName} is still attached to one or more principals"
            refuse("iot:DeleteThing", "InvalidRequestException", 400, text)
        self.things.pop(thingName, None)
        return {}

    def on_create_certificate_from_csr(
        self, certificateSigningRequest: str, setAsActive: bool
    ) -> Json:
        arn = f"arn:cert/{len(self.certificates) + 1}"
        self.certificates[arn] = "ACTIVE" if setAsActive else "INACTIVE"
        self.pems[arn] = self.sign(certificateSigningRequest)
        return {"certificateArn": arn, "certificatePem": self.pems[arn]}

    def on_describe_certificate(self, certificateId: str) -> Json:
        arn = self._certificate(certificateId, "iot:DescribeCertificate")
        return {"certificateDescription": {"certificatePem": self.pems[arn]}}

    def on_update_certificate(self, certificateId: str, newStatus: str) -> Json:
        arn = self._certificate(certificateId, "iot:UpdateCertificate")
        self.certificates[arn] = newStatus
        return {}

    def on_delete_certificate(self, certificateId: str) -> Json:
        arn = self._certificate(certificateId, "iot:DeleteCertificate")
        if self.certificates[arn] == "ACTIVE":
            refuse("iot:DeleteCertificate", "CertificateStateException", 406, "it is active")
        if any(arn in attached for attached in self.principals.values()):
            refuse("iot:DeleteCertificate", "DeleteConflictException", 409, "it is attached")
        del self.certificates[arn]
        return {}

    def _certificate(self, name: str, operation: str) -> str:
        if f"arn:cert/{name}" not in self.certificates:
            missing(operation)
        return f"arn:cert/{name}"

    def on_attach_policy(self, policyName: str, target: str) -> Json:
        self.policies[target].add(policyName)
        return {}

    def on_detach_policy(self, policyName: str, target: str) -> Json:
        self.policies[target].discard(policyName)
        return {}

    def on_attach_thing_principal(self, thingName: str, principal: str) -> Json:
        if principal not in self.principals[thingName]:
            self.principals[thingName].append(principal)
        return {}

    def on_detach_thing_principal(self, thingName: str, principal: str) -> Json:
        if principal in self.principals[thingName]:
            self.principals[thingName].remove(principal)
        return {}

    def on_list_thing_principals(self, thingName: str) -> Json:
        if thingName not in self.things:
            missing("iot:ListThingPrincipals")
        return {"principals": list(self.principals[thingName])}

    def on_create_job(self, jobId: str, **parameters: Any) -> Json:
        self.jobs[jobId] = parameters
        return {"jobId": jobId}

    def on_delete_job(self, jobId: str, force: bool) -> Json:
        assert force
        if self.jobs.pop(jobId, None) is None:
            missing("iot:DeleteJob")
        return {}

    def on_receive_message(self, QueueUrl: str, MaxNumberOfMessages: int) -> Json:
        count = min(len(self.queue), MaxNumberOfMessages)
        bodies = [self.queue.popleft() for _ in range(count)]
        letters = [{"Body": one, "ReceiptHandle": one} for one in bodies]
        return {"Messages": letters} if letters else {}

    def on_delete_message_batch(self, QueueUrl: str, Entries: Sequence[Json]) -> Json:
        self.taken += [one["ReceiptHandle"] for one in Entries]
        return {"Successful": [{"Id": one["Id"]} for one in Entries]}


def signed(csr: str) -> str:
    """A certificate for the key of a request, PEM."""
    today = dt.datetime.now(dt.UTC)
    asked = x509.load_pem_x509_csr(csr.encode())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "AWS IoT Certificate")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(asked.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today)
        .not_valid_after(today + dt.timedelta(days=1))
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def refuse(operation: str, code: str, status: int, message: str) -> NoReturn:
    """Raise what AWS's clients raise for this answer."""
    answer = AwsAnswer(operation, code, message, status)
    raise (meaning(answer) or Unanswered(message)) from AwsRefusal(answer)


def missing(operation: str) -> NoReturn:
    """There is no such thing."""
    refuse(operation, "ResourceNotFoundException", 404, "not found")


def _name(operation: str) -> str:
    """`iot:ListThings` is `on_list_things`."""
    words = "".join(f"_{one.lower()}" if one.isupper() else one for one in operation)
    return "on" + words.partition(":")[2]


def _merge(base: Json, patch: Json) -> None:
    for key, value in patch.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = value


# -- the role on it --------------------------------------------------------------------------------


@dataclass
class IotDesk:
    """The device role of an instance on a scripted AWS, and what it told since the last look."""

    aws: ScriptedIot
    clock: FakeClock
    options: EdgeOptions
    role: AwsIotDevices
    listener: Listener
    news: list[DeviceNews] = field(default_factory=list)

    def device(self, name: str) -> str:
        """A device of ours that is there to be told something; its thing."""
        thing = self.options.thing_prefix + name
        self.aws.things[thing] = CLUSTER_ID
        self.aws.put(thing, self.options.shadow, {"desired": {"format": 1}})
        return thing

    def comes(self, name: str, link: str = "link-1") -> device_pb2.DeviceHello:
        """A device says hello."""
        said = hello(name)
        self.aws.say(self.options.thing_prefix + name, hello_state(link, said))
        return said

    async def wish(self, name: str, *generations: int) -> list[WishOutcome]:
        """Wish a device these, while time goes on for as long as it takes."""
        wishes = [DeviceWish(name, document(one)) for one in generations]
        async with asyncio.TaskGroup() as tasks:
            asked = tasks.create_task(self.role.desire(wishes), name="wish")
            while not asked.done():
                await self.clock.advance(0.1)
        return asked.result()

    def wanted_of(self, name: str) -> device_pb2.DeviceDesired | None:
        """What a device's shadow wants of it."""
        thing = self.options.thing_prefix + name
        return set_of(shadow_of(self.aws.document(thing, self.options.shadow)))

    async def pass_time(self, seconds: float = 1.0) -> list[DeviceNews]:
        """Let so much time go by; what was told meanwhile."""
        await self.clock.advance(seconds)
        told, self.news[:] = list(self.news), []
        return told

    async def follow(self) -> None:
        """Write down what is told."""
        async for one in self.role.reports():
            self.news.append(one)


def iot_context(clock: FakeClock) -> BackendContext:
    """What an instance is opened with."""

    async def no_secret(name: str) -> str:
        raise KeyError(name)

    budget, workers = GatedBudget(), NoWorkers()
    rng = random.Random(1)
    return BackendContext(clock, rng, CLUSTER_ID, 1, "", budget, no_secret, workers)


@asynccontextmanager
async def iot_desk(**options: Any) -> AsyncIterator[IotDesk]:
    """One that listens, and is followed."""
    clock = FakeClock()
    aws, ctx = ScriptedIot(clock), iot_context(clock)
    known = EdgeOptions(**({"transport": "aws-iot", "queue": "https://sqs.test/1/q"} | options))
    calls = IotCalls(aws, aws)
    things = Things(calls, known, CLUSTER_ID, clock)
    wishes = Wishes(calls, things, known, ctx)
    listener = Listener(calls, things, wishes, known, ctx)
    role = AwsIotDevices(calls, things, wishes, listener)
    desk = IotDesk(aws, clock, known, role, listener)
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(listener.run(), name="listener"),
            tasks.create_task(desk.follow(), name="follower"),
        ]
        try:
            yield desk
        finally:
            for task in running:
                task.cancel()
