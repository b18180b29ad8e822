"""A body on its way: whole when it is small, else piece by piece, never more than is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import StreamReader, web

from hatoba_worker.router import replies
from hatoba_worker.router.table import Limits
from hatoba_worker.router.visits import Visit

WHOLE = 256 << 10
"""Bodies up to here, bytes, are read before they are passed on."""
PAUSE = 10.0
"""Seconds that a client may let pass between two pieces of its body."""


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class Upload:
    """A client's body on its way to a replica.

    What goes wrong with it is kept in `failure`, since the HTTP client hides it from whoever asks.
    """

    def __init__(self, content: StreamReader, limits: Limits, visit: Visit) -> None:
        self._content = content
        self._limits = limits
        self._visit = visit
        self.failure: replies.Refusal | ClientGone | None = None

    async def whole(self) -> bytes:
        """All of it. Raises Refusal and ClientGone."""
        parts: list[bytes] = []
        while piece := await self._next():
            parts.append(self._taken(piece))
        self._visit.uploaded = True
        return b"".join(parts)

    async def pieces(self) -> AsyncIterator[bytes]:
        """As they come. Raises Refusal and ClientGone."""
        try:
            while piece := await self._next():
                yield self._taken(piece)
        except (replies.Refusal, ClientGone) as error:
            self.failure = error
            raise
        self._visit.uploaded = True

    async def _next(self) -> bytes:
        try:
            if self._content.is_eof():
                return self._content.read_nowait(-1)
            async with asyncio.timeout(PAUSE):
                return await self._content.readany()
        except TimeoutError:
            raise replies.too_slow(PAUSE) from None
        except (aiohttp.ClientPayloadError, web.RequestPayloadError) as error:
            raise replies.broken_body(str(error)) from error
        except (OSError, aiohttp.ClientError) as error:
            raise ClientGone(str(error)) from error

    def _taken(self, piece: bytes) -> bytes:
        self._visit.received += len(piece)
        if self._visit.received > self._limits.max_body:
            raise replies.too_large(self._limits.max_body)
        return piece
