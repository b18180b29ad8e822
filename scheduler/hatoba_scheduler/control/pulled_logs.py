"""Logs that a backend keeps, brought here: while somebody reads, and whole before the release.

What is stored says where to go on from, so that a restart, a lost connection or a second reader
brings nothing twice. What a runner in an image ships itself is not brought once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import structlog

from hatoba_plugins.values import LogChunk
from hatoba_scheduler.control.awaited_ends import Place
from hatoba_scheduler.control.instance import Instance
from hatoba_scheduler.control.launches import ref_of
from hatoba_scheduler.control.logs import LogStore, Piece
from hatoba_scheduler.control.todo import Todo
from hatoba_scheduler.domain.records import Attempt
from hatoba_scheduler.domain.states import Release

log = structlog.get_logger(__name__)

BROUGHT = ("stdout", "stderr")
AT_ONCE = 8
"""Attempts whose logs are brought at once after their end."""
FOLLOWED = 64
"""Attempts that are followed at once; who reads others waits until one of them is read no more."""
INTEREST = 10.0
"""Seconds after which nobody reads any more."""
FRESH = 5.0
"""Seconds that a reader waits for what there is now."""
WHOLE = 20.0
"""Seconds that a reader waits for the log of what has ended."""
LAST = 12.0
"""Seconds that what is about to be gone waits for its log: a runner asks again after 45, of which
it may wait 30 for the end itself."""
DEADLINE = 120.0
"""Seconds for one attempt's log after its end."""
GIVE_UP = 600.0
"""Seconds of failing after which an attempt is let go without the rest of its log."""
LONGEST_WAIT = 60.0
FOLLOW_AGAIN = 5.0


@dataclass(slots=True)
class _Pull:
    """One attempt: whether all of it is here, and since when its end is being brought."""

    shipped: bool = False
    ended_at: float | None = None
    wait: float = 1.0
    read_at: float = 0.0
    followed: bool = False
    failure: Exception | None = None


