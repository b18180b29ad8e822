"""A device that means harm: whatever it tries is refused or does nothing, what it did in another's
name is kept, and nobody else notices. A real server with TLS at its port of devices.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import grpc.aio
import pytest
from acting_devices import Actor, acting
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from device_desk import Machine
from google.protobuf.message import Message
from hand_device import NAME_SHOWN, HandDevice
from waiting import eventually
from wire import path_of

from hatoba.v1 import (
    admin_pb2,
    artifact_pb2,
    device_pb2,
    job_pb2,
    model_pb2,
)
from hatoba_scheduler.auth.bursts import AUDIT_BURST
from hatoba_worker import keys

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

pytestmark = pytest.mark.timeout(240)
CONNECT = "/hatoba.v1.DeviceService/Connect"
CHUNKS = "/hatoba.v1.ArtifactService/DownloadChunks"
PATIENCE = 30.0
NOT_LEARNED = "Internal error from Core"
MIB = 1 << 20
FLAT, AGAIN = 48 * MIB, 8 * MIB
"""Bytes by which a server may be larger after a flood, and after all attempts once more."""
GUESSES = AUDIT_BURST + 30
Code = grpc.StatusCode
UNKNOWN, DENIED, BAD = Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.INVALID_ARGUMENT
SHUT_OUT, TOO_LARGE = Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED
TOO_MANY = Code.RESOURCE_EXHAUSTED
Item = device_pb2.DeviceItem
Request = device_pb2.DeviceServiceConnectRequest
Claim = Sequence[tuple[str, str]]


@dataclass
class Scene:
    """A server, a device that minds its own business, and one that does not."""

    yard: DeviceYard
    victim: Actor
    hostile: HandDevice
    token: str = ""
    tried: list[str] = field(default_factory=list)
    """Methods that were called, in order."""

    @property
    def own(self) -> Claim:
        """What the hostile one honestly says."""
        return self.hostile.metadata()

    @property
    def others(self) -> Claim:
        """What it says as another."""
        return self.hostile.metadata(self.victim.device.name)

    def hello(self, **fields: object) -> Item:
        """A hello that would be welcome, but for what is said here."""
        hello = device_pb2.DeviceHello(
            device=self.hostile.name,
            incarnation="incarnation",
            installation="installation",
            protocol=1,
        )
        for name, value in fields.items():
            setattr(hello, name, value)
        return Item(hello=hello)

    # -- how it calls ---------------------------------------------------------------------------

    async def at_port(
        self,
        path: str,
        *messages: bytes,
        claim: Claim = (),
        credentials: grpc.ChannelCredentials | None = None,
    ) -> grpc.StatusCode:
        """How a call at the port of devices ends."""
        self.tried.append(path.lstrip("/"))
        identity = self.hostile.identity
        options = [(NAME_SHOWN, identity.server_name)]
        shown = credentials or self.hostile.credentials()
        async with grpc.aio.secure_channel(identity.address, shown, options) as channel:
            return await ended(channel, path, messages, claim)

    async def at_api(self, path: str, *messages: bytes, claim: Claim) -> grpc.StatusCode:
        """How a call at the ordinary port ends."""
        self.tried.append(path.lstrip("/"))
        async with grpc.aio.insecure_channel(self.yard.server.address) as channel:
            return await ended(channel, path, messages, claim)

    async def says(self, *items: Item, raw: bytes = b"") -> grpc.StatusCode:
        """How a stream of its own ends on which it says this."""
        messages = [Request(items=items).SerializeToString() + raw]
        return await self.at_port(CONNECT, *messages, claim=self.own)

    async def enrolls(self, csr: str, token: str = "", **fields: object) -> grpc.StatusCode:
        """How a request to be a device ends."""
        request = device_pb2.EnrollDeviceRequest(csr=csr, **fields)  # type: ignore[arg-type]
        request.platform.architecture = "arm64"
        shown = (token or self.token).partition(".")[0]
        claim = [("authorization", f"Bearer {shown}")]
        return await self.at_api(path_of(request), request.SerializeToString(), claim=claim)


async def ended(
    channel: grpc.aio.Channel, path: str, messages: Sequence[bytes], claim: Claim
) -> grpc.StatusCode:
    """How a call with these messages ends; OK: it was answered."""
    while True:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(path)(
            metadata=list(claim), timeout=PATIENCE
        )
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in messages:
                await call.write(message)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        # Of a call that ends while it is written to, grpc now and then does not learn how.
        if await call.details() != NOT_LEARNED:
            return await call.code()


class Told(NamedTuple):
    """What the server's log says of an attempt: in whose name it was made, and who made it."""

    event: str
    device: str = ""
    by: str = ""


