"""Certificates: made once, renewed in time, never an open port by mistake."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from hatoba_scheduler import certificates, tls
from hatoba_scheduler.auth import InsecureFile
from hatoba_scheduler.config import Address, ConfigError, ServerConfig, TlsMode

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
EXPOSED = ServerConfig(listen=Address("0.0.0.0", 0), advertise=Address("hatoba.example.org", 7420))


def _leaf(transport: tls.Transport) -> x509.Certificate:
    assert transport.certificate is not None
    return x509.load_pem_x509_certificate(transport.certificate.read_bytes())


def test_loopback_is_plaintext_and_makes_nothing(tmp_path: Path) -> None:
    transport = tls.prepare(ServerConfig(), tmp_path, NOW)
    assert not transport.secure
    assert transport.grpc_credentials() is None
    assert transport.ssl_context() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "server",
    [
        ServerConfig(listen=Address("10.0.0.1", 80)),
        ServerConfig(http_listen=Address("10.0.0.1", 80)),
    ],
)
def test_plaintext_elsewhere_is_refused(tmp_path: Path, server: ServerConfig) -> None:
    server = replace(server, tls=TlsMode.OFF)
    with pytest.raises(ConfigError, match=r"server.tls: .*in the clear over 10.0.0.1:80"):
        tls.prepare(server, tmp_path, NOW)


def test_an_authority_and_a_certificate_below_it_are_made(tmp_path: Path) -> None:
    transport = tls.prepare(EXPOSED, tmp_path, NOW)
    assert transport.ca_file is not None
    assert transport.grpc_credentials() is not None
    issuer = x509.load_pem_x509_certificate(transport.ca_file.read_bytes())
    leaf = _leaf(transport)
    leaf.verify_directly_issued_by(issuer)
    assert issuer.not_valid_after_utc - NOW == certificates.AUTHORITY_LIFE
    assert leaf.not_valid_after_utc - NOW == tls.SERVER_LIFE
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"hatoba.example.org", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    addresses = names.get_values_for_type(x509.IPAddress)
    assert ipaddress.ip_address("127.0.0.1") in addresses
    assert ipaddress.ip_address("0.0.0.0") not in addresses


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    tls.prepare(EXPOSED, tmp_path, NOW)
    directory = tmp_path / "tls"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "ca.pem": 0o644, "server.pem": 0o644}


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    transport = tls.prepare(EXPOSED, tmp_path, NOW)
    assert transport.key is not None
    transport.key.chmod(0o640)
    with pytest.raises(InsecureFile):
        transport.grpc_credentials()


def test_a_certificate_is_kept_until_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    first = _leaf(tls.prepare(EXPOSED, tmp_path, NOW))
    soon = NOW + tls.SERVER_LIFE * 0.6
    assert _leaf(tls.prepare(EXPOSED, tmp_path, soon)) == first
    late = NOW + tls.SERVER_LIFE * 0.7
    ca_before = (tmp_path / "tls" / "ca.pem").read_bytes()
    renewed = _leaf(tls.prepare(EXPOSED, tmp_path, late))
    assert renewed.not_valid_after_utc - late == tls.SERVER_LIFE
    assert (tmp_path / "tls" / "ca.pem").read_bytes() == ca_before


def test_a_certificate_made_while_the_clock_was_ahead_is_replaced(tmp_path: Path) -> None:
    tls.prepare(EXPOSED, tmp_path, NOW)
    ahead = _leaf(tls.prepare(EXPOSED, tmp_path, NOW + tls.SERVER_LIFE * 0.9))
    assert ahead.not_valid_before_utc > NOW
    assert _leaf(tls.prepare(EXPOSED, tmp_path, NOW)).not_valid_before_utc < NOW


def test_a_new_name_makes_a_new_certificate(tmp_path: Path) -> None:
    first = _leaf(tls.prepare(EXPOSED, tmp_path, NOW))
    other = replace(EXPOSED, advertise=Address("10.1.2.3", 1))
    second = _leaf(tls.prepare(other, tmp_path, NOW))
    assert first.serial_number != second.serial_number
    names = second.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("10.1.2.3") in names.get_values_for_type(x509.IPAddress)


def test_a_certificate_of_another_authority_is_replaced(tmp_path: Path) -> None:
    tls.prepare(EXPOSED, tmp_path, NOW)
    (tmp_path / "tls" / "ca.pem").unlink()
    transport = tls.prepare(EXPOSED, tmp_path, NOW)
    assert transport.ca_file is not None
    issuer = x509.load_pem_x509_certificate(transport.ca_file.read_bytes())
    _leaf(transport).verify_directly_issued_by(issuer)


def _files(tmp_path: Path) -> ServerConfig:
    made = tls.prepare(EXPOSED, tmp_path, NOW)
    return replace(EXPOSED, tls=TlsMode.FILES, tls_cert=made.certificate, tls_key=made.key)


def test_own_files_are_taken_as_they_are(tmp_path: Path) -> None:
    transport = tls.prepare(_files(tmp_path), tmp_path / "data", NOW)
    assert transport.secure
    assert transport.ca_file is None
    context = transport.ssl_context()
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert not (tmp_path / "data").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    server = replace(_files(tmp_path), tls_key=tmp_path / "nothing.key")
    with pytest.raises(ConfigError, match=r"server.tls_key: no such file: .*nothing.key"):
        tls.prepare(server, tmp_path, NOW)
    with pytest.raises(ConfigError, match=r'server.tls_cert: .*tls = "files" needs it'):
        tls.prepare(ServerConfig(tls=TlsMode.FILES), tmp_path, NOW)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    server = replace(_files(tmp_path), tls_key=tmp_path / "tls" / "ca.key")
    with pytest.raises(ConfigError, match="does not belong to the certificate"):
        tls.prepare(server, tmp_path, NOW)


def test_rubbish_is_no_certificate(tmp_path: Path) -> None:
    server = _files(tmp_path)
    assert server.tls_cert is not None
    server.tls_cert.write_text("rubbish")
    with pytest.raises(ConfigError, match="cannot be read as PEM"):
        tls.prepare(server, tmp_path, NOW)


def test_an_open_key_of_ones_own_is_refused(tmp_path: Path) -> None:
    server = _files(tmp_path)
    assert server.tls_key is not None
    server.tls_key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        tls.prepare(server, tmp_path, NOW)
