"""HTTP/1.1 on one connection: what comes is bounded in size and time, what goes out is in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple, Protocol, cast

import h11

from hatoba_worker.serving.answering import Outcome, failure

MAX_HEAD_BYTES = 16 << 10
IDLE_SECONDS = 75.0
LINGER_SECONDS = 2.0
_BYTES_PER_SECOND = 1 << 20
_STATUS_OF_HEAD_TOO_LARGE = 431

Headers = tuple[tuple[str, str], ...]


class Request(NamedTuple):
    """What came, whole."""

    method: str
    path: str
    media_type: str
    trace: str
    body: bytes


class Reply(NamedTuple):
    """What goes out."""

    outcome: Outcome
    headers: Headers = ()


Respond = Callable[[Reply], None]
Abandon = Callable[[], None]


class Front(Protocol):
    """Who answers the requests of all connections."""

    max_body_bytes: int
    read_seconds: float
    headers: Headers
    """What every reply carries."""

    @property
    def ending(self) -> bool:
        """Whether clients should go elsewhere after this."""

    def admits(self, transport: asyncio.BaseTransport) -> bool:
        """Whether who is at the other end may ask here at all."""

    def opened(self, connection: Connection) -> bool:
        """A connection came; False when there are too many."""

    def closed(self, connection: Connection) -> None:
        """A connection went."""

    def respond(self, request: Request, respond: Respond) -> Abandon | None:
        """Answer once, now or later; what is returned is called when the client goes before."""

    def refused(self, reply: Reply) -> None:
        """A request was answered that was none."""


class Connection(asyncio.Protocol):
    """One client. The next request is read once the last one is answered."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._transport: asyncio.Transport | None = None
        self._now = asyncio.get_running_loop().time
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._received = 0
        self._since = self._now()
        self._busy = False
        self._blocked = False
        self._lingering = False
        self._abandon: Abandon | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)
        admitted = self._front.opened(self)
        if not self._front.admits(transport):
            text = "only routers of this installation are answered here"
            self._refuse(failure(403, "not_admitted", text))
        elif not admitted:
            self._refuse(failure(503, "connections", "too many connections: try again"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went, or we let it go."""
        self._transport = None
        self._front.closed(self)
        if self._abandon is not None:
            self._abandon()

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._lingering or self._transport is None:
            return
        if not self._received and not self._busy:
            self._since = self._now()
        self._received += len(data)
        self._http.receive_data(data)
        if self._busy:
            # The next request, before this one is answered: it waits.
            self._transport.pause_reading()
            return
        self._advance()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._blocked = True
        self._since = self._now()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._blocked = False
        self._advance()

    def sweep(self, now: float) -> None:
        """Be done with a client that is too slow, or that has nothing to say."""
        if self._transport is None:
            return
        waited = now - self._since
        if self._lingering:
            if waited > LINGER_SECONDS:
                self._transport.abort()
        elif self._blocked:
            if waited > self._front.read_seconds:
                self._transport.abort()
        elif not self._busy:
            self._sweep_reader(waited)

    def _sweep_reader(self, waited: float) -> None:
        assert self._transport is not None
        if not self._received:
            if waited > IDLE_SECONDS:
                self._transport.close()
            return
        allowed = self._front.read_seconds + self._received / _BYTES_PER_SECOND
        if waited > allowed:
            text = (
                f"the request did not come within {allowed:.3g} s: {self._received} bytes of it did"
            )
            self._refuse(failure(408, "slow_client", text))

    @property
    def begun(self) -> bool:
        """Whether a part of a request came, and may still become one."""
        return self._received > 0 and not self._busy and not self._lingering

    def close_if_idle(self) -> None:
        """Let the client go, unless it is asking or being answered."""
        if self._transport is not None and not (self._busy or self._lingering or self.begun):
            self._transport.close()

    # -- reading --------------------------------------------------------------------------------

    def _advance(self) -> None:
        while not (self._busy or self._blocked or self._lingering) and self._transport:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                status = error.error_status_hint
                kind = "head_too_large" if status == _STATUS_OF_HEAD_TOO_LARGE else "bad_request"
                self._refuse(failure(status, kind, f"this is no HTTP request: {error}"))
                return
            if event is h11.NEED_DATA:
                self._go_ahead()
                return
            self._take(event)

    def _take(self, event: object) -> None:
        match event:
            case h11.Request():
                self._begin(event)
            case h11.Data():
                self._add(event.data)
            case h11.EndOfMessage():
                self._complete()
            case _:
                assert self._transport is not None
                self._transport.close()
                self._transport = None

    def _begin(self, head: h11.Request) -> None:
        size = sum(len(name) + len(value) for name, value in head.headers) + len(head.target)
        if size > MAX_HEAD_BYTES:
            text = f"the headers have {size} bytes, the limit is {MAX_HEAD_BYTES}"
            self._refuse(failure(_STATUS_OF_HEAD_TOO_LARGE, "head_too_large", text))
            return
        self._head = head
        length = int(_header(head, b"content-length") or 0)
        if length > self._front.max_body_bytes:
            self._refuse_body(f"{length:,}")

    def _add(self, data: bytes | bytearray) -> None:
        self._body += data
        if len(self._body) > self._front.max_body_bytes:
            self._refuse_body(f"more than {len(self._body):,}")

    def _refuse_body(self, came: str) -> None:
        limit = f"{self._front.max_body_bytes:,}"
        text = f"the body has {came} bytes, the limit is {limit} (max_body_bytes)"
        self._refuse(failure(413, "body_too_large", text))

    def _go_ahead(self) -> None:
        if self._http.they_are_waiting_for_100_continue and self._transport is not None:
            go = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            self._transport.write(self._http.send(go) or b"")

    def _complete(self) -> None:
        assert self._head is not None
        head = self._head
        self._busy = True
        request = Request(
            head.method.decode("ascii"),
            head.target.decode("ascii", "replace").partition("?")[0],
            _header(head, b"content-type"),
            _header(head, b"traceparent"),
            bytes(self._body),
        )
        self._body.clear()
        self._abandon = None
        abandon = self._front.respond(request, self._answered)
        if self._busy:
            self._abandon = abandon

    # -- answering ------------------------------------------------------------------------------

    def _answered(self, reply: Reply) -> None:
        self._abandon = None
        if self._transport is None:
            return
        self._send(reply, close=self._front.ending)
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._transport.close()
            return
        self._http.start_next_cycle()
        self._head = None
        self._since = self._now()
        self._received = len(self._http.trailing_data[0])
        self._busy = False
        if self._received:
            self._transport.resume_reading()
            # Not now: who answers at once would be called by itself, request after request.
            asyncio.get_running_loop().call_soon(self._advance)

    def _refuse(self, outcome: Outcome) -> None:
        """Answer what cannot be taken, and read no more: the rest of it is thrown away.

        Closed at once, the client's system would drop our answer when more of the request comes.
        """
        assert self._transport is not None
        reply = Reply(outcome)
        self._front.refused(reply)
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send(reply, close=True)
        self._lingering = True
        self._since = self._now()
        self._body.clear()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _send(self, reply: Reply, *, close: bool) -> None:
        assert self._transport is not None
        status, payload = reply.outcome.status, reply.outcome.payload
        headers = [
            ("content-type", payload.media_type),
            ("content-length", str(len(payload.data))),
            *self._front.headers,
            *reply.headers,
        ]
        if close:
            headers.append(("connection", "close"))
        reason = HTTPStatus(status).phrase
        head = h11.Response(status_code=status, headers=headers, reason=reason.encode())
        out = [self._http.send(head)]
        if payload.data and not (self._head and self._head.method == b"HEAD"):
            out.append(self._http.send(h11.Data(data=payload.data)))
        out.append(self._http.send(h11.EndOfMessage()))
        self._transport.write(b"".join(piece for piece in out if piece))


def _header(head: h11.Request, wanted: bytes) -> str:
    for name, value in head.headers:
        if name == wanted:
            return value.decode("latin-1")
    return ""
