"""Events and logs that go on through broken connections, without gap or duplicate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

from hatoba.errors import Exhausted, Unavailable
from hatoba.transport import RETRY_WAITS, Transport, passes, stream_waits
from hatoba.v1 import common_pb2, job_pb2

TERMINAL = frozenset(
    {
        common_pb2.JOB_STATE_SUCCEEDED,
        common_pb2.JOB_STATE_FAILED,
        common_pb2.JOB_STATE_CANCELLED,
        common_pb2.JOB_STATE_TIMED_OUT,
        common_pb2.JOB_STATE_UPSTREAM_FAILED,
    }
)
FROM_THE_OLDEST = "0"


@dataclass(frozen=True)
class Resync:
    """Events were passed over, too old or too many: read the state anew; what follows comes after
    `cursor`.
    """

    oldest_cursor: str
    cursor: str = ""


@dataclass(frozen=True)
class WatchQuery:
    """Which events: of these jobs (empty: of the whole project), after `cursor`."""

    jobs: Sequence[str] = ()
    project: str = ""
    cursor: str = ""
    jobs_only: bool = False
    filter: str = ""
    """Only events of jobs that match, as in job lists; not with `jobs`."""
    reasons: Sequence[str] = ()
    """Only events with one of these reasons; empty: all."""


@dataclass(frozen=True)
class LogQuery:
    """Which log: of one task's attempt (0: its current or last), one stream or (empty) all."""

    job: str
    index: int = 0
    attempt: int = 0
    stream: str = ""
    tail_lines: int = 0
    follow: bool = False


@dataclass(frozen=True)
class LogPiece:
    """Bytes of a stream at their offset; or, with `gap_bytes`, that so many are not kept any
    more.
    """

    attempt: int
    stream: str
    offset: int
    data: bytes
    gap_bytes: int = 0


@dataclass
class Patience:
    """How a broken stream is taken up again.

    A stream that never gave anything is tried four times; one that did, until it is back.
    """

    transport: Transport
    notify: Callable[[str], None]
    _waits: list[float] = field(default_factory=list)
    _was_good: bool = False

    def good(self) -> None:
        """A message came."""
        if self.transport.away:
            self.notify("the server answers again")
        self.transport.away = False
        self._was_good, self._waits = True, []

    async def after(self, error: Unavailable | Exhausted) -> None:
        """Wait before the next try, or raise `error` when the server was never there."""
        if isinstance(error, Exhausted) and not passes(error):
            raise error
        tried = len(self._waits)
        if not self._was_good and tried >= len(RETRY_WAITS):
            raise error
        if self._was_good and not self.transport.away:
            self.transport.away = True
            self.notify("the server does not answer; going on when it is back")
        wait = next(
            w for n, w in enumerate(chain(stream_waits(), repeat(stream_waits()[-1]))) if n >= tried
        )
        self._waits.append(wait)
        await self.transport.pause(wait)
        await self.transport.relocate()

    async def breath(self) -> None:
        """A short pause after a stream that ended without having said that it does."""
        await self.transport.pause(stream_waits()[0])
        await self.transport.relocate()


def silent(_: str) -> None:
    """Tell nobody."""


async def watch_events(
    transport: Transport, query: WatchQuery, notify: Callable[[str], None] = silent
) -> AsyncGenerator[common_pb2.Event | Resync, None]:
    """Events in order, each once, until every watched job has ended (for ever without jobs).

    A broken connection is taken up again after the last cursor. Raises Unavailable only when the
    server was not there from the start.
    """
    follower = _Watch(transport, query, Patience(transport, notify))
    while not follower.ended:
        try:
            async with aclosing(follower.once()) as items:
                async for item in items:
                    yield item
        except (Unavailable, Exhausted) as error:
            await follower.patience.after(error)