AS_VICTIM = Told("device.denied", "victim", "hostile")
AS_ITSELF = Told("device.denied", "hostile", "hostile")
UNPROVEN = Told("device.denied", "hostile")
"""It said its name where nobody asks for a certificate."""
UNFIT = Told("device.denied", by="hostile")
"""It sent what may not be sent."""
NOBODY = Told("call.denied")
WITH_TOKEN = Told("call.denied", by="devices/?")
UNHEARD = None
"""TLS or HTTP/2 refuses it before there is a call."""
Try = Callable[[Scene], Awaitable[grpc.StatusCode]]


class Attempt(NamedTuple):
    """How it may end, and what is told of it."""

    name: str
    codes: tuple[grpc.StatusCode, ...]
    told: Told | None
    tries: Try


ATTEMPTS: list[Attempt] = []


def attempt(told: Told | None, *codes: grpc.StatusCode) -> Callable[[Try], Try]:
    """One of the attempts."""

    def keep(tries: Try) -> Try:
        ATTEMPTS.append(Attempt(tries.__name__, codes, told, tries))
        return tries

    return keep


# -- in another's name ----------------------------------------------------------------------------


@attempt(AS_VICTIM, UNKNOWN)
async def connects_as_another(scene: Scene) -> grpc.StatusCode:
    hello = scene.hello(device=scene.victim.device.name)
    message = Request(items=[hello]).SerializeToString()
    return await scene.at_port(CONNECT, message, claim=scene.others)


@attempt(AS_VICTIM, DENIED)
async def says_hello_as_another(scene: Scene) -> grpc.StatusCode:
    return await scene.says(scene.hello(device=scene.victim.device.name))


@attempt(AS_VICTIM, UNKNOWN)
async def renews_as_another(scene: Scene) -> grpc.StatusCode:
    request = device_pb2.RenewDeviceRequest(csr=HandDevice().csr())
    return await scene.at_port(path_of(request), request.SerializeToString(), claim=scene.others)


@attempt(AS_VICTIM, UNKNOWN)
async def downloads_as_another(scene: Scene) -> grpc.StatusCode:
    request = artifact_pb2.DownloadChunksRequest(sha256=[bytes(32)])
    return await scene.at_port(CHUNKS, request.SerializeToString(), claim=scene.others)


@attempt(NOBODY, UNKNOWN)
async def says_no_name(scene: Scene) -> grpc.StatusCode:
    return await scene.at_port(CONNECT, b"")


@attempt(NOBODY, UNKNOWN)
async def says_a_name_that_is_none(scene: Scene) -> grpc.StatusCode:
    claim = [("authorization", "Bearer dc_../../admin")]
    return await scene.at_port(CONNECT, b"", claim=claim)


@attempt(NOBODY, UNKNOWN)
async def shows_a_made_up_token(scene: Scene) -> grpc.StatusCode:
    claim = [("authorization", f"Bearer hb_{'0' * 12}_{'A' * 43}")]
    request = device_pb2.ListDevicesRequest()
    return await scene.at_port(path_of(request), request.SerializeToString(), claim=claim)


# -- at other doors -------------------------------------------------------------------------------


@attempt(UNPROVEN, UNKNOWN)
async def calls_the_ordinary_port(scene: Scene) -> grpc.StatusCode:
    request = device_pb2.GetDeviceRequest(name=scene.victim.device.name)
    return await scene.at_api(path_of(request), request.SerializeToString(), claim=scene.own)


@attempt(UNPROVEN, UNKNOWN)
async def connects_at_the_ordinary_port(scene: Scene) -> grpc.StatusCode:
    message = Request(items=[scene.hello()]).SerializeToString()
    return await scene.at_api(CONNECT, message, claim=scene.own)


