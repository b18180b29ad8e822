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
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hatoba_scheduler import certificates
from hatoba_scheduler.auth.files import InsecureFile, read_secret
from hatoba_scheduler.config import ConfigError, ServerConfig, TlsMode

SERVER_LIFE = dt.timedelta(days=90)


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

    def authority(self) -> str:
        """PEM of the authority that vouches for us; empty: a public one, or there is no TLS."""
        if self.ca_file is not None:
            return self.ca_file.read_text()
        if self.certificate is None:
            return ""
        chain = x509.load_pem_x509_certificates(self.certificate.read_bytes())
        roots = [one for one in chain if one.subject == one.issuer]
        encoding = serialization.Encoding.PEM
        return "".join(one.public_bytes(encoding).decode() for one in roots)

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
    ca = certificates.authority(directory, now)
    certificate, key = directory / "server.pem", directory / "server.key"
    names = _names(server)
    if not _still_good(certificate, key, ca.certificate, names, now):
        certificates.write_pair(_make_server(ca, names, now), certificate, key)
    return Transport(certificate, key, directory / "ca.pem")


def _names(server: ServerConfig) -> list[str]:
    """Every name that clients may dial: what is listened on, advertised, and this machine's own."""
    hosts = [server.listen.host, server.http_listen.host, socket.gethostname()]
    if server.advertise is not None:
        hosts.append(server.advertise.host)
    wanted = {*hosts, "localhost", "127.0.0.1", "::1"} - {"0.0.0.0", "::"}
    return sorted(wanted)


def _still_good(
    certificate: Path, key: Path, issuer: x509.Certificate, names: Sequence[str], now: dt.datetime
) -> bool:
    """Whether a stored certificate has begun and a third of its life left, all names, and today's
    issuer."""
    if not (certificate.exists() and key.exists()):
        return False
    leaf = x509.load_pem_x509_certificate(certificate.read_bytes())
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    if now < leaf.not_valid_before_utc or leaf.not_valid_after_utc - now < life / 3:
        return False
    with contextlib.suppress(ValueError, TypeError, InvalidSignature):
        leaf.verify_directly_issued_by(issuer)
        return _alternative_names(leaf) >= set(names)
    return False


def _alternative_names(certificate: x509.Certificate) -> set[str]:
    extension = certificates.alternative_names(certificate)
    addresses = map(str, extension.get_values_for_type(x509.IPAddress))
    return {*extension.get_values_for_type(x509.DNSName), *addresses}


def _make_server(
    ca: certificates.Pair, names: Sequence[str], now: dt.datetime
) -> certificates.Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    proved = [_general_name(name) for name in names]
    holder = certificates.Holder("hatoba-server", key.public_key(), proved, certificates.SERVER)
    return certificates.Pair(certificates.signed(ca, holder, now, SERVER_LIFE), key)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _public(key: object) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    raw: bytes = key.public_bytes(encoding, form)  # type: ignore[attr-defined]
    return raw
