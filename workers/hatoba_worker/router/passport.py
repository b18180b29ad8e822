"""What this router shows to replicas that answer TLS alone, and whom it believes there.

gRPC and what makes keys take their time to load: a router without such replicas needs neither, and
one that starts answers before they are there.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from hatoba.v1 import deployment_pb2
from hatoba_worker import key_files

if TYPE_CHECKING:
    from hatoba_worker import keys
    from hatoba_worker.dial import Connection

log = structlog.get_logger(__name__)

DIRECTORY, OWN = "router-tls", "router.pem"
ASK_AGAIN = 60.0
"""Seconds until the server is asked again, after it gave none."""
_ASK = 15.0


class NoPassport(Exception):
    """A replica answers TLS alone, and the server has given no certificate yet."""


class Passport:
    """A certificate, kept on disk: it has to be good while the server is away."""

    def __init__(self, data: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = data / DIRECTORY
        self._clock = clock
        self._own: keys.Own | None = None
        self._context: ssl.SSLContext | None = None
        self._asked = -ASK_AGAIN

    def load(self) -> None:
        """Take what an earlier router left; blocks."""
        if not (self._directory / OWN).exists():
            return
        from hatoba_worker import keys

        try:
            self._own = keys.read_own(self._directory / OWN)
            self._context = keys.client_context(self._directory, OWN)
        except (keys.BadKeys, OSError) as error:
            log.warning("passport.unreadable", error=str(error))
            self._own = None

    @property
    def context(self) -> ssl.SSLContext:
        """For connections to such replicas. Raises NoPassport."""
        if self._context is None:
            raise NoPassport("this router has no certificate for replicas on other machines yet")
        return self._context

    async def ensure(self, link: Connection, news: deployment_pb2.WatchDeploymentsResponse) -> None:
        """Have one before requests go by these routes, if they need it; a server that gives none is
        asked again later."""
        if _needed(news):
            await self.renew(link, needed=True)

    async def renew(self, link: Connection, *, needed: bool = False) -> None:
        """Ask for another when two thirds of its life are over, or when there is none and one is
        needed."""
        if self._clock() - self._asked < ASK_AGAIN or not self._is_due(needed):
            return
        self._asked = self._clock()
        import grpc

        from hatoba.v1 import deployment_pb2_grpc
        from hatoba_worker import keys

        key = keys.new_key()
        request = deployment_pb2.SignRouterRequest(csr=keys.request_for(key))
        stub = deployment_pb2_grpc.DeploymentServiceStub(link.control)
        try:
            given = await stub.SignRouter(request, metadata=link.metadata, timeout=_ASK)
        except grpc.aio.AioRpcError as error:
            log.warning("passport.not_given", code=error.code().name, details=error.details())
            return
        await asyncio.to_thread(self._keep, keys.key_text(key) + given.certificate, given.authority)

    def _is_due(self, needed: bool) -> bool:
        if self._own is None:
            return needed
        from hatoba_worker import keys

        return keys.is_due(self._own.certificate, self._clock())

    def _keep(self, own: str, authority: str) -> None:
        from hatoba_worker import keys

        try:
            key_files.write_secret(self._directory / keys.AUTHORITY, authority)
            key_files.write_secret(self._directory / OWN, own)
        except OSError as error:
            log.warning("passport.not_kept", error=str(error))
        self.load()


def _needed(message: deployment_pb2.WatchDeploymentsResponse) -> bool:
    return any(
        one.server_name
        for route in message.routes
        for target in route.targets
        for one in target.replicas
    )