def of_others(request: Message) -> None:
    """Another attempt: a call that is for operators."""

    async def asks(scene: Scene) -> grpc.StatusCode:
        return await scene.at_port(path_of(request), request.SerializeToString(), claim=scene.own)

    asks.__name__ = f"asks for {type(request).__name__}"
    attempt(AS_ITSELF, DENIED)(asks)


of_others(device_pb2.ListDevicesRequest())
of_others(device_pb2.RevokeDeviceRequest(name="victim"))
of_others(device_pb2.DecommissionDeviceRequest(name="victim", force=True))
of_others(device_pb2.UpdateDeviceRequest(name="victim", allow_removal=True))
of_others(device_pb2.CreateDeviceTokenRequest())
of_others(device_pb2.ListDeviceLogsRequest(name="victim"))
of_others(admin_pb2.CreateTokenRequest(principal="eve", role=admin_pb2.ROLE_ADMIN))
of_others(job_pb2.ListJobsRequest())
of_others(model_pb2.ListModelsRequest())


# -- certificates ---------------------------------------------------------------------------------


@attempt(UNHEARD, SHUT_OUT)
async def shows_no_certificate(scene: Scene) -> grpc.StatusCode:
    bare = grpc.ssl_channel_credentials(scene.hostile.identity.authority.encode())
    return await scene.at_port(CONNECT, b"", claim=scene.own, credentials=bare)


@attempt(UNHEARD, SHUT_OUT)
async def shows_one_that_it_signed_itself(scene: Scene) -> grpc.StatusCode:
    credentials = forged(scene)
    return await scene.at_port(CONNECT, b"", claim=scene.others, credentials=credentials)


@attempt(UNHEARD, SHUT_OUT)
async def shows_anothers_without_its_key(scene: Scene) -> grpc.StatusCode:
    credentials = grpc.ssl_channel_credentials(
        scene.hostile.identity.authority.encode(),
        keys.key_text(scene.hostile.key).encode(),
        scene.victim.device.identity.certificate.encode(),
    )
    return await scene.at_port(CONNECT, b"", claim=scene.others, credentials=credentials)


@attempt(NOBODY, UNKNOWN)
async def replays_anothers_certificate_for_a_renewal(scene: Scene) -> grpc.StatusCode:
    csr = HandDevice().csr()
    certificate = scene.victim.device.identity.certificate
    proof = Machine("victim", scene.hostile.key, certificate).renewal(csr)
    return await renewal(scene, csr, proof)


@attempt(AS_ITSELF, UNKNOWN)
async def shows_its_proof_with_another_request(scene: Scene) -> grpc.StatusCode:
    own = Machine("hostile", scene.hostile.key, scene.hostile.identity.certificate)
    return await renewal(scene, HandDevice().csr(), own.renewal(HandDevice().csr()))


async def renewal(scene: Scene, csr: str, proof: str) -> grpc.StatusCode:
    request = device_pb2.RenewDeviceRequest(csr=csr)
    claim = [("authorization", f"Bearer {proof}")]
    return await scene.at_api(path_of(request), request.SerializeToString(), claim=claim)


@attempt(AS_ITSELF, UNKNOWN)
async def replays_the_certificate_that_it_left_behind(scene: Scene) -> grpc.StatusCode:
    old = scene.hostile.credentials()
    fresh = HandDevice()
    async with scene.hostile.channel() as stub:
        request = device_pb2.RenewDeviceRequest(csr=fresh.csr())
        # Certificates are told apart by when they began, in whole seconds.
        await asyncio.sleep(1.1)
        fresh.identity = await stub.RenewDevice(request, metadata=scene.own, timeout=PATIENCE)
    scene.hostile.key, scene.hostile.identity = fresh.key, fresh.identity
    async with scene.hostile.connected():
        pass
    return await scene.at_port(CONNECT, b"", claim=scene.own, credentials=old)


def forged(scene: Scene) -> grpc.ChannelCredentials:
    """A certificate just like the victim's, but for who signed it."""
    real = x509.load_pem_x509_certificate(scene.victim.device.identity.certificate.encode())
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(real.issuer)
        .public_key(key.public_key())
        .serial_number(real.serial_number)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
    )
    for extension in real.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(key, hashes.SHA256())
    return grpc.ssl_channel_credentials(
        scene.hostile.identity.authority.encode(),
        keys.key_text(key).encode(),
        made.public_bytes(serialization.Encoding.PEM),
    )


