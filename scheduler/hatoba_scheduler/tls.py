"""How the ports are protected: plaintext on loopback alone, else certificates.

`auto` makes a certificate authority in the data directory, once, and a server certificate below
it, renewed at a start when less than a third of its life is left. Keys are for their owner only.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hatoba_scheduler.auth.files import InsecureFile, read_secret, write_secret
from hatoba_scheduler.config import ConfigError, ServerConfig, TlsMode

CA_LIFE = dt.timedelta(days=3650)
SERVER_LIFE = dt.timedelta(days=90)
# A machine whose clock is a little behind ours must not refuse a certificate made just now.
_BACKDATE = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Transport:
    """This server's certificates; without any the ports are plaintext. Clients need `ca_file`."""

    certificate: Path | None = None
    key: Path | None = None
    ca_file: Path | None = None

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.certificate is not None

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """For `add_secure_port`; None means `add_insecure_port`."""
        if self.certificate is None or self.key is None:
            return None
        pair = (read_secret(self.key), self.certificate.read_bytes())
        return grpc.ssl_server_credentials([pair])

    def ssl_context(self) -> ssl.SSLContext | None:
        """The same for the HTTP port."""
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.certificate, self.key)
        return context


def prepare(server: ServerConfig, data_dir: Path, now: dt.datetime) -> Transport:
    """Decide how to protect the ports, making or renewing certificates where `tls = auto`.

    ConfigError when the settings would leave a port open; InsecureFile for a key that others read.
    Blocks for some milliseconds.
    """
    exposed = [address for address in (server.listen, server.http_listen) if not address.loopback]
    if server.tls is TlsMode.FILES:
        return _from_files(server)
    if not exposed:
        return Transport()
    if server.tls is TlsMode.OFF:
        raise ConfigError.of(
            "server.tls",
            f'"off" would send tokens in the clear over {exposed[0]}; use "auto" or "files", '
            "or listen on 127.0.0.1",
        )
    return _automatic(server, data_dir / "tls", now)


def _from_files(server: ServerConfig) -> Transport:
    for name, path in (("tls_cert", server.tls_cert), ("tls_key", server.tls_key)):
        if path is None or not path.is_file():
            raise ConfigError.of(f"server.{name}", f'no such file: {path}; tls = "files" needs it')
    assert server.tls_cert is not None
    assert server.tls_key is not None
    try:
        pair = serialization.load_pem_private_key(read_secret(server.tls_key), None)
        leaf = x509.load_pem_x509_certificates(server.tls_cert.read_bytes())[0]
    except InsecureFile as error:
        raise ConfigError.of("server.tls_key", str(error)) from error
    except (ValueError, TypeError) as error:
        problem = f"certificate or key cannot be read as PEM: {error}"
        raise ConfigError.of("server.tls_cert", problem) from error
    if _public(pair.public_key()) != _public(leaf.public_key()):
        raise ConfigError.of("server.tls_key", "the key does not belong to the certificate")
    return Transport(server.tls_cert, server.tls_key)


def _automatic(server: ServerConfig, directory: Path, now: dt.datetime) -> Transport:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_file, ca_key = directory / "ca.pem", directory / "ca.key"
    certificate, key = directory / "server.pem", directory / "server.key"
    if not (ca_file.exists() and ca_key.exists()):
        _write_pair(*_make_ca(now), ca_file, ca_key)
    names = _names(server)
    if not _still_good(certificate, key, ca_file, names, now):
        _write_pair(*_make_server(ca_file, ca_key, names, now), certificate, key)
    return Transport(certificate, key, ca_file)


def _names(server: ServerConfig) -> list[str]:
    """Every name that clients may dial: what is listened on, advertised, and this machine's own."""
    hosts = [server.listen.host, server.http_listen.host, socket.gethostname()]
    if server.advertise is not None:
        hosts.append(server.advertise.host)
    wanted = {*hosts, "localhost", "127.0.0.1", "::1"} - {"0.0.0.0", "::"}
    return sorted(wanted)


def _still_good(
    certificate: Path, key: Path, ca_file: Path, names: Sequence[str], now: dt.datetime
) -> bool:
    """Whether a stored certificate has a third of its life left, all names, and today's issuer."""
    if not (certificate.exists() and key.exists()):
        return False
    leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    issuer = x509.load_pem_x509_certificate(ca_file.read_bytes())
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    if leaf.not_valid_after_utc - now < life / 3:
        return False
    with contextlib.suppress(ValueError, TypeError, InvalidSignature):
        leaf.verify_directly_issued_by(issuer)
        return _alternative_names(leaf) >= set(names)
    return False


def _alternative_names(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = map(str, extension.get_values_for_type(x509.IPAddress))
    return {*extension.get_values_for_type(x509.DNSName), *addresses}


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _make_ca(now: dt.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("Hatoba CA")
    builder = _builder(name, name, key.public_key(), (now - _BACKDATE, now + CA_LIFE))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return builder.sign(key, hashes.SHA256()), key


def _make_server(ca_file: Path, ca_key: Path, names: Sequence[str], now: dt.datetime) -> Pair:
    issuer = x509.load_pem_x509_certificate(ca_file.read_bytes())
    issuer_key = serialization.load_pem_private_key(read_secret(ca_key), None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + SERVER_LIFE, issuer.not_valid_after_utc)
    builder = _builder(
        _subject("hatoba-server"), issuer.subject, key.public_key(), (now - _BACKDATE, until)
    )
    sans = x509.SubjectAlternativeName([_general_name(name) for name in names])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = builder.add_extension(sans, critical=False)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    return builder.add_extension(purpose, critical=False).sign(issuer_key, hashes.SHA256()), key


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


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write_pair(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, to: Path, key_to: Path
) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_secret(key_to, pem)
    write_secret(to, certificate.public_bytes(serialization.Encoding.PEM))
    # Clients of other users of this machine read the authority's certificate, which is no secret.
    to.chmod(0o644)


def _public(key: object) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    raw: bytes = key.public_bytes(encoding, form)  # type: ignore[attr-defined]
    return raw
