"""AdminService: backends, tokens, the server itself, and spans from outside."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import grpc

from hatoba.v1 import admin_pb2, admin_pb2_grpc
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.control.overview import Overviewer, Reports
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.domain import references
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import AlreadyExists, InvalidArgument, Reason
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import request_key
from hatoba_scheduler.services.upkeep import Upkeep
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.devices import DeviceToken
from hatoba_scheduler.telemetry.trace_store import TraceStore

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class AdminParts:
    """What the admin service stands on."""

    store: Store
    authenticator: Authenticator
    traces: TraceStore
    pager: Pager
    reports: Reports
    cordon_backend: Callable[[admin_pb2.CordonBackendRequest], Awaitable[admin_pb2.BackendInfo]]
    check_backend: Callable[
        [admin_pb2.CheckBackendRequest], AsyncGenerator[admin_pb2.CheckBackendResponse, None]
    ]
    upkeep: Upkeep
    overviewer: Overviewer


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """See proto/hatoba/v1/admin.proto."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts

    async def ListBackends(
        self, request: admin_pb2.ListBackendsRequest, context: Context
    ) -> admin_pb2.ListBackendsResponse:
        """Opened backends, and plug-ins that failed."""
        return self._parts.reports.backends()

    async def CordonBackend(
        self, request: admin_pb2.CordonBackendRequest, context: Context
    ) -> admin_pb2.BackendInfo:
        """Keep work away from a backend, or let it come."""
        return await self._parts.cordon_backend(request)

    async def CheckBackend(
        self, request: admin_pb2.CheckBackendRequest, context: Context
    ) -> AsyncIterator[admin_pb2.CheckBackendResponse]:
        """A short job through all of a backend."""
        async with aclosing(self._parts.check_backend(request)) as steps:
            async for step in steps:
                yield step

    async def GetServerStatus(
        self, request: admin_pb2.GetServerStatusRequest, context: Context
    ) -> admin_pb2.ServerStatus:
        """How the server is."""
        return self._parts.reports.status()

    async def GetOverview(
        self, request: admin_pb2.GetOverviewRequest, context: Context
    ) -> admin_pb2.Overview:
        """What an operator must know first."""
        return await self._parts.overviewer.overview()

    async def CreateBackup(
        self, request: admin_pb2.CreateBackupRequest, context: Context
    ) -> admin_pb2.Backup:
        """Take a backup."""
        return await self._parts.upkeep.create(request)

    async def ListBackups(
        self, request: admin_pb2.ListBackupsRequest, context: Context
    ) -> admin_pb2.ListBackupsResponse:
        """Backups, newest first."""
        return await self._parts.upkeep.list()

    async def DeleteBackup(
        self, request: admin_pb2.DeleteBackupRequest, context: Context
    ) -> admin_pb2.DeleteBackupResponse:
        """Let go of a backup; twice is once."""
        await self._parts.upkeep.delete(request)
        return admin_pb2.DeleteBackupResponse()

    async def AdoptStore(
        self, request: admin_pb2.AdoptStoreRequest, context: Context
    ) -> admin_pb2.AdoptStoreResponse:
        """After a restore: attach what runs, then serve."""
        return await self._parts.upkeep.adopt_store(request)

    async def CheckStore(
        self, request: admin_pb2.CheckStoreRequest, context: Context
    ) -> admin_pb2.CheckStoreResponse:
        """What is wrong with the store; mended where that needs no guess."""
        return await self._parts.upkeep.check_store(request)

    async def CreateToken(
        self, request: admin_pb2.CreateTokenRequest, context: Context
    ) -> admin_pb2.CreateTokenResponse:
        """Make a token; its text is shown once."""
        deployment = _opened(request)
        key = request_key("", "CreateToken", request.request_id, request)
        if key is not None and await self._parts.store.remember_request(key, request.principal):
            raise AlreadyExists(
                "this request made a token before, and its text is not kept; "
                "revoke that one and make another with a new request_id",
                reason=Reason.SECRET_SHOWN_ONCE,
            )
        # A lifetime below the clock's grain must not become none, which is for ever.
        lifetime = max(1, request.ttl.ToMicroseconds()) if request.HasField("ttl") else 0
        record, text = await self._parts.authenticator.create(
            request.principal,
            Role(request.role),
            ttl=lifetime,
            created_by=current_call().principal,
            deployment=deployment,
        )
        return admin_pb2.CreateTokenResponse(token=_message(record), secret=text)

    async def ListTokens(
        self, request: admin_pb2.ListTokensRequest, context: Context
    ) -> admin_pb2.ListTokensResponse:
        """Tokens by name, without their texts."""
        after = self._parts.pager.position("tokens", request.page_token)
        size = page_size(request.page_size)
        records = sorted(self._parts.authenticator.records, key=lambda record: record.id)
        rest = [record for record in records if record.id > after]
        page = rest[:size]
        terms = await self._parts.store.devices.tokens(_enrolling(page))
        reply = admin_pb2.ListTokensResponse(
            tokens=[_with_terms(_message(one), terms.get(one.id)) for one in page]
        )
        if len(rest) > size:
            reply.next_page_token = self._parts.pager.token("tokens", rest[size - 1].id)
        return reply

    async def RevokeToken(
        self, request: admin_pb2.RevokeTokenRequest, context: Context
    ) -> admin_pb2.Token:
        """End a token at once."""
        record = await self._parts.authenticator.revoke(request.name.removeprefix("tokens/"))
        return _message(record)

    async def PushSpans(
        self, request: admin_pb2.PushSpansRequest, context: Context
    ) -> admin_pb2.PushSpansResponse:
        """Keep spans made by a client."""
        self._parts.traces.add(request.spans)
        return admin_pb2.PushSpansResponse()


def _opened(request: admin_pb2.CreateTokenRequest) -> str:
    """The deployment that a token for predictions opens; raises InvalidArgument."""
    wanted = request.role == admin_pb2.ROLE_PREDICT
    if wanted != bool(request.deployment):
        raise InvalidArgument.field(
            "deployment",
            "a token of the role PREDICT opens one deployment, and no other token does",
            value=request.deployment,
            remedy="name it, for example `reader`" if wanted else "leave it out",
        )
    if not wanted:
        return ""
    try:
        return references.parse(request.deployment, "deployments").parent
    except references.BadReference as error:
        raise InvalidArgument.field(
            "deployment",
            str(error),
            value=request.deployment,
            remedy="write `reader`, or projects/P/deployments/reader",
        ) from None


def _enrolling(records: Sequence[TokenRecord]) -> list[str]:
    return [one.id for one in records if one.role == Role.ENROLL]


def _with_terms(token: admin_pb2.Token, terms: DeviceToken | None) -> admin_pb2.Token:
    """What a token makes devices of, too."""
    if terms is not None:
        token.uses, token.used, token.transport = terms.uses, terms.used, terms.transport
        token.labels.update(dict(terms.labels))
    return token


def _message(record: TokenRecord) -> admin_pb2.Token:
    out = admin_pb2.Token(
        name=f"tokens/{record.id}",
        principal=record.principal,
        role=admin_pb2.Role.ValueType(record.role),
        revoked=record.revoked,
        created_by=record.created_by,
        deployment=record.deployment,
    )
    set_time(out.create_time, record.create_time)
    set_time(out.expire_time, record.expire_time)
    return out
