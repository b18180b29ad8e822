"""Shipping what jobs write. One stream carries the logs of all attempts, a bounded part unanswered.

The files are the jobs' own, appended by themselves; an offset is a place in the file for ever. What
the server has acknowledged is learned from it again on each new stream, by sending an empty piece.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import grpc
import grpc.aio
import structlog

from hatoba.v1 import runner_pb2, runner_pb2_grpc
from hatoba_worker import punch, tinyfiles
from hatoba_worker.attempts import Attempt, Book
from hatoba_worker.dial import Connection

log = structlog.get_logger(__name__)

FILES = {"build": "build.log", "stdout": "stdout.log", "stderr": "stderr.log"}
PIECE = 256 * 1024
WINDOW = 4 << 20
LIMIT = 1 << 30
POLL = 0.1
_AGAIN = 0.5

Call = grpc.aio.StreamStreamCall[runner_pb2.PushLogsRequest, runner_pb2.PushLogsResponse]


@dataclass(slots=True, eq=False)
class Stream:
    """One log of one attempt: bytes below `acked` are stored, those below `sent` on their way.

    `asked` means that an empty piece is on its way, and nothing else may be. `flying` holds the
    end and the length of each piece that is not answered.
    """

    attempt: Attempt
    name: str
    path: str
    size: int = 0
    sent: int = 0
    acked: int = 0
    known: bool = True
    asked: bool = False
    queued: bool = False
    ended: bool = False
    flying: deque[tuple[int, int]] = field(default_factory=deque)

    @property
    def dropped(self) -> int:
        """Bytes below this offset were punched out of the file."""
        return self.attempt.holes.get(self.name, 0)

    @property
    def wants(self) -> bool:
        """Whether there is something to send now."""
        return not self.asked and self.sent < self.size

    def rewind(self) -> None:
        """A stream to the server broke: go on from what it is known to have, and ask."""
        self.sent = self.acked
        self.asked = False
        self.queued = False
        self.known = self.size == 0 and self.acked == 0
        self.flying.clear()


class LogShipper:
    """Follows the log files of all attempts, and ships what is new."""

    def __init__(
        self,
        book: Book,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        limit: int = LIMIT,
    ) -> None:
        self._book = book
        self._sleep = sleep
        self._limit = limit
        self._streams: dict[str, dict[str, Stream]] = {}
        self._ready: deque[Stream] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._flying = 0
        self._finished: dict[str, asyncio.Event] = {}
        self._can_punch = True

    def follow(self, attempt: Attempt, streams: Iterable[str], *, known: bool = True) -> None:
        """Ship these logs of an attempt from now on; not `known`: ask what was shipped."""
        mine = self._streams.setdefault(attempt.name, {})
        for name in streams:
            if name not in mine:
                path = attempt.path(FILES[name])
                mine[name] = Stream(attempt, name, path, known=known)

    def end(self, attempt: Attempt) -> dict[str, int]:
        """Look once more, and return the final size of each log that has something, in bytes."""
        sizes: dict[str, int] = {}
        for stream in self._streams.get(attempt.name, {}).values():
            self._look(stream)
            stream.ended = True
            if stream.size:
                sizes[stream.name] = stream.size
        return sizes

    async def shipped(self, attempt: Attempt) -> None:
        """Return when all of an ended attempt is stored, or the server wants no more of it."""
        if not self._is_shipped(attempt.name):
            await self._finished.setdefault(attempt.name, asyncio.Event()).wait()
        self.drop(attempt.name)

    def drop(self, name: str) -> None:
        """Ship nothing more of an attempt."""
        for stream in self._streams.pop(name, {}).values():
            self._land(stream, stream.sent)
            stream.size = stream.sent
        finished = self._finished.pop(name, None)
        if finished:
            finished.set()

    async def poll(self) -> None:
        """Look for new bytes ten times a second, until cancelled."""
        while True:
            await self._sleep(POLL)
            for mine in list(self._streams.values()):
                for stream in mine.values():
                    if not stream.ended:
                        self._look(stream)
                    if stream.size - stream.dropped > self._limit:
                        await self._punch(stream)

    def _look(self, stream: Stream) -> None:
        stream.size = max(stream.size, tinyfiles.size(stream.path))
        self._offer(stream)

    def _offer(self, stream: Stream) -> None:
        if stream.wants and not stream.queued:
            stream.queued = True
            self._ready.append(stream)
            self._wake.set()

    def _is_shipped(self, name: str) -> bool:
        mine = self._streams.get(name, {}).values()
        return all(stream.acked >= stream.size for stream in mine)

    # -- over the limit -------------------------------------------------------------------------

    async def _punch(self, stream: Stream) -> None:
        if not self._can_punch:
            return
        # An eighth more than needed, so that it is not done again at once.
        below = stream.size - self._limit + self._limit // 8
        below -= below % punch.BLOCK
        if below <= stream.dropped:
            return
        self._book.punched(stream.attempt, stream.name, below)
        # A journal that a full disk keeps waiting must not keep that disk full.
        with contextlib.suppress(OSError):
            self._book.save()
        self._can_punch = await asyncio.to_thread(punch.out, stream.path, below)

    # -- one life of the stream -----------------------------------------------------------------

    async def serve(self, link: Connection) -> None:
        """Ship over `link` until cancelled; a stream that breaks is opened again."""
        while True:
            self._begin()
            call: Call = runner_pb2_grpc.RunnerServiceStub(link.bulk).PushLogs(
                metadata=link.metadata
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    sender = tasks.create_task(self._send(call), name="log sender")
                    await self._receive(call)
                    sender.cancel()
            finally:
                call.cancel()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # A call that ends just then answers with its status: the cancel is lost.
                raise asyncio.CancelledError
            await self._sleep(_AGAIN)

    def _begin(self) -> None:
        self._ready.clear()
        self._flying = 0
        for mine in self._streams.values():
            for stream in mine.values():
                stream.rewind()
                self._offer(stream)

    async def _send(self, call: Call) -> None:
        while True:
            while not self._ready:
                self._wake.clear()
                await self._wake.wait()
            while self._flying >= WINDOW:
                self._room.clear()
                await self._room.wait()
            stream = self._ready.popleft()
            stream.queued = False
            piece = await self._piece(stream)
            if piece is None:
                continue
            self._offer(stream)
            try:
                await call.write(piece)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return

    async def _piece(self, stream: Stream) -> runner_pb2.PushLogsRequest | None:
        if not stream.wants:
            return None
        piece = runner_pb2.PushLogsRequest(
            attempt=stream.attempt.name,
            fence=stream.attempt.fence,
            stream=stream.name,
            offset=stream.sent,
        )
        if not stream.known:
            stream.asked = True
            return piece
        if stream.sent >= stream.dropped:
            piece.data = await self._read(stream)
        # Looked at after reading: what was read meanwhile may have been a hole already.
        if stream.sent < stream.dropped:
            piece.data = b""
            piece.gap_bytes = stream.dropped - stream.sent
        return self._launch(stream, piece)

    def _launch(
        self, stream: Stream, piece: runner_pb2.PushLogsRequest
    ) -> runner_pb2.PushLogsRequest | None:
        length = len(piece.data) or piece.gap_bytes
        if not length or stream.sent != piece.offset:
            return None
        stream.sent += length
        stream.flying.append((stream.sent, len(piece.data)))
        self._flying += len(piece.data)
        return piece

    async def _read(self, stream: Stream) -> bytes:
        length = min(PIECE, stream.size - stream.sent)
        try:
            if length <= tinyfiles.PIECE:
                return tinyfiles.read_piece(stream.path, stream.sent, length)
            return await asyncio.to_thread(tinyfiles.read_piece, stream.path, stream.sent, length)
        except OSError as error:
            log.warning("log.unreadable", path=stream.path, error=str(error))
            return b""

    async def _receive(self, call: Call) -> None:
        while True:
            try:
                answer = await call.read()
            except grpc.aio.AioRpcError as error:
                log.info("logs.broken", code=error.code().name, details=error.details())
                return
            if not isinstance(answer, runner_pb2.PushLogsResponse) or not self._answered(answer):
                return

    def _answered(self, answer: runner_pb2.PushLogsResponse) -> bool:
        """Take in an answer; False when the two sides no longer agree, and must begin anew."""
        stream = self._streams.get(answer.attempt, {}).get(answer.stream)
        if answer.refused:
            self.drop(answer.attempt)
            return True
        if stream is None:
            return True
        if not stream.asked and not stream.acked < answer.acked <= stream.sent:
            log.warning("log.refused", attempt=answer.attempt, acked=answer.acked)
            stream.acked = min(answer.acked, stream.size)
            return False
        self._acked(stream, answer.acked)
        return True

    def _acked(self, stream: Stream, acked: int) -> None:
        if stream.asked:
            stream.sent = acked
            stream.known, stream.asked = True, False
        stream.acked = acked
        self._land(stream, acked)
        self._offer(stream)
        if stream.ended and self._is_shipped(stream.attempt.name):
            finished = self._finished.get(stream.attempt.name)
            if finished:
                finished.set()

    def _land(self, stream: Stream, upto: int) -> None:
        """Pieces that end at or below `upto` are answered."""
        while stream.flying and stream.flying[0][0] <= upto:
            self._flying -= stream.flying.popleft()[1]
            self._room.set()
