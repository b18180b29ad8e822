"""Which device calls: the name that it sends is a claim, its connection's certificate the proof.

A device sends `dc_NAME`. Its key is proved in the TLS handshake of the device port, the only port
that asks for a certificate; so a name that is sent to any other port is nobody's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import structlog
from cryptography import x509

from hatoba.v1 import artifact_pb2
from hatoba_scheduler.auth.authority import Authority, DeviceIdentity
from hatoba_scheduler.auth.bursts import Bursts
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.domain.devices import Device, DeviceState
from hatoba_scheduler.domain.records import Micros, TokenRecord
from hatoba_scheduler.errors import (
    HatobaError,
    InvalidArgument,
    PermissionDenied,
    Reason,
    Unauthenticated,
)

log = structlog.get_logger(__name__)

PREFIX = "dc_"
_TEXT = re.compile(r"dc_([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)")
_CERTIFICATE = "x509_pem_cert"

AuthContext = Mapping[str, Iterable[bytes]]
"""What gRPC knows of a connection's other end."""
Denied = Callable[[str, str], None]
"""Hears that a call was refused: the device that it is about, and a sentence."""


class Devices(Protocol):
    """All devices of this installation."""

    def get(self, name: str) -> Device | None:
        """A device by name."""
        ...


_ARTIFACTS = "hatoba.v1.ArtifactService/"
WRITING = frozenset(
    f"{_ARTIFACTS}{name}"
    for name in (
        "FindMissingChunks",
        "UploadChunks",
        "CreateManifest",
        "UploadManifest",
        "ConfirmChunks",
    )
)
"""What brings the outputs of jobs out."""


