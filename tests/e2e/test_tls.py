"""TLS with certificates of one's own: who checks them gets in, plaintext does not."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from server_process import configured, running_server
from wire import Wire

from hatoba.v1 import job_pb2

CONFIG = """
[server]
tls = "files"
tls_cert = "{cert}"
tls_key = "{key}"
"""


def self_signed(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hatoba test")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "server.pem", directory / "server.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.touch(0o600)
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


async def test_own_certificates(tmp_path: Path) -> None:
    cert, key = await asyncio.to_thread(self_signed, tmp_path)
    config = CONFIG.format(cert=cert, key=key)
    data = await asyncio.to_thread(configured, tmp_path / "data", config)
    async with running_server(data, worker=False) as server:
        pem = await asyncio.to_thread(cert.read_bytes)
        credentials = grpc.ssl_channel_credentials(pem)
        async with Wire(server, credentials=credentials) as trusted:
            reply = await trusted.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
            assert reply.total == 0
        strangers = (None, grpc.ssl_channel_credentials())
        for each in strangers:
            async with Wire(server, credentials=each) as stranger:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stranger.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
                assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
