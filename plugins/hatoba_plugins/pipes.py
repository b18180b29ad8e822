"""A few pieces between one who tells and one who listens."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")
PIECES = 16


class Pipe(Generic[T]):
    """At most `PIECES` wait in it: who tells more waits for who listens. Either side may leave."""

    def __init__(self) -> None:
        self._pieces: deque[T] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._left = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None

    async def put(self, piece: T) -> None:
        """Tell a piece, once there is room."""
        while len(self._pieces) >= PIECES:
            self._room.clear()
            await self._room.wait()
        self._pieces.append(piece)
        self._news.set()

    def end(self, error: Exception | None = None) -> None:
        """No more will be told, because of an error where there is one. The first end counts."""
        if not self._ended:
            self._ended, self._error = True, error
            self._news.set()

    async def next(self) -> T | None:
        """The next piece; None at the end. Raises what it ended with."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()
        self._room.set()
        return self._pieces.popleft()

    def leave(self) -> None:
        """Nobody listens any more."""
        self._left.set()

    async def left(self) -> None:
        """Return once nobody listens any more."""
        await self._left.wait()
