"""Becoming a device of AWS IoT, with a key that is made here and never leaves.

Either by a claim, a certificate that many machines share and that can do nothing but this (fleet
provisioning), or with a certificate that somebody has had signed for this machine's request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from hatoba_worker import key_files, keys
from hatoba_worker.agent.calls import Broken
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.enrolling import NotMade, registries_of
from hatoba_worker.agent.identity import Identity, NotEnrolled
from hatoba_worker.agent.mqtt import ANSWER, Connection, connected
from hatoba_worker.agent.ordinary import socket_directory
from hatoba_worker.agent.renewing import alpn_of
from hatoba_worker.agent.settings import AwsIot, BadSettings, Settings
from hatoba_worker.agent.tunnel import Peer, Tunnel

PORT = 8883
CREATE = "$aws/certificates/create-from-csr/json"
CLIENT = "hatoba-claim-"
"""What the client id of a machine begins with that shows a claim: it must be nobody's else."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where AWS IoT is, `HOST` or `HOST:PORT`, and who is believed there (PEM); empty: those whom
    the machine believes.
    """

    text: str
    authority: str = ""

    @property
    def address(self) -> str:
        """`HOST:PORT`. Raises NotMade."""
        host, colon, port = self.text.rpartition(":")
        if not colon:
            return f"{self.text}:{PORT}"
        if not host or not port.isdecimal():
            raise NotMade(f"{self.text!r} is no endpoint: write HOST or HOST:PORT")
        return self.text


@dataclass(frozen=True, slots=True)
class AwsWish:
    """How a machine becomes a device of AWS IoT. Without a name one is made from its key; bytes a
    day and the engine are as in Settings.
    """

    endpoint: Endpoint
    name: str = ""
    thing: str = ""
    shadow: str = "hatoba"
    content: str = ""
    up_per_day: int = 0
    down_per_day: int = 0
    engine: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A file with the claim's key and certificate, and the template that it may use."""

    file: Path
    template: str


def request(data: Path) -> str:
    """The signing request of this machine's key, PEM; the same key until a certificate came for it.
    Blocks; raises OSError.
    """
    return keys.request_for(Identity(key_files.directory(data)).pending_key())


def adopt(data: Path, wish: AwsWish, certificate: str) -> Settings:
    """Be the device whose certificate (PEM) this is. Blocks; raises NotMade, OSError."""
    if not wish.thing:
        raise NotMade("a certificate does not say whose it is: give --thing")
    thing = _thing(wish, {"thing": wish.thing})
    return _kept(data, _settings(data, wish, thing), wish, certificate)


async def provision(data: Path, wish: AwsWish, claim: Claim, clock: FloorClock) -> Settings:
    """Have AWS IoT make this machine a thing, by a claim; again is the same. Raises NotMade,
    OSError.
    """
    known = await asyncio.to_thread(_known, data)
    if known is not None and known.address == wish.endpoint.address:
        return known
    csr = await asyncio.to_thread(request, data)
    named = replace(wish, name=wish.name or await asyncio.to_thread(_name, data))
    try:
        made = await _provisioned(data, named, claim, clock, csr)
    except Broken as error:
        raise NotMade(
            f"{wish.endpoint.text}: {error}; the claim stays good for another try"
        ) from error
    thing = _thing(named, {"thing": made.thing, **made.configuration})
    settings = await asyncio.to_thread(_settings, data, named, thing)
    return await asyncio.to_thread(_kept, data, settings, named, made.certificate)


# -- what AWS IoT is asked ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    """What a template made of a request."""

    thing: str
    certificate: str
    configuration: Mapping[str, str]
    """What it says of `shadow` and `content`."""


async def _provisioned(
    data: Path, wish: AwsWish, claim: Claim, clock: FloorClock, csr: str
) -> _Made:
    """Raises Broken, NotMade, OSError."""
    async with socket_directory(data / "enrolling") as directory:
        peer = await asyncio.to_thread(_claimed, directory, wish, claim)
        tunnel = Tunnel(directory, lambda: peer, clock)
        async with tunnel.open():
            try:
                client_id = f"{CLIENT}{uuid.uuid4().hex}"
                async with connected(str(tunnel.path), client_id, kept=False) as client:
                    return await _exchange(client, wish, claim, csr)
            except Broken as error:
                raise Broken(tunnel.problem or str(error)) from error


