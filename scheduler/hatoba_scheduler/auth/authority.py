"""Signs for hosts, devices and routers: who they are is in the certificate, and nobody chooses that
alone.

A host is `hatoba://CLUSTER/hosts/NAME/IDENTITY`, a device `hatoba://CLUSTER/devices/NAME/IDENTITY`,
a router `hatoba://CLUSTER/routers/NAME`. What replicas on a host show names no address, but
`NAME.hosts.hatoba`: addresses change, hosts do not. What devices dial is `devices.hatoba`.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hatoba.host_names import server_name
from hatoba_scheduler import certificates
from hatoba_scheduler.certificates import CLIENT, SERVER, Holder, Pair
from hatoba_scheduler.errors import InvalidArgument

LIFE = dt.timedelta(days=90)
"""Of what hosts, routers and, unless told otherwise, devices are given; they ask again when two
thirds are over."""
DEVICES_NAME = "devices.hatoba"
"""Under which the device port answers TLS, wherever it is."""
_MACHINE = re.compile(r"hatoba://([^/]+)/(hosts|devices)/([^/]+)/([^/]+)")


class HostIdentity(NamedTuple):
    """Whom a host's certificate names: the host, and the token by which it joined."""

    host: str
    identity: str


class DeviceIdentity(NamedTuple):
    """Whom a device's certificate names: the device, and the enrolment that made it."""

    device: str
    identity: str


def key_digest(csr: x509.CertificateSigningRequest) -> str:
    """SHA-256 of a request's public key, hex."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    raw = csr.public_key().public_bytes(serialization.Encoding.DER, form)
    return hashlib.sha256(raw).hexdigest()


def read_request(text: str, field: str) -> x509.CertificateSigningRequest:
    """A signing request that proves its key, of the one kind there is; raises InvalidArgument."""
    try:
        csr = x509.load_pem_x509_csr(text.encode())
        key = csr.public_key()
        curve = key.curve if isinstance(key, ec.EllipticCurvePublicKey) else None
        if isinstance(curve, ec.SECP256R1) and csr.is_signature_valid:
            return csr
        problem = "must be signed by a P-256 key of its own"
    except ValueError as error:
        problem = f"is no signing request in PEM: {error}"
    raise InvalidArgument.field(field, problem, rule="string.csr")


class Authority:
    """The authority of one installation, with what it has to know to sign."""

    def __init__(self, pair: Pair, cluster_id: str, now: Callable[[], dt.datetime]) -> None:
        self._pair = pair
        self._cluster_id = cluster_id
        self._now = now

    @classmethod
    def open(cls, directory: Path, cluster_id: str, now: Callable[[], dt.datetime]) -> Authority:
        """The one of a data directory's `tls`, made there the first time; blocks."""
        return cls(certificates.authority(directory, now()), cluster_id, now)

    @property
    def pem(self) -> str:
        """Its own certificate."""
        return certificates.pem(self._pair.certificate)

    @property
    def short(self) -> str:
        """The same in one word: DER in base64url."""
        raw = self._pair.certificate.public_bytes(serialization.Encoding.DER)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def sign_host(self, csr: x509.CertificateSigningRequest, who: HostIdentity) -> str:
        """What a host's worker is known by."""
        return self._sign(csr, f"hosts/{who.host}", self._uri(f"hosts/{who.host}/{who.identity}"))

    def sign_device(
        self, csr: x509.CertificateSigningRequest, who: DeviceIdentity, life: dt.timedelta = LIFE
    ) -> str:
        """What a device is known by."""
        uri = self._uri(f"devices/{who.device}/{who.identity}")
        return self._sign(csr, f"devices/{who.device}", uri, life=life)

    def sign_serving(self, csr: x509.CertificateSigningRequest, host: str) -> str:
        """What replicas on a host show."""
        name = x509.DNSName(server_name(host))
        return self._sign(csr, f"hosts/{host} replicas", name, SERVER)

    def sign_router(self, csr: x509.CertificateSigningRequest, principal: str) -> str:
        """What a router shows to replicas."""
        return self._sign(csr, f"routers/{principal}", self._uri(f"routers/{principal}"))

    def _uri(self, path: str) -> x509.GeneralName:
        return x509.UniformResourceIdentifier(f"hatoba://{self._cluster_id}/{path}")

    def _sign(
        self,
        csr: x509.CertificateSigningRequest,
        subject: str,
        name: x509.GeneralName,
        purpose: x509.ObjectIdentifier = CLIENT,
        life: dt.timedelta = LIFE,
    ) -> str:
        key = csr.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        holder = Holder(subject[:64], key, [name], purpose)
        return certificates.pem(certificates.signed(self._pair, holder, self._now(), life))

    def device_port(self) -> Pair:
        """What the device port shows, with a new key."""
        key = ec.generate_private_key(ec.SECP256R1())
        holder = Holder("hatoba-devices", key.public_key(), [x509.DNSName(DEVICES_NAME)], SERVER)
        return Pair(certificates.signed(self._pair, holder, self._now(), LIFE), key)

    def is_current(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate is good by its dates."""
        now = self._now()
        return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc

    def is_due(self, certificate: x509.Certificate) -> bool:
        """Whether two thirds of a certificate's life are over; or it has not begun, for this
        machine's clock was ahead when it was made."""
        began, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return not began <= self._now() < began + (ends - began) * 2 / 3

    def host_of(self, certificate: x509.Certificate) -> HostIdentity | None:
        """Whom a certificate of ours names, if it is a host's and good now."""
        found = self._machine_of(certificate, "hosts") if self.is_current(certificate) else None
        return HostIdentity(*found) if found is not None else None

    def device_of(self, certificate: x509.Certificate) -> DeviceIdentity | None:
        """Whom a certificate of ours names, if it is a device's, whenever it was good."""
        found = self._machine_of(certificate, "devices")
        return DeviceIdentity(*found) if found is not None else None

    def _machine_of(self, certificate: x509.Certificate, kind: str) -> tuple[str, str] | None:
        """Name and identity of a machine of this kind."""
        try:
            certificate.verify_directly_issued_by(self._pair.certificate)
            names = certificates.alternative_names(certificate)
        except (InvalidSignature, ValueError, TypeError, x509.ExtensionNotFound):
            return None
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
            found = _MACHINE.fullmatch(uri)
            if found is not None and found.group(1, 2) == (self._cluster_id, kind):
                return found[3], found[4]
        return None
