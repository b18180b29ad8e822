"""From a request to its reply: who asks, which replica answers, what goes where."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp
from aiohttp import hdrs, web
from aiohttp.connector import Connection
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from hatoba.replica_names import HEADER, may_serve_for
from hatoba_worker.router import replies
from hatoba_worker.router.bodies import WHOLE, ClientGone, Upload
from hatoba_worker.router.passport import NoPassport, Passport
from hatoba_worker.router.table import Caller, Choice, Replica, Route, Table
from hatoba_worker.router.visits import CLIENT_GONE, SERVER_FAULT, Body, Visit, Visits

CONNECT = 2.0
"""Seconds within which a replica takes a connection."""
IDLE = 15.0
"""Seconds that an unused connection to a replica is kept; replicas keep theirs for longer."""
_STEPS = 5
"""Turns of the loop in which headers go out after a connection was made; two are enough."""
METHODS = {"predict": "POST", "healthz": "GET", "readyz": "GET"}
_BEARER = "bearer "
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# The token is for the router alone; the rest is said anew.
_NOT_PASSED_ON = _HOP_BY_HOP | {"authorization", "expect", "host", "traceparent"}
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT)
_NOT_REACHED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, NoPassport)


class AnothersReply(Exception):
    """Who answers at a replica's address is another one by now."""


class Connector(aiohttp.TCPConnector):
    """Connections to replicas, kept for a while; knows which are being made."""

    def __init__(self) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE, use_dns_cache=False)
        self._opening: dict[object, asyncio.Event] = {}

    async def connect(self, *arguments: Any, **named: Any) -> Connection:
        """See aiohttp.BaseConnector."""
        mark = object()
        over = self._opening[mark] = asyncio.Event()
        try:
            return await super().connect(*arguments, **named)
        finally:
            del self._opening[mark]
            over.set()

    async def settled(self) -> None:
        """Return once the requests for which a replica is chosen now are on their way to it.

        From choice to sending nothing waits but the making of a connection.
        """
        for over in list(self._opening.values()):
            await over.wait()
        for _ in range(_STEPS):
            await asyncio.sleep(0)


def open_session(connector: Connector) -> aiohttp.ClientSession:
    """The one session with all replicas: nothing is changed on the way."""
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        timeout=_NO_TIMEOUT,
        trust_env=False,
    )


@dataclass(slots=True)
class Parts:
    """What the proxy stands on; `clock` gives seconds since 1970, `monotonic` seconds."""

    table: Table
    session: aiohttp.ClientSession
    visits: Visits
    passport: Passport
    rng: Random
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


