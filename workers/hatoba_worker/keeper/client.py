"""Talking to the keeper from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hatoba_worker.keeper import messages
from hatoba_worker.keeper.frames import MAX_FRAME, FrameBuffer, FrameError, Json, frame, to_json
from hatoba_worker.keeper.messages import (
    Ending,
    Event,
    Inventory,
    Join,
    Joined,
    KeeperInfo,
    Sample,
    Spawn,
    Spawned,
    SpawnFailed,
)
from hatoba_worker.keeper.procfs import pidfd
from hatoba_worker.keeper.serve import short_path

# `KeeperClient.list` hides the type of that name.
_Rows = list[Json]

MOST_EVENTS = 200_000
EXIT_SECONDS = 5.0
_A_REQUEST = 200
_BYTES_A_REQUEST = MAX_FRAME // 2


class KeeperGone(Exception):
    """The connection to the keeper ended; what was asked may or may not have been done."""


class KeeperRefused(Exception):
    """The keeper did not do what was asked; `code` is its one-word reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def end_keeper(data: Path, grace: float) -> None:
    """End what the keeper of `data` runs, every attempt (after `grace` s by force), and it.

    Returns once its process is gone; at once where no keeper serves.
    """
    try:
        async with await KeeperClient.connect(data) as keeper:
            process = pidfd((await keeper.hello()).pid)
            await keeper.shutdown(stop_attempts=True, grace=grace)
            with contextlib.suppress(KeeperGone):
                async for _ in keeper.events():
                    pass
    except OSError:
        return
    if process is not None:
        # It hangs up a moment before it is gone.
        await asyncio.to_thread(select.select, [process], [], [], EXIT_SECONDS)
        os.close(process)


class KeeperClient:
    """One connection to the keeper. After KeeperGone it is of no more use: connect anew.

    >>> async with await KeeperClient.connect(data) as keeper:
    ...     await keeper.watch()
    ...     inventory = await keeper.list()

    A reply comes before any event of what the request began. Who watches first and lists then
    misses nothing, and may hear of an end twice.
    """

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    @classmethod
    async def connect(cls, data: Path) -> Self:
        """Connect to the keeper of the directory `data`; raises OSError when none serves."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with short_path(data) as path:
                await loop.sock_connect(sock, path)
            _, wire = await loop.create_unix_connection(_Wire, sock=sock)
        except BaseException:
            sock.close()
            raise
        return cls(wire)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; pending calls raise KeeperGone."""
        await self._wire.close()

    async def hello(self) -> KeeperInfo:
        """Return who the keeper is."""
        return messages.info_of(await self._one({"op": "hello"}))

    async def spawn_many(self, spawns: Iterable[Spawn]) -> Sequence[Spawned | SpawnFailed]:
        """Start processes; results in order. An attempt the keeper knows is not started again."""
        replies = await self._many([spawn.command() for spawn in spawns])
        return [messages.spawned_of(_good(reply)) for reply in replies]

    async def join(self, join: Join) -> Joined:
        """Start a process beside a running attempt's. Raises KeeperRefused."""
        reply = await self._one(join.command())
        return Joined(reply["pid"], reply["start_ticks"])

    async def stop(self, attempt: str, grace: float, signal: int = 15) -> Ending:
        """Send `signal` to all processes of the attempt, and kill what is left after `grace` s.

        An attempt the keeper does not know is `tombstone`: its late spawn will be refused.
        """
        command = {"op": "stop", "attempt": attempt, "grace": grace, "signal": signal}
        state: Ending = (await self._one(command))["state"]
        return state

    async def kill(self, attempt: str) -> Ending:
        """Kill all processes of the attempt at once."""
        state: Ending = (await self._one({"op": "kill", "attempt": attempt}))["state"]
        return state

    async def list(self) -> Inventory:
        """Return everything that the keeper has and was not told to forget."""
        attempts: _Rows = []
        after: int | None = 0
        reply: Json = {}
        while after is not None:
            reply = await self._one({"op": "list", "after": after})
            attempts += reply["attempts"]
            after = reply["next"]
        return Inventory(
            attempts=tuple(map(messages.status_of, attempts)),
            supervised=tuple(map(messages.supervised_of, reply["supervised"])),
        )

    async def forget_many(self, attempts: Iterable[str]) -> None:
        """Drop attempts that are gone; raises KeeperRefused (`live`) if one was not, after the
        others were dropped. A late spawn of one that was dropped is refused."""
        commands = [{"op": "forget", "attempt": attempt} for attempt in attempts]
        for reply in await self._many(commands):
            _good(reply)

    async def sample(self, attempts: Sequence[str] | None = None) -> Sequence[Sample]:
        """Measure these attempts, or all; those that are gone are left out."""
        reply = await self._one(
            {"op": "sample", "attempts": None if attempts is None else list(attempts)}
        )
        return [messages.sample_of(each) for each in reply["samples"]]

    async def supervise(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: str, log: str
    ) -> None:
        """Keep a process running; of a known name only the settings of its next start change."""
        await self._one(
            {
                "op": "supervise",
                "name": name,
                "argv": list(argv),
                "env": dict(env),
                "cwd": cwd,
                "log": log,
            }
        )

    async def unsupervise(self, name: str, grace: float = 5.0) -> None:
        """End a supervised process and do not start it again."""
        await self._one({"op": "unsupervise", "name": name, "grace": grace})

    async def restart(self, name: str) -> None:
        """End a supervised process and start it at once; raises KeeperRefused (`unknown`)."""
        await self._one({"op": "restart", "name": name})

    async def shutdown(self, *, stop_attempts: bool, grace: float = 10.0) -> None:
        """Have the keeper end all and leave; its end is the end of this connection.

        Without `stop_attempts` it refuses (KeeperRefused, `busy`) while an attempt has processes.
        """
        await self._one({"op": "shutdown", "stop_attempts": stop_attempts, "grace": grace})

    async def watch(self) -> None:
        """Have events sent to this connection from now on."""
        await self._one({"op": "watch"})

    async def events(self) -> AsyncIterator[Event]:
        """Yield events as they come; raises KeeperGone when the keeper goes."""
        while True:
            yield messages.event_of(await self._wire.next_event())

    async def _one(self, command: Json) -> Json:
        return _good((await self._many([command]))[0])

    async def _many(self, commands: _Rows) -> _Rows:
        replies: _Rows = []
        for batch in _batches(commands):
            replies += await self._wire.request(batch)
        return replies


