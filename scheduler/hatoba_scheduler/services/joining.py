"""How machines become hosts, and stay the hosts that they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog

from hatoba.v1 import worker_pb2
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.authority import Authority, HostIdentity, key_digest, read_request
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.domain.records import Host, TokenRecord
from hatoba_scheduler.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Reason,
)
from hatoba_scheduler.interceptors.context import current_call

TTL_SECONDS = 3600.0
log = structlog.get_logger(__name__)


class JoinParts(NamedTuple):
    """What joining stands on. `address` gives what hosts dial; `pinned` says whether the server's
    own certificate is the authority's work, so that hosts have to be told of it."""

    hub: Hub
    authenticator: Authenticator
    authority: Authority
    address: Callable[[], str]
    pinned: bool


class Joining:
    """Makes tokens, hosts and their certificates."""

    def __init__(self, parts: JoinParts) -> None:
        self._hub, self._authenticator, self._authority, self._address, self._pinned = parts
        self._joining = asyncio.Lock()

    async def create_token(
        self, request: worker_pb2.CreateJoinTokenRequest
    ) -> worker_pb2.JoinToken:
        """A token for one machine."""
        host = request.host
        self._refuse_embedded(host)
        asked = request.ttl.ToTimedelta().total_seconds() if request.HasField("ttl") else 0.0
        record, text = await self._authenticator.create(
            f"hosts/{host}" if host else "hosts/?",
            Role.JOIN,
            ttl=round((asked or TTL_SECONDS) * 1e6),
            created_by=current_call().principal,
            host=host,
        )
        secret = f"{text}.{self._authority.short}" if self._pinned else text
        reply = worker_pb2.JoinToken(
            name=f"tokens/{record.id}", secret=secret, host=host, address=self._address()
        )
        set_time(reply.expire_time, record.expire_time)
        return reply

    def _refuse_embedded(self, host: str) -> None:
        known = _known(self._hub, host)
        if known is not None and known.embedded:
            raise FailedPrecondition(f"host {host!r} is this server's own; choose another name")

    async def join(self, request: worker_pb2.JoinHostRequest) -> worker_pb2.HostCertificates:
        """Make the caller's machine a host."""
        token = current_call().token
        if token is None or token.role != Role.JOIN:
            raise FailedPrecondition("show a join token; `hatoba hosts add` makes one")
        csr = read_request(request.csr, "csr")
        read_request(request.serving_csr, "serving_csr")
        async with self._joining:
            host = token.host or request.host
            if not token.host:
                self._refuse_taken(host)
            await self._authenticator.use(token, key_digest(csr), host)
        log.info("host.joined", host=host, token=token.id, created_by=token.created_by)
        return self._certificates(HostIdentity(host, token.id), request)

    def _refuse_taken(self, host: str) -> None:
        if _known(self._hub, host) is not None or self._authenticator.identity_of(host):
            raise AlreadyExists(
                f"there is a host {host!r}; choose another --name, or have this machine take its "
                f"place with a token from `hatoba hosts add {host}`"
            )

    async def renew(self, request: worker_pb2.RenewHostRequest) -> worker_pb2.HostCertificates:
        """New certificates for the host that calls."""
        token = current_call().token
        if token is None or not token.host:
            raise FailedPrecondition("only a host that joined has certificates to renew")
        log.info("host.renewed", host=token.host)
        return self._certificates(HostIdentity(token.host, token.id), request)

    def _certificates(
        self,
        who: HostIdentity,
        request: worker_pb2.JoinHostRequest | worker_pb2.RenewHostRequest,
    ) -> worker_pb2.HostCertificates:
        csr = read_request(request.csr, "csr")
        serving = read_request(request.serving_csr, "serving_csr")
        return worker_pb2.HostCertificates(
            host=who.host,
            certificate=self._authority.sign_host(csr, who),
            serving_certificate=self._authority.sign_serving(serving, who.host),
            authority=self._authority.pem,
        )

    # -- hosts ----------------------------------------------------------------------------------

    def has_joined(self, host: str) -> bool:
        """Whether only its own key speaks for a host."""
        return bool(self._authenticator.identity_of(host))

    def check_speaker(self, host: str) -> None:
        """Refuse a caller that opens another host's stream; raises PermissionDenied."""
        token = current_call().token
        if token is not None and token.host == host:
            return
        if token is not None and not token.host and not self.has_joined(host):
            return
        raise _impostor(host, token)

    async def remove(self, name: str) -> Host | None:
        """Forget a host without work, and refuse its certificates; None: it never connected.

        Raises NotFound, FailedPrecondition.
        """
        identity, known = self._authenticator.identity_of(name), _known(self._hub, name)
        if known is not None:
            self._hub.check_idle(known)
        if known is not None and not identity and self._hub.reachable(name):
            raise FailedPrecondition(
                f"host {name!r} is connected with a token that brings it back; stop its worker "
                "first: `hatoba worker stop` there"
            )
        if identity:
            await self._authenticator.revoke(identity)
        log.info("host.removed", host=name, actor=current_call().principal)
        return None if identity and known is None else await self._hub.remove(name)


def _known(hub: Hub, name: str) -> Host | None:
    try:
        return hub.host(name)
    except NotFound:
        return None


def _impostor(host: str, token: TokenRecord | None) -> PermissionDenied:
    principal = token.principal if token is not None else ""
    log.warning("host.impostor", host=host, principal=principal)
    return PermissionDenied(
        f"{principal} does not speak for host {host!r}, which has a key of its own",
        reason=Reason.NOT_YOUR_HOST,
        metadata={"host": host, "principal": principal},
    )