@dataclass
class _Watch:
    """Where one watch stands."""

    transport: Transport
    query: WatchQuery
    patience: Patience
    last_seq: int = 0
    ended: bool = False

    async def once(self) -> AsyncGenerator[common_pb2.Event | Resync, None]:
        """One connection, from the last cursor to wherever it breaks."""
        messages = self.transport.stream(self._request(), job_pb2.WatchJobsResponse)
        async with aclosing(messages):
            async for message in messages:
                self.patience.good()
                item = self._take(message)
                if item is not None:
                    yield item
                if self.ended:
                    return
        # An end without an `end` message is a connection that a proxy closed politely.
        await self.patience.breath()

    def _request(self) -> job_pb2.WatchJobsRequest:
        query = self.query
        return job_pb2.WatchJobsRequest(
            project=query.project,
            jobs=query.jobs,
            cursor=query.cursor,
            jobs_only=query.jobs_only,
            filter=query.filter,
            reasons=query.reasons,
        )

    def _take(self, message: job_pb2.WatchJobsResponse) -> common_pb2.Event | Resync | None:
        if message.cursor:
            self.query = replace(self.query, cursor=message.cursor)
        kind = message.WhichOneof("kind")
        if kind == "event":
            return self._fresh(message.event)
        if kind == "resync":
            # A restored store may count anew.
            self.last_seq = 0
            return Resync(message.resync.oldest_cursor, self.query.cursor)
        if kind == "end":
            self.ended = message.end.reason == "terminal"
        return None

    def _fresh(self, event: common_pb2.Event) -> common_pb2.Event | None:
        if event.seq and event.seq <= self.last_seq:
            return None
        self.last_seq = event.seq
        return event


async def read_logs(
    transport: Transport, query: LogQuery, notify: Callable[[str], None] = silent
) -> AsyncGenerator[LogPiece, None]:
    """The bytes of one attempt's log, each once; with `follow` to the attempt's recorded end.

    Raises Unavailable only when the server was not there from the start.
    """
    reader = _LogReader(transport, query, Patience(transport, notify))
    while not reader.ended:
        try:
            async with aclosing(reader.once()) as pieces:
                async for piece in pieces:
                    yield piece
        except (Unavailable, Exhausted) as error:
            await reader.patience.after(error)


@dataclass
class _LogReader:
    """Where the reading of one attempt's log stands: the next byte of each stream read so far."""

    transport: Transport
    query: LogQuery
    patience: Patience
    next_byte: dict[str, int] = field(default_factory=dict)
    attempt: int = 0
    ended: bool = False

    async def once(self) -> AsyncGenerator[LogPiece, None]:
        """One connection, from the last byte to wherever it breaks."""
        messages = self.transport.stream(self._request(), job_pb2.TailLogsResponse)
        async with aclosing(messages):
            async for message in messages:
                self.patience.good()
                piece = self._take(message)
                if piece is not None:
                    yield piece
                if message.end:
                    self.ended = True
                    return
        if not self.query.follow:
            self.ended = True
            return
        await self.patience.breath()

    def _request(self) -> job_pb2.TailLogsRequest:
        query = self.query
        return job_pb2.TailLogsRequest(
            job=query.job,
            index=query.index,
            # The attempt that answered first is kept: "the current one" may be another by now.
            attempt=query.attempt or self.attempt,
            stream=query.stream,
            # All streams together can only be read from their beginnings; `_take` drops what was
            # seen.
            offset=self.next_byte.get(query.stream, 0) if query.stream else 0,
            follow=query.follow,
            tail_lines=0 if self.next_byte else query.tail_lines,
        )

    def _take(self, message: job_pb2.TailLogsResponse) -> LogPiece | None:
        self.attempt = message.attempt or self.attempt
        stream = message.stream or self.query.stream
        begin = message.offset
        end = begin + message.gap_bytes + len(message.data)
        seen = self.next_byte.get(stream, begin)
        if end <= seen:
            return None
        self.next_byte[stream] = end
        if seen <= begin:
            return LogPiece(self.attempt, stream, begin, message.data, message.gap_bytes)
        gap = max(message.gap_bytes - (seen - begin), 0)
        return LogPiece(self.attempt, stream, seen, message.data[-(end - seen - gap) :], gap)
