"""The front before other people's servicers, and the ports themselves."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME, enable_server_reflection

from hatoba_scheduler import tls
from hatoba_scheduler.auth import Authenticator, Role
from hatoba_scheduler.config import Address, ServerConfig
from hatoba_scheduler.interceptors import Admission, Front, Phase, server_options
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import Tracer

from .conftest import Clock, MemoryTokens, collect, failing


class Bare:
    """A server with health and reflection alone, still recovering."""

    def __init__(self) -> None:
        self.authenticator = Authenticator(MemoryTokens(), Clock())
        self.admission = Admission(Phase.RECOVERING)
        self.health = health.HealthServicer()
        front = Front(self.authenticator, Tracer(), ServerMetrics(), self.admission)
        self.server = grpc.aio.server(interceptors=[front], options=server_options())
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        names = ["hatoba.v1.JobService", SERVICE_NAME]
        enable_server_reflection(names, self.server)

    async def token(self, role: Role) -> tuple[tuple[str, str], ...]:
        _, text = await self.authenticator.create("x", role)
        return (("authorization", f"Bearer {text}"),)


@pytest.fixture
async def bare() -> AsyncIterator[Bare]:
    bare = Bare()
    yield bare
    await bare.server.stop(None)


@pytest.fixture
async def channel(bare: Bare) -> AsyncIterator[grpc.aio.Channel]:
    port = bare.server.add_insecure_port("127.0.0.1:0")
    await bare.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def test_health_needs_no_token_and_answers_while_recovering(
    bare: Bare, channel: grpc.aio.Channel
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    await bare.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    reply = await stub.Check(health_pb2.HealthCheckRequest())
    assert reply.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_watch_which_writes_passes_the_front(
    bare: Bare, channel: grpc.aio.Channel
) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    stream = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
    await bare.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert (await stream.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    stream.cancel()


async def test_an_unknown_service_is_not_found(bare: Bare, channel: grpc.aio.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    failure = await failing(stub.Check(health_pb2.HealthCheckRequest(service="nobody")))
    assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_reflection_needs_a_token(bare: Bare, channel: grpc.aio.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    bare.admission.phase = Phase.SERVING
    asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
    failure = await failing(collect(stub.ServerReflectionInfo(iter(asked))))
    assert failure.code is grpc.StatusCode.UNAUTHENTICATED
    metadata = await bare.token(Role.VIEWER)
    (reply,) = await collect(stub.ServerReflectionInfo(iter(asked), metadata=metadata))
    names = [service.name for service in reply.list_services_response.service]
    assert "hatoba.v1.JobService" in names


async def test_a_second_server_cannot_take_the_same_port(bare: Bare) -> None:
    port = bare.server.add_insecure_port("127.0.0.1:0")
    await bare.server.start()
    second = grpc.aio.server(options=server_options())
    with pytest.raises(RuntimeError, match="Failed to bind"):
        second.add_insecure_port(f"127.0.0.1:{port}")


# -- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def transport(tmp_path: Path) -> tls.Transport:
    server = ServerConfig(listen=Address("0.0.0.0", 0))
    return tls.prepare(server, tmp_path, dt.datetime.now(dt.UTC))


@pytest.fixture
def stranger(tmp_path: Path) -> bytes:
    server = ServerConfig(listen=Address("0.0.0.0", 0))
    made = tls.prepare(server, tmp_path / "other", dt.datetime.now(dt.UTC))
    assert made.ca_file is not None
    return made.ca_file.read_bytes()


@pytest.fixture
async def secure_port(bare: Bare, credentials: grpc.ServerCredentials) -> int:
    port = bare.server.add_secure_port("127.0.0.1:0", credentials)
    await bare.server.start()
    return port


@pytest.fixture
def credentials(transport: tls.Transport) -> grpc.ServerCredentials:
    credentials = transport.grpc_credentials()
    assert credentials is not None
    return credentials


@pytest.fixture
def authority(transport: tls.Transport) -> bytes:
    assert transport.ca_file is not None
    return transport.ca_file.read_bytes()


async def _check(channel: grpc.aio.Channel) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    async with channel:
        return await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)


async def test_a_client_that_has_the_authority_is_answered(
    secure_port: int, authority: bytes
) -> None:
    trust = grpc.ssl_channel_credentials(authority)
    for name in ("127.0.0.1", "localhost"):
        reply = await _check(grpc.aio.secure_channel(f"{name}:{secure_port}", trust))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_client_that_trusts_another_authority_refuses_us(
    secure_port: int, stranger: bytes
) -> None:
    trust = grpc.ssl_channel_credentials(stranger)
    call = _check(grpc.aio.secure_channel(f"127.0.0.1:{secure_port}", trust))
    assert (await failing(call)).code is grpc.StatusCode.UNAVAILABLE


async def test_plaintext_to_a_secure_port_fails(secure_port: int) -> None:
    call = _check(grpc.aio.insecure_channel(f"127.0.0.1:{secure_port}"))
    assert (await failing(call)).code is grpc.StatusCode.UNAVAILABLE