def _claimed(directory: Path, wish: AwsWish, claim: Claim) -> Peer:
    """AWS IoT as who shows a claim reaches it."""
    authority = directory / "authority.pem" if wish.endpoint.authority else None
    if authority is not None:
        key_files.write_secret(authority, wish.endpoint.authority)
    there = Settings(wish.name, wish.endpoint.address, "", aws_iot=AwsIot(CLIENT))
    return Peer(there.host, there.port, there.host, authority, claim.file, alpn_of(there))


async def _exchange(client: Connection, wish: AwsWish, claim: Claim, csr: str) -> _Made:
    signed = await _asked(client, CREATE, {"certificateSigningRequest": csr})
    told = await _asked(
        client,
        f"$aws/provisioning-templates/{claim.template}/provision/json",
        {
            "certificateOwnershipToken": signed["certificateOwnershipToken"],
            "parameters": {"Device": wish.name},
        },
    )
    said = told.get("deviceConfiguration") or {}
    configuration = {name: said[name] for name in ("shadow", "content") if said.get(name)}
    return _Made(str(told["thingName"]), str(signed["certificatePem"]), configuration)


async def _asked(client: Connection, topic: str, question: Mapping[str, object]) -> dict[str, Any]:
    """An answer. Raises NotMade for a refusal, Broken where none comes."""
    replies = {f"{topic}/{verdict}" for verdict in ("accepted", "rejected")}
    await client.subscribe(sorted(replies))
    await client.publish(topic, json.dumps(question).encode())
    try:
        async with asyncio.timeout(ANSWER):
            async for message in client.messages():
                if message.topic in replies:
                    return _answer(message.topic, message.payload)
    except TimeoutError:
        pass
    raise Broken(f"no answer came on {topic}")


def _answer(topic: str, payload: bytes) -> dict[str, Any]:
    try:
        told = json.loads(payload)
    except ValueError as error:
        raise Broken(f"what comes on {topic} cannot be read: {error}") from error
    if topic.endswith("/rejected"):
        raise NotMade(f"AWS IoT refuses: {told.get('errorCode')}: {told.get('errorMessage')}")
    found: dict[str, Any] = told
    return found


# -- what is kept ---------------------------------------------------------------------------------


def _known(data: Path) -> Settings | None:
    """What this directory is known as at AWS IoT; None: nothing there."""
    try:
        Identity(key_files.directory(data)).current()
        settings = Settings.load(data)
    except (NotEnrolled, BadSettings):
        return None
    return settings if settings is not None and settings.aws_iot is not None else None


def _name(data: Path) -> str:
    key = Identity(key_files.directory(data)).pending_key().public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = key.public_bytes(serialization.Encoding.DER, form)
    return f"device-{hashlib.sha256(der).hexdigest()[:12]}"


def _thing(wish: AwsWish, told: Mapping[str, str]) -> AwsIot:
    """What a machine is told that it is there, and what it was wished where nothing was told.
    Raises NotMade.
    """
    try:
        return AwsIot.of({"shadow": wish.shadow, "content": wish.content, **told})
    except ValueError as error:
        raise NotMade(str(error)) from error


def _settings(data: Path, wish: AwsWish, thing: AwsIot) -> Settings:
    """Raises NotMade where a thing is not named after its device."""
    name = wish.name or thing.thing.removeprefix("hatoba-")
    if not thing.thing.endswith(name):
        raise NotMade(f"the thing {thing.thing!r} is not device {name!r}: its name must end so")
    address = wish.endpoint.address
    return Settings(
        device=name,
        address=address,
        server_name=address.rpartition(":")[0],
        up_per_day=wish.up_per_day,
        down_per_day=wish.down_per_day,
        engine=wish.engine,
        registries=registries_of(data),
        aws_iot=thing,
    )


def _kept(data: Path, settings: Settings, wish: AwsWish, certificate: str) -> Settings:
    identity = Identity(key_files.directory(data))
    try:
        signed = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise NotMade(f"what should be a certificate is none: {error}") from error
    if signed.public_key() != identity.pending_key().public_key():
        raise NotMade("the certificate is for another key than this machine's")
    settings.save(data)
    # This one last: who has it is enrolled.
    identity.enrolled(certificate, wish.endpoint.authority)
    return settings