# -- becoming somebody ----------------------------------------------------------------------------


@attempt(NOBODY, UNKNOWN)
async def guesses_tokens(scene: Scene) -> grpc.StatusCode:
    csr = HandDevice().csr()
    identity = scene.token.split("_")[1]
    for number in range(10):
        token = f"hb_{identity}_{number:043d}"
        assert await scene.enrolls(csr, token) is UNKNOWN
    return await scene.enrolls(csr, "hb_")


@attempt(WITH_TOKEN, UNKNOWN)
async def uses_a_token_once_more(scene: Scene) -> grpc.StatusCode:
    token = await scene.yard.token()
    name = f"once-{len(scene.tried)}"
    assert await scene.enrolls(HandDevice().csr(), token, device=name) is Code.OK
    return await scene.enrolls(HandDevice().csr(), token, device="twice")


@attempt(WITH_TOKEN, Code.ALREADY_EXISTS)
async def takes_anothers_name(scene: Scene) -> grpc.StatusCode:
    return await scene.enrolls(HandDevice().csr(), device="victim")


@attempt(WITH_TOKEN, BAD)
async def asks_with_a_request_that_is_broken(scene: Scene) -> grpc.StatusCode:
    lines = HandDevice().csr().splitlines()
    lines[2] = lines[2][::-1]
    return await scene.enrolls("\n".join(lines))


@attempt(WITH_TOKEN, BAD)
async def asks_with_another_kind_of_key(scene: Scene) -> grpc.StatusCode:
    key = await asyncio.to_thread(rsa.generate_private_key, 65_537, 2_048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "victim")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name)
    signed = request.sign(key, hashes.SHA256())
    return await scene.enrolls(signed.public_bytes(serialization.Encoding.PEM).decode())


@attempt(WITH_TOKEN, BAD)
async def gives_itself_labels_of_ours(scene: Scene) -> grpc.StatusCode:
    return await scene.enrolls(HandDevice().csr(), labels={"hatoba/role": "admin"})


def with_its_token(path: str, *messages: Message) -> None:
    """Another attempt: what makes devices opens something else, at either port."""

    async def at_api(scene: Scene) -> grpc.StatusCode:
        return await scene.at_api(path, *map(packed, messages), claim=bearer(scene))

    async def at_port(scene: Scene) -> grpc.StatusCode:
        return await scene.at_port(path, *map(packed, messages), claim=bearer(scene))

    for tries in (at_api, at_port):
        tries.__name__ = f"{path} {tries.__name__} with the token of devices"
        attempt(WITH_TOKEN, DENIED)(tries)


def packed(message: Message) -> bytes:
    return message.SerializeToString()


def bearer(scene: Scene) -> Claim:
    return [("authorization", f"Bearer {scene.token.partition('.')[0]}")]


with_its_token("/hatoba.v1.DeviceService/ListDevices", device_pb2.ListDevicesRequest())
with_its_token(CONNECT, Request(items=[Item(hello=device_pb2.DeviceHello(device="victim"))]))
with_its_token(CHUNKS, artifact_pb2.DownloadChunksRequest(sha256=[bytes(32)]))
with_its_token("/hatoba.v1.DeviceService/CreateDeviceToken", device_pb2.CreateDeviceTokenRequest())
with_its_token("/hatoba.v1.DeviceService/RenewDevice", device_pb2.RenewDeviceRequest(csr="csr"))


# -- frames ---------------------------------------------------------------------------------------


@attempt(UNFIT, BAD)
async def begins_without_a_hello(scene: Scene) -> grpc.StatusCode:
    return await scene.says(Item(report=device_pb2.DeviceReport(generation=1)))


@attempt(UNFIT, BAD, Code.INTERNAL)
async def says_what_is_no_message(scene: Scene) -> grpc.StatusCode:
    return await scene.says(raw=b"\x0a\xff\xff\xff\xff\x0f" + os.urandom(64))


