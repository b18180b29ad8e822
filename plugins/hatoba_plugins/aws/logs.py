"""What containers wrote to CloudWatch: a stream for each, which has stdout and stderr in one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hatoba_plugins.aws.clients import AwsClients
from hatoba_plugins.aws.errors import refusal_of
from hatoba_plugins.backend import Clock
from hatoba_plugins.errors import Invalid
from hatoba_plugins.values import LogChunk

STREAM = "stdout"
"""As what both are told of a job."""
PAUSE = 2.0
LAG = 5.0
"""Seconds after its end in which the last lines of a container may not be shown yet."""
REMEMBERED = 10_000
WINDOWS = 32
LARGEST_WINDOW = 2**19
"""Bytes of the last lines that are kept of one that is read by its tail."""


class Source(NamedTuple):
    """Where an attempt writes (empty: nowhere yet), and when it ended, in seconds since 1970."""

    log: str
    over: bool
    ended: float = 0.0


class Cursor(NamedTuple):
    """A page's end: the token that goes on from there, and how many bytes came before."""

    token: str = ""
    offset: int = 0


class Page(NamedTuple):
    """A page, and where it ends; the same cursor at the end of what there is."""

    data: bytes
    end: Cursor


@dataclass(slots=True)
class _Window:
    """The last lines of who writes to one log after the other; `end` counts through all of them."""

    log: str = ""
    end: Cursor = Cursor()
    data: bytes = b""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, page: Page) -> None:
        self.end = page.end
        self.data += page.data
        if len(self.data) > LARGEST_WINDOW:
            kept = self.data[-LARGEST_WINDOW:]
            self.data = kept[kept.find(b"\n") + 1 :]


class CloudWatchLogs:
    """Reads the streams of one group. Where reading stood is remembered, to go on from there."""

    def __init__(self, aws: AwsClients, clock: Clock, group: str) -> None:
        self._aws = aws
        self._clock = clock
        self._group = group
        self._cursors: OrderedDict[str, Cursor] = OrderedDict()
        self._windows: OrderedDict[str, _Window] = OrderedDict()

    async def of_attempt(
        self, name: str, offset: int, follow: bool, look: Callable[[], Awaitable[Source]]
    ) -> AsyncIterator[LogChunk]:
        """An attempt's log from a byte on; `look` tells where it is. Raises a BackendError."""
        while True:
            source = await look()
            late = source.over and self._clock.time() < source.ended + LAG
            if source.log:
                async for chunk in self.read(name, source.log, offset):
                    yield chunk
                    offset = chunk.offset + len(chunk.data)
            if not late and (source.over or not follow):
                return
            await self._clock.sleep(PAUSE)

    async def read(self, name: str, log: str, offset: int) -> AsyncIterator[LogChunk]:
        """What there is of a log from this byte on. Raises a BackendError."""
        cursor = self._known(log, offset)
        page = await self._page_or(log, cursor, Cursor())
        while page.end.token != cursor.token:
            begin = page.end.offset - len(page.data)
            skipped = max(0, offset - begin)
            if page.data[skipped:]:
                yield LogChunk(name, STREAM, begin + skipped, page.data[skipped:])
            cursor = page.end
            self._remember(log, cursor)
            page = await self._page(log, cursor)

    async def tail(self, writer: str, log: str, stream: str, lines: int) -> LogChunk:
        """The last lines of a writer, whose log is this one now.

        Offsets count from the first call on, through all its logs. Raises a BackendError.
        """
        window = self._windows.setdefault(writer, _Window())
        self._windows.move_to_end(writer)
        if len(self._windows) > WINDOWS:
            self._windows.popitem(last=False)
        async with window.lock:
            if window.log not in ("", log):
                await self._grow(window)  # what it still wrote to the one before
            if window.log != log:
                window.log, window.end = log, Cursor("", window.end.offset)
            await self._grow(window)
            data = _last(window.data, lines)
            return LogChunk(writer, stream, window.end.offset - len(data), data)

    async def _grow(self, window: _Window) -> None:
        """What was written since; at first the last page."""
        before = window.end
        window.add(await self._page_or(window.log, before, Cursor("", before.offset), head=False))
        while window.end.token != before.token:
            before = window.end
            window.add(await self._page(window.log, before))

    async def _page_or(
        self, log: str, cursor: Cursor, otherwise: Cursor, *, head: bool = True
    ) -> Page:
        """The page from a cursor on; from another one where its token has expired, after a day."""
        try:
            return await self._page(log, cursor, head=head)
        except Invalid:
            if not cursor.token:
                raise
        return await self._page(log, otherwise, head=head)

    async def _page(self, log: str, cursor: Cursor, *, head: bool = True) -> Page:
        """`head` tells of a cursor without a token where it stands: at the first or last page."""
        more: dict[str, object] = {"nextToken": cursor.token} if cursor.token else {}
        try:
            reply = await self._aws.read(
                "logs:GetLogEvents",
                logGroupName=self._group,
                logStreamName=log,
                startFromHead=head or bool(cursor.token),
                **more,
            )
        except Invalid as error:
            # Written to after the first line only, so there is no such stream before.
            if (said := refusal_of(error)) and said.code == "ResourceNotFoundException":
                return Page(b"", cursor)
            raise
        data = b"".join(map(_line, reply["events"]))
        return Page(data, Cursor(reply["nextForwardToken"], cursor.offset + len(data)))

    def _known(self, log: str, offset: int) -> Cursor:
        cursor = self._cursors.get(log)
        return cursor if cursor is not None and cursor.offset <= offset else Cursor()

    def _remember(self, log: str, cursor: Cursor) -> None:
        self._cursors[log] = cursor
        self._cursors.move_to_end(log)
        if len(self._cursors) > REMEMBERED:
            self._cursors.popitem(last=False)


def _line(event: dict[str, Any]) -> bytes:
    return f"{event['message']}\n".encode()


def _last(data: bytes, lines: int) -> bytes:
    """The last lines of what ends with a line's end."""
    return b"\n".join(data.split(b"\n")[-lines - 1 :])
