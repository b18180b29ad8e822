"""Certificates below an authority of our own: made, signed, kept on disk. Keys are P-256."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from hatoba_scheduler.auth.files import read_secret, write_secret

AUTHORITY_LIFE = dt.timedelta(days=3650)
# A machine whose clock is a little behind ours must not refuse a certificate made just now.
BACKDATE = dt.timedelta(hours=1)
SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Holder(NamedTuple):
    """Whom a certificate is for: a name for people, the key, the names it proves, what it may."""

    subject: str
    key: ec.EllipticCurvePublicKey
    names: Sequence[x509.GeneralName]
    purpose: ObjectIdentifier


def authority(directory: Path, now: dt.datetime) -> Pair:
    """The authority of a data directory, made there the first time; blocks.

    Raises InsecureFile, and ValueError for files that hold no certificate or key.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key = directory / "ca.pem", directory / "ca.key"
    if not (certificate.exists() and key.exists()):
        made = _made_authority(now)
        write_pair(made, certificate, key)
        return made
    private = serialization.load_pem_private_key(read_secret(key), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return Pair(x509.load_pem_x509_certificate(certificate.read_bytes()), private)


def _made_authority(now: dt.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("Hatoba CA")
    builder = _builder(name, name, key.public_key(), (now - BACKDATE, now + AUTHORITY_LIFE))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return Pair(builder.sign(key, hashes.SHA256()), key)


def signed(issuer: Pair, holder: Holder, now: dt.datetime, life: dt.timedelta) -> x509.Certificate:
    """A certificate for `holder` from now on, not beyond its issuer's own."""
    until = min(now + life, issuer.certificate.not_valid_after_utc)
    subject = _subject(holder.subject)
    valid = (now - BACKDATE, until)
    builder = _builder(subject, issuer.certificate.subject, holder.key, valid)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    builder = builder.add_extension(x509.SubjectAlternativeName(holder.names), critical=False)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    purpose = x509.ExtendedKeyUsage([holder.purpose])
    return builder.add_extension(purpose, critical=False).sign(issuer.key, hashes.SHA256())


def pem(certificate: x509.Certificate) -> str:
    """As text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    """The names that a certificate proves. Raises x509.ExtensionNotFound."""
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def write_pair(pair: Pair, to: Path, key_to: Path) -> None:
    """Keep both, the key for its owner alone; blocks."""
    key = pair.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_secret(key_to, key)
    write_secret(to, pem(pair.certificate).encode())
    # Clients of other users of this machine read the authority's certificate, which is no secret.
    to.chmod(0o644)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    valid: tuple[dt.datetime, dt.datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