class Proxy:
    """Answers requests for deployments."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, from its headers to the end of its reply."""
        path, _, query = request.raw_path.partition("?")
        visits = self._parts.visits
        visit = visits.begin(request.method, path, request.headers.get("traceparent"))
        try:
            route, tail = self._admit(request, visit)
            return await self._in_time(request, visit, route, (tail, query))
        except replies.Refusal as refusal:
            visit.refuse(refusal)
            reply = refusal.reply(visit.headers())
            visit.sent = int(reply.content_length or 0)
            return reply
        except (ClientGone, asyncio.CancelledError) as error:
            visit.status, visit.kind = CLIENT_GONE, "client_gone"
            if isinstance(error, ClientGone):
                raise ConnectionResetError(str(error)) from error
            raise
        finally:
            visits.end(visit)

    def _admit(self, request: web.BaseRequest, visit: Visit) -> tuple[Route, str]:
        """The route, and the path at its replicas; raises Refusal."""
        base, _, tail = visit.path.rpartition("/")
        method = METHODS.get(tail)
        caller = self._caller(request.headers.get(hdrs.AUTHORIZATION, ""))
        visit.principal = caller.principal
        if method is None or not base:
            raise replies.no_such_path(visit.path)
        route = visit.route = self._parts.table.route(base)
        if caller.deployment and (route is None or caller.deployment != route.deployment):
            raise replies.other_deployments_token(caller.deployment)
        if route is None:
            raise replies.no_such_deployment(base)
        if request.method != method:
            raise replies.wrong_method(request.method, method)
        if (request.content_length or 0) > route.limits.max_body:
            raise replies.too_large(route.limits.max_body)
        return route, tail

    def _caller(self, authorization: str) -> Caller:
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise replies.no_token()
        text = authorization[len(_BEARER) :].strip()
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        caller = self._parts.table.caller(digest, self._parts.clock())
        if caller is None:
            raise replies.unknown_token()
        return caller

    async def _in_time(
        self, request: web.BaseRequest, visit: Visit, route: Route, rest: tuple[str, str]
    ) -> web.StreamResponse:
        """Ask a replica within the deployment's time; `rest` is the path there and the query."""
        try:
            async with asyncio.timeout(route.limits.timeout):
                return await self._ask(request, visit, route, rest)
        except TimeoutError:
            if visit.status:
                # The reply has begun: all that can be said is that it does not end well.
                why = "the reply took longer than the deployment's time"
                raise _break_off(request, visit, why) from None
            if not visit.uploaded:
                raise replies.too_slow(route.limits.timeout) from None
            raise replies.timed_out(route.limits.timeout) from None

    async def _ask(
        self, request: web.BaseRequest, visit: Visit, route: Route, rest: tuple[str, str]
    ) -> web.StreamResponse:
        upload = Upload(request.content, route.limits, visit)
        # A request that nobody can take is refused before its body is asked for.
        self._pick(visit, route)
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        whole = await upload.whole() if _is_small(request) else None
        if whole is not None:
            visit.asked = Body(whole, request.headers.get(hdrs.CONTENT_TYPE, ""))
        choice = self._pick(visit, route)
        tried: list[Replica] = []
        while True:
            call = _Call(request, visit, choice, upload, whole)
            try:
                return await self._call(call, choice.replica.url(*rest))
            except _NOT_REACHED as error:
                # Nothing of the request went out, so that another may have it.
                choice.replica.refused(self._parts.monotonic())
                why = str(error)
            except AnothersReply as error:
                # No replica of the deployment had it.
                choice.replica.gone = True
                if whole is None:
                    raise replies.astray(choice.replica.name) from None
                why = str(error)
            tried.append(choice.replica)
            choice = self._another(visit, route, tried, why)

    def _pick(self, visit: Visit, route: Route, tried: Sequence[Replica] = ()) -> Choice:
        """By the table of now: while a request was waited for, replicas may have left it."""
        current = self._parts.table.current(route)
        if current is None:
            raise replies.no_such_deployment(visit.path.rpartition("/")[0])
        visit.route = current
        visit.choice = choice = current.pick(self._parts.monotonic(), self._parts.rng, tried)
        return choice

    def _another(self, visit: Visit, route: Route, tried: Sequence[Replica], why: str) -> Choice:
        try:
            return self._pick(visit, route, tried)
        except replies.Refusal as refusal:
            if refusal.status != 503:
                raise
            raise replies.none_answers(route.name, why) from None

    async def _call(self, call: _Call, url: URL) -> web.StreamResponse:
        replica = call.choice.replica
        replica.in_flight += 1
        call.visit.call_began = self._parts.visits.clock_ns()
        secure = replica.server_name
        try:
            response = await self._parts.session.request(
                call.request.method,
                url,
                data=call.data(),
                headers=call.headers(),
                allow_redirects=False,
                ssl=self._parts.passport.context if secure else True,
                server_hostname=secure or None,
            )
            _require_own(replica, response)
            replica.connected()
            return await _pass_back(call, response)
        except _NOT_REACHED:
            raise
        except aiohttp.ClientError as error:
            replica.connected()
            if call.upload.failure is not None:
                raise call.upload.failure from error
            if call.visit.status:
                why = f"the replica ended in its reply: {error}"
                raise _break_off(call.request, call.visit, why) from error
            raise replies.died(replica.name, str(error) or type(error).__name__) from error
        finally:
            replica.in_flight -= 1