@attempt(UNFIT, TOO_LARGE)
async def says_more_than_a_message_may_have(scene: Scene) -> grpc.StatusCode:
    return await scene.says(scene.hello(), raw=unknown(b"\0" * 5 * MIB))


@attempt(UNHEARD, TOO_LARGE)
async def says_very_much_more(scene: Scene) -> grpc.StatusCode:
    return await scene.says(scene.hello(), raw=unknown(b"\0" * 20 * MIB))


@attempt(UNFIT, BAD)
async def has_a_very_long_version(scene: Scene) -> grpc.StatusCode:
    return await scene.says(scene.hello(version="9" * MIB))


@attempt(UNFIT, BAD, Code.INTERNAL)
async def nests_what_nobody_knows_very_deeply(scene: Scene) -> grpc.StatusCode:
    # Groups of the field 1,000, which begin and do not end.
    return await scene.says(scene.hello(), raw=b"\xc3\x3e" * 500_000)


def unknown(data: bytes) -> bytes:
    """A field that nobody knows."""
    size, left = bytearray(), len(data)
    while left > 127:
        size.append(left & 127 | 128)
        left >>= 7
    return b"\xc2\x3e" + bytes([*size, left]) + data


# -- the tests ------------------------------------------------------------------------------------


@asynccontextmanager
async def scene_of(yard: DeviceYard) -> AsyncIterator[Scene]:
    """With a model that runs on the victim."""
    victim = Actor(await yard.device("victim"), {})
    hostile = await yard.device("hostile", site="osaka")
    scene = Scene(yard, victim, hostile, await yard.token(uses=100))
    async with acting([victim]):
        await yard.deploy(await yard.model())
        await eventually(lambda: well(scene))
        yield scene


async def well(scene: Scene) -> bool:
    """Whether the victim is connected, and has done what was wanted at first and nothing else."""
    found = await scene.yard.get("victim")
    told = (await scene.yard.shown()).devices
    if [wanted for wanted, _ in scene.victim.told] != [1]:
        return False
    return found.connected and found.settled == 1 and told.succeeded == told.total == 1


