"""An authority for tests: key pairs with certificates, and certificates for signing requests."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = dt.timedelta(days=1)
Public: TypeAlias = ec.EllipticCurvePublicKey


class Authority:
    """Below `root` is what it signed; it is good from some days before `today` on. Blocks."""

    def __init__(self, root: Path, today: dt.datetime) -> None:
        root.mkdir()
        self.root = root
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {root.name}")])
        valid = (today - 9 * DAY, today + 3650 * DAY)
        self.own = self._made(self.name, self.key.public_key(), valid, ca=True)
        self.pem = root / "ca.pem"
        self.pem.write_bytes(self.own.public_bytes(serialization.Encoding.PEM))

    @property
    def pinned(self) -> str:
        """Its certificate as tokens have it behind a point."""
        der = self.own.public_bytes(serialization.Encoding.DER)
        return base64.urlsafe_b64encode(der).decode().rstrip("=")

    def _made(
        self,
        subject: x509.Name,
        key: Public,
        valid: tuple[dt.datetime, dt.datetime],
        names: Sequence[x509.GeneralName] = (),
        *,
        ca: bool = False,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(valid[0])
            .not_valid_after(valid[1])
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def pair(self, file: str, name: str, begins: dt.datetime, ends: dt.datetime) -> Path:
        """A file with a key and its certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._made(subject, key.public_key(), (begins, ends), [x509.DNSName(name)])
        path = self.root / file
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + made.public_bytes(serialization.Encoding.PEM)
        )
        return path

    def signed(
        self, csr: str, uri: str, begins: dt.datetime, ends: dt.datetime, name: str = ""
    ) -> str:
        """The certificate (PEM) that a signing request asks for."""
        request = x509.load_pem_x509_csr(csr.encode())
        key = request.public_key()
        assert request.is_signature_valid
        assert isinstance(key, Public)
        uris = [x509.UniformResourceIdentifier(uri)]
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
        made = self._made(x509.Name(subject), key, (begins, ends), uris)
        return made.public_bytes(serialization.Encoding.PEM).decode()