class PulledLogs:
    """One backend's. `done` hears the name of each attempt that may be let go of."""

    def __init__(self, instance: Instance, logs: LogStore, done: Callable[[str], None]) -> None:
        self._instance = instance
        self._logs = logs
        self._done = done
        self._pulls: dict[str, _Pull] = {}
        self._ends = Todo(instance.clock)
        self._follows = Todo(instance.clock)
        self._shipping = asyncio.Semaphore(AT_ONCE)
        self._following = asyncio.Semaphore(FOLLOWED)

    @property
    def able(self) -> bool:
        """Whether the backend keeps logs that nobody else ships."""
        on_host = self._instance.place is Place.HOST
        return self._instance.backend.capabilities().logs and not on_host

    def _brings(self, attempt: Attempt) -> bool:
        """A runner in an image ships what the command writes itself, once it has claimed."""
        ships = self._instance.place is Place.IMAGE and bool(attempt.nonce)
        return self.able and not ships and attempt.release is not Release.RELEASED

    # -- taking note ----------------------------------------------------------------------------

    def note(self, attempt: Attempt) -> bool:
        """Take note of an attempt; True: the end of its log comes first, and then `done`."""
        if not self._brings(attempt):
            self._drop(attempt.name)
            return False
        pull = self._pulls.setdefault(attempt.name, _Pull())
        if pull.shipped or not attempt.state.terminal:
            return False
        if pull.ended_at is None:
            pull.ended_at = self._instance.clock.monotonic()
            self._ends.add(attempt.name)
        return True

    def _drop(self, name: str) -> None:
        if self._pulls.pop(name, None) is not None:
            self._ends.discard(name)
            self._follows.discard(name)
            self._logs.poke(name)

    def expects(self, name: str) -> bool:
        """Whether more of an attempt's log is to come than is stored."""
        pull = self._pulls.get(name)
        return pull is not None and not pull.shipped

    def read(self, name: str) -> None:
        """Somebody reads this attempt's log as it grows, and has more for a while."""
        pull = self._pulls.get(name)
        if pull is None or pull.shipped:
            return
        pull.read_at = self._instance.clock.monotonic()
        if not pull.followed:
            pull.followed = True
            self._follows.add(name)

    def failure(self, name: str) -> Exception | None:
        """Why nothing of it came when that was tried last; None: nothing went wrong."""
        pull = self._pulls.get(name)
        return pull.failure if pull is not None else None

    async def fresh(self, name: str) -> None:
        """Have what there is now stored, within a few seconds, or not."""
        if self.expects(name):
            ended = self._pulls[name].ended_at is not None
            await self._bring_within(name, WHOLE if ended else FRESH)

    async def last(self, name: str) -> None:
        """Have stored what there is of what is about to be gone, within a few seconds, or not."""
        if self.expects(name):
            await self._bring_within(name, LAST)

    async def _bring_within(self, name: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._bring(name, follow=False)
        except Exception as error:  # noqa: BLE001 - what is stored is read all the same
            self._failed(name, error)

    # -- the loops ------------------------------------------------------------------------------

    async def ship_forever(self) -> None:
        """Bring whole what ended, a few at once."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._shipping.acquire()
                (name,) = await self._ends.take(1)
                group.create_task(self._ship(name), name=f"logs:{name}")

    async def _ship(self, name: str) -> None:
        pull = self._pulls.get(name)
        try:
            if pull is not None:
                async with asyncio.timeout(DEADLINE):
                    await self._bring(name, follow=False)
                self._shipped(name, pull)
        except Exception as error:  # noqa: BLE001 - it is tried again
            assert pull is not None
            self._failed(name, error)
            self._again(name, pull)
        finally:
            self._shipping.release()

    def _again(self, name: str, pull: _Pull) -> None:
        tried = self._instance.clock.monotonic() - (pull.ended_at or 0.0)
        if tried >= GIVE_UP:
            log.warning("logs.given_up", backend=self._instance.name, attempt=name)
            self._shipped(name, pull)
            return
        self._ends.add_later(name, pull.wait)
        pull.wait = min(2 * pull.wait, LONGEST_WAIT)

    def _shipped(self, name: str, pull: _Pull) -> None:
        pull.shipped = True
        self._logs.poke(name)
        self._done(name)

    async def follow_forever(self) -> None:
        """Bring what is being read as it grows, for as long as somebody reads."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._following.acquire()
                (name,) = await self._follows.take(1)
                group.create_task(self._follow(name), name=f"logs-follow:{name}")

    async def _follow(self, name: str) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                brings = group.create_task(self._bring(name, follow=True), name=f"bring:{name}")
                ears = group.create_task(self._while_read(name), name=f"read:{name}")
                await asyncio.wait((brings, ears), return_when=asyncio.FIRST_COMPLETED)
                brings.cancel()
                ears.cancel()
            self._leave(name)
        except Exception as error:  # noqa: BLE001 - who still reads has it tried again
            self._failed(name, error)
            self._follows.add_later(name, FOLLOW_AGAIN)
        finally:
            self._following.release()

    def _leave(self, name: str) -> None:
        if pull := self._pulls.get(name):
            pull.followed = False

    async def _while_read(self, name: str) -> None:
        while (pull := self._pulls.get(name)) is not None:
            left = pull.read_at + INTEREST - self._instance.clock.monotonic()
            if left <= 0:
                return
            await self._instance.clock.sleep(left)

    def _failed(self, name: str, error: Exception) -> None:
        cause = _first(error)
        if pull := self._pulls.get(name):
            pull.failure = cause
        backend = self._instance.name
        log.warning("logs.not_brought", backend=backend, attempt=name, error=repr(cause))

    # -- bringing -------------------------------------------------------------------------------

    async def _bring(self, name: str, *, follow: bool) -> None:
        current = self._instance.current((name,))
        if not current:
            return
        _, attempt = current[0]
        async with asyncio.TaskGroup() as group:
            for stream in BROUGHT:
                bring = self._bring_stream(attempt, stream, follow)
                group.create_task(bring, name=f"logs:{name}:{stream}")

    async def _bring_stream(self, attempt: Attempt, stream: str, follow: bool) -> None:
        start = (await self._logs.sizes(attempt)).get(stream, 0)
        chunks = self._instance.backend.logs(ref_of(attempt), stream, start, follow)
        try:
            async for chunk in chunks:
                await self._store(attempt, stream, chunk)
        finally:
            # A generator that is left half-way keeps its connection until somebody closes it.
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _store(self, attempt: Attempt, stream: str, chunk: LogChunk) -> None:
        """What is stored already is ignored; what is not there any more becomes a gap."""
        if pull := self._pulls.get(attempt.name):
            pull.failure = None
        piece = Piece(chunk.offset, chunk.data)
        size = await self._logs.append(attempt, stream, piece)
        if size < chunk.offset:
            await self._logs.append(attempt, stream, Piece(size, b"", chunk.offset - size))
            await self._logs.append(attempt, stream, piece)


def _first(error: Exception) -> Exception:
    """The first error of a group: its streams fail alike."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
