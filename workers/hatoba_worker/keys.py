"""Keys made here, and the certificates that the server gave for them: P-256, in files of mode 0600.

A key and its certificate are one file, so that no crash leaves one without the other.
"""

from __future__ import annotations

import base64
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hatoba.host_names import server_name
from hatoba_worker.key_files import directory, write_secret
from hatoba_worker.validity import Validity

HOST, SERVING, AUTHORITY, JOINING = "host.pem", "serving.pem", "authority.pem", "joining.pem"
PREFIX = "hc_"
MEANING = b"hatoba host credential\0"
SIGN_AGAIN = 300.0
"""Seconds after which a host signs anew; what it signed is good for an hour."""
_HOST_URI = re.compile(r"hatoba://([^/]+)/hosts/([^/]+)/([^/]+)")


class BadKeys(ValueError):
    """Files with keys that cannot be used; the message says why."""


class Own(NamedTuple):
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new key."""
    return ec.generate_private_key(ec.SECP256R1())


def request_for(key: ec.EllipticCurvePrivateKey) -> str:
    """A signing request, PEM. It says no name: who it is for is the server's to say."""
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    made = csr.sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


def key_text(key: ec.EllipticCurvePrivateKey) -> str:
    """A key as PEM."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def read_keys(text: str) -> list[ec.EllipticCurvePrivateKey]:
    """All keys of a PEM text, in order; raises BadKeys."""
    found: list[ec.EllipticCurvePrivateKey] = []
    for block in re.findall(r"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----", text, re.S):
        try:
            key = serialization.load_pem_private_key(block.encode(), None)
        except ValueError as error:
            raise BadKeys(str(error)) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise BadKeys("it holds a key of another kind")
        found.append(key)
    return found


def read_own(path: Path) -> Own | None:
    """What a file holds, None when there is no such file; blocks. Raises BadKeys, OSError."""
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    try:
        (key,) = read_keys(text)
        return Own(key, x509.load_pem_x509_certificate(text.encode()))
    except ValueError as error:
        raise BadKeys(f"{path} holds no key with its certificate: {error}") from error


def write_own(path: Path, key: ec.EllipticCurvePrivateKey, certificate: str) -> None:
    """Keep both, whole or not at all; blocks. Raises OSError."""
    write_secret(path, key_text(key) + certificate)


def validity(certificate: x509.Certificate) -> Validity:
    """From when to when it is good."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Validity(begins.timestamp(), ends.timestamp())


def is_due(certificate: x509.Certificate, now: float) -> bool:
    """Whether two thirds of a certificate's life are over; `now` is Unix seconds."""
    return validity(certificate).is_due(now)


def signed(own: Own, prefix: str, meaning: bytes, told: str) -> str:
    """What proves that the owner of a certificate says `told`: the certificate, that, and a
    signature over a meaning and both.
    """
    der = own.certificate.public_bytes(serialization.Encoding.DER)
    signature = own.key.sign(meaning + der + told.encode(), ec.ECDSA(hashes.SHA256()))
    return f"{prefix}{_text(der)}.{told}.{_text(signature)}"


class HostKeys:
    """What a host that joined is known by, read from its data directory."""

    def __init__(self, data: Path, own: Own, clock: Callable[[], float] = time.time) -> None:
        uris = own.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        (uri,) = uris.value.get_values_for_type(x509.UniformResourceIdentifier)
        found = _HOST_URI.fullmatch(uri)
        if found is None:
            raise BadKeys(f"the certificate is for {uri}, which is no host")
        self.cluster_id, self.host, self.identity = found.groups()
        self.certificate = own.certificate
        self._directory = directory(data)
        self._key = own.key
        self._clock = clock
        self._signed_at = -SIGN_AGAIN
        self._text = ""

    @classmethod
    def load(cls, data: Path, clock: Callable[[], float] = time.time) -> HostKeys | None:
        """Those of a data directory; None: it has not joined. Blocks; raises BadKeys, OSError."""
        own = read_own(directory(data) / HOST)
        return cls(data, own, clock) if own is not None else None

    @property
    def server_name(self) -> str:
        """The name under which replicas here answer TLS."""
        return server_name(self.host)

    def credential(self) -> str:
        """What proves to the server who calls: to be shown as a bearer's token."""
        now = self._clock()
        if abs(now - self._signed_at) >= SIGN_AGAIN:
            self._signed_at, self._text = now, self._sign(round(now))
        return self._text

    def _sign(self, now: int) -> str:
        return signed(Own(self._key, self.certificate), PREFIX, MEANING, str(now))

    def due(self) -> bool:
        """Whether it is time for new ones."""
        return is_due(self.certificate, self._clock())

    def client_context(self) -> ssl.SSLContext:
        """For calls to replicas here; blocks."""
        return client_context(self._directory, HOST)

    def serving(self) -> dict[str, object]:
        """What a replica here is told: its own key, whom to believe, who may ask it."""
        return {
            "certificate": str(self._directory / SERVING),
            "authority": str(self._directory / AUTHORITY),
            "peers": [
                f"hatoba://{self.cluster_id}/routers/",
                f"hatoba://{self.cluster_id}/hosts/{self.host}/",
            ],
        }


def client_context(where: Path, own: str) -> ssl.SSLContext:
    """For who shows the certificate in `own` and believes the authority beside it; blocks."""
    context = ssl.create_default_context(cafile=str(where / AUTHORITY))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(where / own)
    return context


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
