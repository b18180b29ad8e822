"""What opens RenewDevice, and nothing else, to a device whose certificate has ended: TLS refuses it
at the device port, so it asks at the API's, with a proof by the certificate's key.

`dr_CERTIFICATE.DIGEST.SIGNATURE`: the digest is that of the signing request that comes with it. No
time is told, since a device's clock may say anything. Whoever reads such a text can show it again,
and gets one more certificate for the key of that request, which they do not have.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from hatoba_scheduler.auth import proofs
from hatoba_scheduler.auth.authority import Authority
from hatoba_scheduler.auth.device_credentials import DeviceCaller, DeviceGate, Refusal, refused
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.domain.records import Micros, TokenRecord
from hatoba_scheduler.errors import PermissionDenied, Reason, Unauthenticated

PREFIX = "dr_"
MEANING = b"hatoba device renewal\0"
RENEW = "hatoba.v1.DeviceService/RenewDevice"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRenewal(DeviceCaller):
    """A device that may ask for one certificate: for the request with this SHA-256, hex."""

    digest: str
    gate: DeviceGate

    def check_method(self, method: str) -> None:
        """Raise PermissionDenied for any other method."""
        if method != RENEW:
            why = "a proof for a renewal opens nothing else"
            self._audit(method, why)
            raise PermissionDenied(
                f"{self.principal} may not call {method}: {why}", reason=Reason.OUT_OF_SCOPE
            )

    def check_csr(self, csr: str) -> None:
        """Raise Unauthenticated for any other signing request."""
        if digest_of(csr) != self.digest:
            why = "the proof was made for another signing request"
            self._audit(RENEW, why)
            raise refused(why)

    def _audit(self, method: str, why: str) -> None:
        self.gate.audit.refused(Refusal(self.device, self.device, method, "the API", why))


class DeviceRenewals:
    """Reads such texts; `clock` gives microseconds since 1970."""

    def __init__(self, authority: Authority, gate: DeviceGate, clock: Callable[[], Micros]) -> None:
        self._authority = authority
        self._gate = gate
        self._clock = clock

    def authenticate(self, text: str) -> TokenRecord:
        """Whose certificate is to be renewed; raises Unauthenticated."""
        try:
            certificate, digest = proofs.read(text.removeprefix(PREFIX), MEANING)
        except ValueError as error:
            why = f"this is no proof of a device: {error}"
            raise Unauthenticated(why, reason=Reason.TOKEN_MALFORMED) from error
        who = self._authority.device_of(certificate)
        if who is None:
            raise refused("the certificate is no device's of this server")
        if self._clock() > (until := _renewable_until(certificate).timestamp() * 1e6):
            raise refused("its certificate ended too long ago to be renewed; enroll it anew")
        self._gate.check(who, certificate)
        return DeviceRenewal(
            id=who.identity,
            sha256="",
            principal=f"devices/{who.device}",
            role=Role.DEVICE,
            create_time=0,
            expire_time=round(until),
            device=who.device,
            identity=who.identity,
            digest=digest,
            gate=self._gate,
        )


def digest_of(csr: str) -> str:
    """Of a signing request as it is sent."""
    return hashlib.sha256(csr.encode()).hexdigest()


def _renewable_until(certificate: x509.Certificate) -> dt.datetime:
    """As long after its end as it was good."""
    began, ended = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return ended + (ended - began)
