"""One real server for all bad input, and how it must look before and after each of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from google.protobuf.message import Message
from server_process import HatobaServer, running_server
from wire import Wire, shell

from hatoba.v1 import admin_pb2, common_pb2, job_pb2, queue_pb2


@dataclass(frozen=True)
class Ground:
    """What there is on the server, to be named wrongly."""

    server: HatobaServer
    held: job_pb2.Job
    cancelled: job_pb2.Job
    queue: queue_pb2.Queue
    page_token: str
    """Of the list of all held jobs."""
    expired: str
    revoked: str
    viewer: str
    user: str
    worker: str


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ground(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Ground]:
    """A server without a worker, with two jobs, a queue and tokens of every kind."""
    data = tmp_path_factory.mktemp("bad-input") / "data"
    async with running_server(data, worker=False) as server, Wire(server) as wire:
        yield await prepared(server, wire)
        said = server.log_text()
        assert "Traceback" not in said
        assert '"level": "error"' not in said


async def prepared(server: HatobaServer, wire: Wire) -> Ground:
    """Put there what cases name."""
    spec = shell("true", "held")
    spec.hold = True
    held = await wire.submit(spec, "taken-1")
    await wire.submit(spec)
    cancelled = await wire.submit(spec)
    await wire.cancel(cancelled.name)
    assert (await wire.ended(cancelled.name)).state == common_pb2.JOB_STATE_CANCELLED
    create = queue_pb2.CreateQueueRequest(queue_id="narrow", queue=queue_pb2.Queue(weight=2))
    queue = await wire.once(create, queue_pb2.Queue)
    # Made with the first job, and read by whoever asks for it alone.
    await wire.once(queue_pb2.GetQueueRequest(name="default"), queue_pb2.Queue)
    pages = job_pb2.ListJobsRequest(page_size=1, filter="state = HELD")
    page = await wire.once(pages, job_pb2.ListJobsResponse)
    expired = admin_pb2.CreateTokenRequest(principal="late", role=admin_pb2.ROLE_ADMIN)
    expired.ttl.FromMicroseconds(1)
    revoked = await token(wire, "gone", admin_pb2.ROLE_ADMIN)
    end = admin_pb2.RevokeTokenRequest(name=revoked.token.name)
    await wire.once(end, admin_pb2.Token)
    return Ground(
        server,
        held,
        cancelled,
        queue,
        page.next_page_token,
        (await wire.once(expired, admin_pb2.CreateTokenResponse)).secret,
        revoked.secret,
        (await token(wire, "vera", admin_pb2.ROLE_VIEWER)).secret,
        (await token(wire, "uma", admin_pb2.ROLE_USER)).secret,
        server.token("worker"),
    )


async def token(
    wire: Wire, principal: str, role: admin_pb2.Role.ValueType
) -> admin_pb2.CreateTokenResponse:
    """A new token."""
    request = admin_pb2.CreateTokenRequest(principal=principal, role=role)
    return await wire.once(request, admin_pb2.CreateTokenResponse)


async def everything(wire: Wire) -> list[Message | int]:
    """All that a call can change: the event log's length, jobs, queues and tokens."""
    status = await wire.once(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    jobs = await wire.once(job_pb2.ListJobsRequest(), job_pb2.ListJobsResponse)
    queues = await wire.once(queue_pb2.ListQueuesRequest(), queue_pb2.ListQueuesResponse)
    tokens = await wire.once(admin_pb2.ListTokensRequest(), admin_pb2.ListTokensResponse)
    return [status.last_event, jobs, queues, tokens]
