"""Becoming a host with a join token, and asking for new certificates in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from hatoba.settings import parse_address
from hatoba.v1 import worker_pb2, worker_pb2_grpc
from hatoba_worker import key_files, keys, token_text
from hatoba_worker.dial import Connection, Target, connection

log = structlog.get_logger(__name__)

JOIN_SECONDS = 30.0
LOOK_EVERY = 3600.0
LOOK_SOON = 60.0
"""Seconds until the next try to renew, after one that failed."""


class NotJoined(ValueError):
    """The machine did not become a host; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class JoinText:
    """What follows `--join`: a token, its id, and the server's own authority if it has one."""

    token: str
    identity: str
    authority: str

    @classmethod
    def parse(cls, text: str) -> JoinText:
        """Raises NotJoined."""
        try:
            return cls(*token_text.parsed(text, "join", "hatoba hosts add"))
        except ValueError as error:
            raise NotJoined(str(error)) from None


async def join(data: Path, server: str, text: JoinText, ca: bytes | None, name: str) -> str:
    """Become a host, unless this directory has with this token already; the host's name.

    `ca` is the authority to believe in place of the token's. Raises NotJoined.
    """
    known = await asyncio.to_thread(keys.HostKeys.load, data)
    if known is not None and known.identity == text.identity:
        return known.host
    own, serving = await asyncio.to_thread(_pending, data, text.identity)
    address, tls = parse_address(server)
    authority = ca or text.authority.encode() or None
    target = Target(address, tls or authority is not None, authority, text.token)
    request = worker_pb2.JoinHostRequest(
        host=name, csr=keys.request_for(own), serving_csr=keys.request_for(serving)
    )
    given = await _asked(target, request)
    await asyncio.to_thread(_keep, data, own, serving, given)
    (key_files.directory(data) / keys.JOINING).unlink(missing_ok=True)
    return given.host


def _pending(data: Path, identity: str) -> tuple[ec.EllipticCurvePrivateKey, ...]:
    """Keys for a token, the same after a reply that was lost; blocks."""
    path = key_files.directory(data) / keys.JOINING
    if path.exists():
        text = path.read_text(encoding="ascii")
        if text.startswith(identity):
            own, serving = keys.read_keys(text)
            return own, serving
    own, serving = keys.new_key(), keys.new_key()
    key_files.write_secret(path, f"{identity}\n{keys.key_text(own)}{keys.key_text(serving)}")
    return own, serving


async def _asked(
    target: Target, request: worker_pb2.JoinHostRequest
) -> worker_pb2.HostCertificates:
    async with connection(target) as link:
        stub = worker_pb2_grpc.WorkerServiceStub(link.control)
        try:
            return await stub.JoinHost(request, metadata=link.metadata, timeout=JOIN_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise NotJoined(_why(target, error)) from error


def _why(target: Target, error: grpc.aio.AioRpcError) -> str:
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return (
            f"{target.address} cannot be reached, or is not the server that made this token: "
            f"{error.details()}; the token stays good for another try"
        )
    return str(error.details())


def _keep(
    data: Path,
    own: ec.EllipticCurvePrivateKey,
    serving: ec.EllipticCurvePrivateKey,
    given: worker_pb2.HostCertificates,
) -> None:
    where = key_files.directory(data)
    key_files.write_secret(where / keys.AUTHORITY, given.authority)
    keys.write_own(where / keys.SERVING, serving, given.serving_certificate)
    # This one last: who has it has joined.
    keys.write_own(where / keys.HOST, own, given.certificate)


class Renewal:
    """Keeps a host's certificates young. `renewed` hears of new ones."""

    def __init__(
        self,
        data: Path,
        current: Callable[[], keys.HostKeys],
        renewed: Callable[[], Awaitable[None]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._data = data
        self._current = current
        self._renewed = renewed
        self._sleep = sleep

    async def run(self, link: Callable[[], Awaitable[Connection]]) -> None:
        """Ask when it is time, until cancelled."""
        while True:
            wait = LOOK_EVERY
            if self._current().due() and not await self._renew(await link()):
                wait = LOOK_SOON
            await self._sleep(wait)

    async def _renew(self, link: Connection) -> bool:
        own, serving = keys.new_key(), keys.new_key()
        request = worker_pb2.RenewHostRequest(
            csr=keys.request_for(own), serving_csr=keys.request_for(serving)
        )
        stub = worker_pb2_grpc.WorkerServiceStub(link.control)
        try:
            given = await stub.RenewHost(request, metadata=link.metadata, timeout=JOIN_SECONDS)
            await asyncio.to_thread(_keep, self._data, own, serving, given)
        except (grpc.aio.AioRpcError, OSError) as error:
            log.warning("host.not_renewed", error=str(error))
            return False
        log.info("host.renewed", host=given.host)
        await self._renewed()
        return True