@dataclass(frozen=True, slots=True)
class _Call:
    """One try of a request at one replica; `whole` is the body when it was read before."""

    request: web.BaseRequest
    visit: Visit
    choice: Choice
    upload: Upload
    whole: bytes | None

    def data(self) -> bytes | AsyncIterator[bytes] | None:
        """The body."""
        if self.whole is None:
            return self.upload.pieces()
        return self.whole or None

    def headers(self) -> CIMultiDict[str]:
        """What the replica is told of the request."""
        passed = _end_to_end(self.request.headers, _NOT_PASSED_ON)
        if self.whole is not None:
            passed.popall(hdrs.CONTENT_LENGTH, None)
        passed["traceparent"] = self.visit.trace.of_call
        return passed


def _is_small(request: web.BaseRequest) -> bool:
    """Whether the body is read before a replica is asked."""
    length = request.content_length
    return request.content.is_eof() or (length is not None and length <= WHOLE)


def _end_to_end(headers: CIMultiDictProxy[str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """Headers that are not for this one connection alone."""
    named = headers.get(hdrs.CONNECTION, "")
    if named and named.lower() not in ("keep-alive", "close"):
        dropped |= {name.strip().lower() for name in named.split(",")}
    return CIMultiDict((key, value) for key, value in headers.items() if key.lower() not in dropped)


def _require_own(replica: Replica, response: aiohttp.ClientResponse) -> None:
    """Raises AnothersReply, and leaves the connection, when another one says that it answered."""
    said = response.headers.get(HEADER, "")
    if not may_serve_for(said, replica.name):
        response.close()
        raise AnothersReply(f"{said} answers at the address of {replica.name}")


async def _pass_back(call: _Call, response: aiohttp.ClientResponse) -> web.StreamResponse:
    """The replica's reply on its way to the client; a small one in one piece."""
    try:
        length = response.content_length
        if length is not None and length <= WHOLE:
            return _whole_reply(call, response, await response.read())
        return await _streamed_reply(call, response)
    finally:
        if call.visit.uploaded or call.whole is not None:
            response.release()
        else:
            # It answered before it had everything: what is left belongs to no other request.
            response.close()


def _whole_reply(call: _Call, response: aiohttp.ClientResponse, data: bytes) -> web.Response:
    visit = call.visit
    _note(visit, response)
    visit.sent = len(data)
    visit.answered = Body(data, response.headers.get(hdrs.CONTENT_TYPE, ""))
    headers = _end_to_end(response.headers, _HOP_BY_HOP)
    headers.update(visit.headers())
    return web.Response(status=response.status, reason=response.reason, body=data, headers=headers)


async def _streamed_reply(call: _Call, response: aiohttp.ClientResponse) -> web.StreamResponse:
    visit = call.visit
    headers = _end_to_end(response.headers, _HOP_BY_HOP)
    headers.update(visit.headers())
    reply = web.StreamResponse(status=response.status, reason=response.reason, headers=headers)
    _note(visit, response)
    try:
        await reply.prepare(call.request)
        async for piece in _pieces(response):
            await reply.write(piece)
            visit.sent += len(piece)
        await reply.write_eof()
    except _ReplicaGone as error:
        raise aiohttp.ClientPayloadError(str(error)) from error
    except (ConnectionError, aiohttp.ClientConnectionResetError) as error:
        raise ClientGone(str(error)) from error
    return reply


class _ReplicaGone(Exception):
    """Its reply broke off."""


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for piece in response.content.iter_any():
            yield piece
    except (OSError, aiohttp.ClientError) as error:
        raise _ReplicaGone(str(error) or type(error).__name__) from error


def _note(visit: Visit, response: aiohttp.ClientResponse) -> None:
    visit.status = response.status
    if response.status >= SERVER_FAULT:
        visit.fault = f"{response.status} {response.reason or ''}".strip()


def _break_off(request: web.BaseRequest, visit: Visit, why: str) -> Exception:
    """End the client's connection, so that it does not take a part for the whole."""
    visit.fault = why
    visit.kind = "reply_broken_off"
    if request.transport is not None:
        request.transport.abort()
    return ConnectionResetError(why)