class _Wire(asyncio.Protocol):
    """Frames in and out. It needs no task of its own: the loop calls it."""

    def __init__(self) -> None:
        self._inbox = FrameBuffer()
        self._waiting: dict[int, asyncio.Future[list[Json]]] = {}
        self._number = 0
        self._events: deque[Json] = deque()
        self._news = asyncio.Event()
        self._closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._inbox.feed(data):
                self._take(frame)
        except FrameError:
            self._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
        self._news.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(KeeperGone("the keeper hung up"))
        self._waiting.clear()

    async def request(self, commands: Sequence[bytes]) -> list[Json]:
        if self._transport is None or self._closed.is_set():
            raise KeeperGone("the keeper hung up")
        self._number += 1
        number = self._number
        data = frame(b'{"id":%d,"commands":[%s]}' % (number, b",".join(commands)))
        future: asyncio.Future[list[Json]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._transport.write(data)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    async def next_event(self) -> Json:
        while not self._events:
            if self._closed.is_set():
                raise KeeperGone("the keeper hung up")
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            await self._closed.wait()

    def _take(self, frame: Json) -> None:
        if "events" in frame:
            self._events.extend(frame["events"])
            self._news.set()
            # Two for each attempt at most; so many unread mean that nobody reads.
            if len(self._events) > MOST_EVENTS:
                self._abort()
            return
        future = self._waiting.get(frame["id"])
        if future is None or future.done():
            return
        if "replies" in frame:
            future.set_result(frame["replies"])
        else:
            future.set_exception(KeeperRefused("too_large", frame["error"]))

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _good(reply: Json) -> Json:
    if "error" in reply:
        raise KeeperRefused(reply["error"], reply["message"])
    return reply


def _batches(commands: Iterable[Json]) -> Iterable[list[bytes]]:
    """Cut `commands`, each as JSON, into requests of a bounded number and size."""
    batch: list[bytes] = []
    size = 0
    for command in map(to_json, commands):
        if batch and (len(batch) >= _A_REQUEST or size + len(command) > _BYTES_A_REQUEST):
            yield batch
            batch, size = [], 0
        batch.append(command)
        size += len(command)
    if batch:
        yield batch