def resident(yard: DeviceYard) -> int:
    """Bytes of the server's memory."""
    pages = Path(f"/proc/{yard.server.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def denials(yard: DeviceYard, event: str) -> list[dict[str, Any]]:
    """Lines of the server's log."""
    lines = yard.server.log_text().splitlines()
    return [json.loads(line) for line in lines if f'"{event}"' in line]


async def tried(scene: Scene, one: Attempt) -> None:
    """It is refused, nobody else notices, and of the attempt there is a line of its own."""
    told = one.told or NOBODY
    before = len(await asyncio.to_thread(denials, scene.yard, told.event))
    code = await one.tries(scene)
    while code is TOO_MANY and code not in one.codes:
        # The server has not let go of all earlier streams yet.
        code = await one.tries(scene)
    assert code in one.codes, f"{one.name}: {code}"
    assert await well(scene), one.name
    lines = (await asyncio.to_thread(denials, scene.yard, told.event))[before:]
    if one.told is None:
        assert not lines, one.name
        return
    line = lines[-1]
    by = line["principal"] if told is NOBODY or told is WITH_TOKEN else line["by"]
    assert line["method"] == scene.tried[-1], one.name
    assert (line.get("device", ""), by) == (told.device, told.by), one.name
    assert line["peer"].startswith(("ipv4:127.0.0.1:", "the ")), one.name


async def noted(yard: DeviceYard, name: str) -> None:
    """Wait until a device has as many events of it as the log has lines."""
    lines = await asyncio.to_thread(denials, yard, "device.denied")
    count = sum(name in (line["device"], line["by"]) for line in lines)

    async def holds() -> bool:
        return (await yard.events(name)).count("denied") == count

    await eventually(holds)


async def warm(scene: Scene) -> None:
    """Have each thread of the server's once had room for a large message: none gives it back."""
    for _ in range(20):
        await says_more_than_a_message_may_have(scene)


async def test_whatever_a_device_tries_it_gets_nowhere(yard: DeviceYard) -> None:
    assert len(ATTEMPTS) >= 30
    async with scene_of(yard) as scene:
        for one in ATTEMPTS:
            await tried(scene, one)
        await warm(scene)
        before = await asyncio.to_thread(resident, yard)
        for one in ATTEMPTS:
            await tried(scene, one)
        assert await asyncio.to_thread(resident, yard) - before < AGAIN
        # Who was spoken for, and who did it, are told.
        for name in ("victim", "hostile"):
            await noted(yard, name)
        listed = await yard.wire.once(
            device_pb2.ListDevicesRequest(), device_pb2.ListDevicesResponse
        )
        names = {one.name.removeprefix("devices/") for one in listed.devices}
        assert {name for name in names if not name.startswith("once-")} == {"hostile", "victim"}


async def test_of_many_guesses_each_is_told_or_counted(yard: DeviceYard) -> None:
    async with scene_of(yard) as scene:
        csr, guesses = HandDevice().csr(), 0
        before = len(await asyncio.to_thread(denials, yard, "call.denied"))

        async def guessed() -> int:
            nonlocal guesses
            guesses += 1
            token = f"hb_{scene.token.split('_')[1]}_{guesses:043d}"
            assert await scene.enrolls(csr, token) is UNKNOWN
            lines = (await asyncio.to_thread(denials, yard, "call.denied"))[before:]
            assert len(lines) <= AUDIT_BURST + 2
            return len(lines) + lines[-1]["unheard"] == guesses and guesses > GUESSES

        # A guess is told of again after AUDIT_SECONDS, with how many were not.
        await eventually(guessed)
        assert await well(scene)


async def test_what_it_says_of_others_changes_nothing_of_theirs(yard: DeviceYard) -> None:
    async with scene_of(yard) as scene, scene.hostile.connected() as stream:
        name = "projects/default/deployments/reader"
        report = device_pb2.DeviceReport(generation=2**63 - 1, settled=True)
        report.slots.add(deployment=name, revision=1, phase=device_pb2.SLOT_PHASE_BAD, running=9)
        await stream.say(Item(report=report))
        records = device_pb2.DeviceRecords(first=2**62)
        records.records.add().log.CopyFrom(
            device_pb2.DeviceLogLine(deployment=name, text="all is lost")
        )
        await stream.say(Item(records=records))
        await stream.next(lambda one: one.HasField("stored"))

        async def noticed() -> bool:
            return "generation" in await yard.events("hostile")

        await eventually(noticed)
        assert await well(scene)
        assert (await yard.get("hostile")).desired.generation < 100
        request = device_pb2.ListDeviceLogsRequest(name="victim")
        told = await yard.wire.once(request, device_pb2.ListDeviceLogsResponse)
        assert list(told.lines) == []


async def test_ten_thousand_slots_are_refused_and_a_flood_leaves_the_server_as_it_was(
    yard: DeviceYard,
) -> None:
    async with scene_of(yard) as scene:
        many = device_pb2.DeviceReport()
        for number in range(10_000):
            many.slots.add(deployment=f"projects/default/deployments/d{number}")
        assert await scene.says(scene.hello(), Item(report=many)) in (BAD, SHUT_OUT)
        before = await asyncio.to_thread(resident, yard)
        async with scene.hostile.connected() as stream:
            await flood(stream.say)
            await stream.next(lambda one: one.stored.position >= 40_000)
        assert await asyncio.to_thread(resident, yard) - before < FLAT
        assert await well(scene)


async def flood(say: Callable[..., Awaitable[None]]) -> None:
    """Reports and records, as many as go through."""
    report = device_pb2.DeviceReport()
    report.problems.append("x" * 1_000)
    records = device_pb2.DeviceRecords()
    for _ in range(1_000):
        records.records.add().log.text = "y" * 100
    for number in range(40):
        records.first = number * 1_000 + 1
        for generation in range(50):
            report.generation = generation
            await say(Item(report=report))
        await say(Item(records=records))


async def test_who_only_opens_connections_keeps_nobody_out(yard: DeviceYard) -> None:
    async with scene_of(yard) as scene, AsyncExitStack() as stack:
        host, _, port = scene.hostile.identity.address.rpartition(":")
        for number in range(300):
            silent = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            if number % 3 == 0:
                silent.sendall(os.urandom(512))
        late = await yard.device("late", "elsewhere")
        async with late.connected() as stream:
            assert stream.welcome.time.seconds
        assert await well(scene)
