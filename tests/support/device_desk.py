"""What stands between devices and a server, without a server: who they are, and who says so.

Machines here make their keys as the agent does, and show what the agent shows.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.auth.authenticator import Authenticator, TokenStore
from hatoba_scheduler.auth.authority import Authority, DeviceIdentity, read_request
from hatoba_scheduler.auth.device_credentials import PREFIX, Audit, DeviceGate, Devices
from hatoba_scheduler.auth.device_renewals import MEANING, DeviceRenewals
from hatoba_scheduler.auth.device_renewals import PREFIX as RENEWAL_PREFIX
from hatoba_scheduler.domain.devices import Capacity, Device, DeviceState, Platform
from hatoba_worker import keys

LIFE = dt.timedelta(days=90)


@dataclass
class Book:
    """Devices that a test puts there."""

    devices: dict[str, Device] = field(default_factory=dict)

    def get(self, name: str) -> Device | None:
        """A device by name."""
        return self.devices.get(name)


@dataclass
class Machine:
    """A key, and what was signed for it."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=keys.new_key)
    certificate: str = ""

    @property
    def csr(self) -> str:
        """A signing request; another one each time that it is asked for."""
        return keys.request_for(self.key)

    @property
    def key_pem(self) -> bytes:
        """For TLS."""
        return keys.key_text(self.key).encode()

    @property
    def shown(self) -> Mapping[str, list[bytes]]:
        """What gRPC knows of a connection on which it showed its certificate."""
        return {"transport_security_type": [b"ssl"], "x509_pem_cert": [self.certificate.encode()]}

    def renewal(self, csr: str, meaning: bytes = MEANING) -> str:
        """What it sends to have its certificate renewed with this request."""
        certificate = x509.load_pem_x509_certificate(self.certificate.encode())
        der = certificate.public_bytes(serialization.Encoding.DER)
        digest = hashlib.sha256(csr.encode()).hexdigest()
        signed = self.key.sign(meaning + der + digest.encode(), ec.ECDSA(hashes.SHA256()))
        return f"{RENEWAL_PREFIX}{_text(der)}.{digest}.{_text(signed)}"


class DeviceDesk:
    """An installation's authority, authenticator and gate; `denied` is what it was told."""

    def __init__(self, directory: Path, clock: Clock, tokens: TokenStore, book: Devices) -> None:
        self.clock = clock
        self.book = book
        self.denied: list[tuple[str, str]] = []
        self.authority = Authority.open(directory / "tls", "cluster", self.now)
        self.audit = Audit(clock.monotonic, lambda *told: self.denied.append(told))
        self.gate = DeviceGate(self.authority, book, self.audit)
        self.renewals = DeviceRenewals(self.authority, self.gate, self.micros)
        self.authenticator = Authenticator(tokens, self.micros)
        self.authenticator.accept(PREFIX, self.gate.authenticate)
        self.authenticator.accept(RENEWAL_PREFIX, self.renewals.authenticate)

    def micros(self) -> int:
        """Since 1970."""
        return round(self.clock.time() * 1e6)

    def now(self) -> dt.datetime:
        """The date."""
        return dt.datetime.fromtimestamp(self.clock.time(), dt.UTC)

    def sign(
        self, machine: Machine, identity: str, life: dt.timedelta = LIFE, csr: str = ""
    ) -> str:
        """A certificate for a machine, whether or not the book knows of it."""
        who = DeviceIdentity(machine.name, identity)
        return self.authority.sign_device(read_request(csr or machine.csr, "csr"), who, life)


def device(name: str, identity: str, state: DeviceState = DeviceState.ENROLLED) -> Device:
    """A device as the book knows it."""
    arm = Platform("arm64", "v8")
    return Device(name, state, (), arm, Capacity(4.0, 1 << 30, 8 << 30), 1, identity=identity)


def enrolled(
    desk: DeviceDesk, book: Book, name: str, identity: str = "one", life: dt.timedelta = LIFE
) -> Machine:
    """A machine that is a device."""
    machine = Machine(name)
    machine.certificate = desk.sign(machine, identity, life)
    book.devices[name] = device(name, identity)
    return machine


def enrolment(machine: Machine, **fields: object) -> device_pb2.EnrollDeviceRequest:
    """What a machine asks for."""
    platform = device_pb2.DevicePlatform(architecture="arm64", variant="v8")
    capacity = device_pb2.DeviceCapacity(cpus=4, memory_bytes=1 << 30, disk_bytes=8 << 30)
    request = device_pb2.EnrollDeviceRequest(
        device=machine.name, csr=machine.csr, platform=platform, capacity=capacity
    )
    request.MergeFrom(device_pb2.EnrollDeviceRequest(**fields))  # type: ignore[arg-type]
    return request


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