def _idle(device: str) -> bool:
    """No device has jobs."""
    del device
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCaller(TokenRecord):
    """A device, proved by its certificate; it ends with that. `host` is `devices/NAME`; `works`
    tells whether a device has jobs."""

    device: str
    identity: str
    works: Callable[[str], bool] = _idle
    audit: Audit | None = None

    def spoke_for(self, other: str, method: str, why: str) -> None:
        """Keep for the audit that it was refused to speak for another: a host, `devices/NAME`."""
        if self.audit is not None:
            named = other.removeprefix("devices/") if other.startswith("devices/") else ""
            self.audit.refused(Refusal(named, self.device, method, "the port of devices", why))

    def sent(self, error: HatobaError, method: str, peer: str) -> None:
        """Keep for the audit what it sent, if that was no message that may be sent."""
        unfit = isinstance(error, InvalidArgument) or error.reason is Reason.MESSAGE_TOO_LARGE
        if unfit and self.audit is not None:
            self.audit.refused(Refusal("", self.device, method, peer, error.message))

    def check_method(self, method: str) -> None:
        """Raise PermissionDenied for what only a device with jobs may call, unless it has any."""
        if method in WRITING and not self.works(self.device):
            raise self._denied(method)

    def check_request(self, method: str, request: Any) -> None:
        """Raise PermissionDenied for a message as `check_method` does for a call."""
        if isinstance(request, artifact_pb2.GetTransferUrlsRequest):
            down = request.direction == artifact_pb2.TRANSFER_DIRECTION_DOWNLOAD
            if not down and not self.works(self.device):
                raise self._denied(method)

    def _denied(self, method: str) -> PermissionDenied:
        return PermissionDenied(
            f"{self.principal} may not call {method}: it has no jobs",
            reason=Reason.OUT_OF_SCOPE,
            metadata={"method": method, "bearer": self.principal},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaim(TokenRecord):
    """Somebody who says to be a device: not to be gone by before `prove`."""

    device: str
    gate: DeviceGate

    def prove(self, peer: AuthContext) -> DeviceCaller:
        """The device, if the connection's certificate is its own; raises Unauthenticated."""
        return self.gate.prove(self.device, peer)

    def denied(self, method: str, context: Peer, why: str) -> None:
        """Keep for the audit that a call was refused."""
        by = self.gate.named(context.auth_context())
        self.gate.audit.refused(Refusal(self.device, by, method, context.peer(), why))


class Peer(Protocol):
    """The part of a servicer's context that tells of the other end."""

    def auth_context(self) -> AuthContext:
        """What TLS proved of it."""
        ...

    def peer(self) -> str:
        """Its address."""
        ...


class Refusal(NamedTuple):
    """A refused call: the device that it was made as, the one that was proved to make it (empty:
    none was)."""

    device: str
    by: str
    method: str
    peer: str
    why: str


class Audit:
    """Tells of refused calls, of none so many that it would fill logs and events: see Bursts."""

    def __init__(self, monotonic: Callable[[], float], denied: Denied) -> None:
        self._bursts = Bursts(monotonic)
        self._denied = denied

    @property
    def unheard(self) -> int:
        """Refused calls that were too many to tell of."""
        return self._bursts.unheard

    def refused(self, one: Refusal) -> None:
        """A call was refused."""
        if not self._bursts.hears(one.by):
            return
        log.warning("device.denied", **one._asdict(), unheard=self.unheard)
        who = f"devices/{one.by}" if one.by else "somebody without a device's certificate"
        message = f"{who} at {one.peer} was refused {one.method}: {one.why}"
        for device in sorted({one.device, one.by} - {""}):
            self._denied(device, message)


class DeviceGate:
    """Tells whose certificates speak for devices. `denied` hears of refused calls, also for names
    that no device has."""

    def __init__(self, authority: Authority, devices: Devices, audit: Audit) -> None:
        self.audit = audit
        self.works: Callable[[str], bool] = _idle
        """Whether a device has jobs."""
        self._authority = authority
        self._devices = devices
        self._newest: dict[DeviceIdentity, Micros] = {}

    def authenticate(self, text: str) -> TokenRecord:
        """What somebody claims who shows this; raises Unauthenticated for what is no claim."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise Unauthenticated("this names no device", reason=Reason.TOKEN_MALFORMED)
        return DeviceClaim(
            id=text,
            sha256="",
            principal=f"devices/{found[1]}",
            role=Role.DEVICE,
            create_time=0,
            device=found[1],
            gate=self,
        )

    def prove(self, device: str, peer: AuthContext) -> DeviceCaller:
        """The device, if the other end showed its certificate; raises Unauthenticated."""
        certificate = _shown(peer)
        if certificate is None:
            raise refused("a device is known by its certificate, which the device port asks for")
        who = self._authority.device_of(certificate)
        if who is None or not self._authority.is_current(certificate):
            raise refused("the certificate is no device's of this server, or its time is over")
        if who.device != device:
            raise refused(f"the certificate is that of devices/{who.device}")
        self.check(who, certificate)
        self._newest[who] = max(self._newest.get(who, 0), _began(certificate))
        return replace(caller(who, certificate), works=self.works, audit=self.audit)

    def check(self, who: DeviceIdentity, certificate: x509.Certificate) -> None:
        """Raise Unauthenticated unless a certificate of ours speaks for its device today."""
        device = self._devices.get(who.device)
        if device is None or device.identity != who.identity:
            self._newest.pop(who, None)
            raise refused("the device was forgotten, or another machine took its place")
        if device.state is DeviceState.REVOKED:
            raise refused("the device was revoked")
        if _began(certificate) < max(self._newest.get(who, 0), device.certificate_since):
            raise refused("the device has shown a newer certificate, which is the one that counts")

    def named(self, peer: AuthContext) -> str:
        """The device whose certificate the other end showed, whatever became of it; else empty."""
        certificate = _shown(peer)
        who = self._authority.device_of(certificate) if certificate is not None else None
        return who.device if who is not None else ""


def caller(who: DeviceIdentity, certificate: x509.Certificate) -> DeviceCaller:
    """A device as if it had a token that ends with its certificate."""
    return DeviceCaller(
        id=who.identity,
        sha256="",
        principal=f"devices/{who.device}",
        role=Role.DEVICE,
        create_time=_began(certificate),
        expire_time=round(certificate.not_valid_after_utc.timestamp() * 1e6),
        host=f"devices/{who.device}",
        device=who.device,
        identity=who.identity,
    )


def refused(why: str) -> Unauthenticated:
    """For who is not known to be the device that it says to be."""
    return Unauthenticated(f"this is no device of ours: {why}", reason=Reason.DEVICE_UNKNOWN)


def _shown(peer: AuthContext) -> x509.Certificate | None:
    for text in peer.get(_CERTIFICATE, ()):
        return x509.load_pem_x509_certificate(text)
    return None


def _began(certificate: x509.Certificate) -> Micros:
    return round(certificate.not_valid_before_utc.timestamp() * 1e6)
