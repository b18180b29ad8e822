"""Becoming a device with a device token, at the server's ordinary port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import grpc.aio
import structlog
from cryptography import x509

from hatoba.errors import InvalidSpec
from hatoba.v1 import device_pb2, device_pb2_grpc
from hatoba_worker import key_files, keys, token_text
from hatoba_worker.agent import facts
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.engines import DeviceEngine
from hatoba_worker.agent.identity import Identity, NotEnrolled
from hatoba_worker.agent.ordinary import Place, reached
from hatoba_worker.agent.renewing import SERVER
from hatoba_worker.agent.settings import AwsIot, BadSettings, RegistryAccess, Settings

log = structlog.get_logger(__name__)

CALL_SECONDS = 60.0
_NO_DEVICE = "what the server answers makes no device: its certificate or its address"
_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
_REMEDIES = {
    grpc.StatusCode.UNAUTHENTICATED: "`hatoba devices add` on the server makes another token",
    grpc.StatusCode.PERMISSION_DENIED: "it takes a token of `hatoba devices add`",
    grpc.StatusCode.ALREADY_EXISTS: "give --name with another one, or have a token made for this "
    "device: `hatoba devices add --name NAME`",
    grpc.StatusCode.UNIMPLEMENTED: "the server is of a version without devices, or has none",
}


class NotMade(ValueError):
    """The machine did not become a device; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """What `hatoba devices add` prints: a token, its id, and the server's own authority (PEM) if it
    has one.
    """

    token: str
    identity: str
    authority: str

    @classmethod
    def parse(cls, text: str) -> TokenText:
        """Raises NotMade."""
        try:
            return cls(*token_text.parsed(text, "device", "hatoba devices add"))
        except ValueError as error:
            raise NotMade(str(error)) from None


@dataclass(frozen=True, slots=True)
class Wish:
    """How a machine becomes a device. `authority` (PEM) is believed in place of the token's, and
    `aws_authority` at AWS IoT in place of the machine's; an empty `name` leaves it to the server.
    Bytes a day and the engine are as in Settings.
    """

    server: str
    token: TokenText
    name: str = ""
    authority: str = ""
    aws_authority: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    up_per_day: int = 0
    down_per_day: int = 0
    engine: str = ""

    @property
    def place(self) -> Place:
        """Where it is asked for."""
        return Place(self.server, self.authority or self.token.authority)


async def enroll(data: Path, wish: Wish, clock: FloorClock) -> Settings:
    """Make the machine with this data directory a device, unless it has become one by this token
    already. A call after one whose reply was lost is the same. Raises NotMade, OSError.
    """
    known = await asyncio.to_thread(_known, data)
    if known is not None and known.token == wish.token.identity:
        return known
    identity = Identity(key_files.directory(data))
    key = await asyncio.to_thread(identity.pending_key)
    request = device_pb2.EnrollDeviceRequest(
        device=wish.name,
        csr=await asyncio.to_thread(keys.request_for, key),
        labels=wish.labels,
        platform=(await asyncio.to_thread(facts.Facts.read, data)).platform,
        capacity=await asyncio.to_thread(_capacity, data, wish),
    )
    given = await _asked(data, wish, clock, request)
    if given.HasField("time"):
        clock.learn(given.time.ToMicroseconds() / 1e6)
        await asyncio.to_thread(clock.keep)
    return await asyncio.to_thread(_kept, data, wish, given)


def _capacity(data: Path, wish: Wish) -> device_pb2.DeviceCapacity:
    engine = DeviceEngine.of(data, wish.engine, os.environ)
    return facts.capacity(data, images=not engine.lacks())


def _known(data: Path) -> Settings | None:
    """What this directory is known as; None: it is no device's, or lost what it had."""
    try:
        Identity(key_files.directory(data)).current()
        return Settings.load(data)
    except (NotEnrolled, BadSettings):
        return None


def _kept(data: Path, wish: Wish, given: device_pb2.DeviceIdentity) -> Settings:
    identity = Identity(key_files.directory(data))
    try:
        found = _settings(data, wish, given)
        certificate = x509.load_pem_x509_certificate(given.certificate.encode())
        sound = found.port > 0 and certificate.public_key() == identity.pending_key().public_key()
    except ValueError as error:
        raise NotMade(f"{_NO_DEVICE}: {error}") from error
    if not sound:
        raise NotMade(_NO_DEVICE)
    if wish.place.authority:
        key_files.write_secret(key_files.directory(data) / SERVER, wish.place.authority)
    else:
        (key_files.directory(data) / SERVER).unlink(missing_ok=True)
    found.save(data)
    # This one last: who has it is enrolled.
    by_aws = found.aws_iot is not None
    identity.enrolled(given.certificate, wish.aws_authority if by_aws else given.authority)
    return found


def _settings(data: Path, wish: Wish, given: device_pb2.DeviceIdentity) -> Settings:
    """Raises ValueError."""
    found = Settings(
        device=given.device,
        address=given.address,
        server_name=given.server_name,
        token=wish.token.identity,
        server=wish.server,
        up_per_day=wish.up_per_day,
        down_per_day=wish.down_per_day,
        engine=wish.engine,
        registries=registries_of(data),
    )
    if not given.HasField("aws_iot"):
        return found
    told = given.aws_iot
    thing = AwsIot.of({"thing": told.thing, "shadow": told.shadow, "content": told.content})
    host = told.endpoint.rpartition(":")[0]
    return replace(found, address=told.endpoint, server_name=host, aws_iot=thing)


def registries_of(data: Path) -> Mapping[str, RegistryAccess]:
    """What the machine's owner said of registries stays, as whose device ever it is enrolled."""
    try:
        known = Settings.load(data)
    except BadSettings:
        known = None
    return known.registries if known is not None else {}


# -- the call -------------------------------------------------------------------------------------


async def _asked(
    data: Path, wish: Wish, clock: FloorClock, request: device_pb2.EnrollDeviceRequest
) -> device_pb2.DeviceIdentity:
    metadata = (("authorization", f"Bearer {wish.token.token}"),)
    try:
        async with reached(wish.place, data / "enrolling", clock) as (channel, tunnel):
            stub = device_pb2_grpc.DeviceServiceStub(channel)
            try:
                return await stub.EnrollDevice(request, metadata=metadata, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                problem = tunnel.problem if tunnel is not None else ""
                raise NotMade(_why(wish.server, error, problem)) from error
    except InvalidSpec as error:
        raise NotMade(f"{error.message}; {error.remedy}") from error


def _why(server: str, error: grpc.aio.AioRpcError, problem: str) -> str:
    if problem or error.code() in _AWAY:
        return (
            f"{server} cannot be reached, or is not the server that made this token: "
            f"{problem or error.details()}; the token stays good for another try"
        )
    remedy = _REMEDIES.get(error.code(), "")
    return f"{error.details()}; {remedy}" if remedy else str(error.details())
