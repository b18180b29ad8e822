"""A command in an attempt's container: the engine's, which ends it with the container."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
from collections.abc import AsyncGenerator
from typing import NamedTuple

from hatoba.v1 import job_pb2
from hatoba_worker.attaching.doors import CHUNK, AttachFailed
from hatoba_worker.executors.containers.engine import Engine, EngineAway, EngineRefused
from hatoba_worker.keeper import procfs

MARK = "HATOBA_ATTACHED"
"""Variable that tells a session's processes apart, so that no other is ever ended for one."""
BEGINS_WITHIN = 30.0
_SWITCHED = 101
_HEADER = struct.Struct(">BxxxL")
_STDERR = 2
_END_OF_INPUT = b"\x04"
Output = job_pb2.AttachOutput


class ExecRun(NamedTuple):
    """One command that the engine was told of, by its id there."""

    ident: str
    terminal: bool
    mark: str


class ContainerDoor:
    """A command that runs in a container, and the engine's connection to it."""

    def __init__(
        self,
        engine: Engine,
        run: ExecRun,
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._engine = engine
        self._run = run
        self._terminal = run.terminal
        self._reader, self._writer = connection
        self._over = False

    async def give(self, said: job_pb2.AttachInput) -> None:
        """Take what was said, as fast as the command reads."""
        with contextlib.suppress(OSError):
            if said.HasField("size"):
                await self.resize(said.size)
            elif said.end and not self._terminal:
                self._writer.write_eof()
            else:
                self._writer.write(_END_OF_INPUT if said.end else said.data)
                await self._writer.drain()

    async def resize(self, size: job_pb2.TerminalSize) -> None:
        """The terminal is of this size from now on."""
        if self._terminal and size.rows and size.columns:
            with contextlib.suppress(EngineAway, EngineRefused):
                await self._engine.resize_exec(self._run.ident, size.rows, size.columns)

    async def tell(self) -> AsyncGenerator[Output, None]:
        """What it writes as it comes, then how it ended."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            pieces = self._of_terminal() if self._terminal else self._of_pipes()
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece
        self._over = True
        yield Output(ended=await self._end())

    async def _of_terminal(self) -> AsyncGenerator[Output, None]:
        while data := await self._reader.read(CHUNK):
            yield Output(data=data)

    async def _of_pipes(self) -> AsyncGenerator[Output, None]:
        while True:
            stream, length = _HEADER.unpack(await self._reader.readexactly(_HEADER.size))
            while length:
                data = await self._reader.readexactly(min(length, CHUNK))
                length -= len(data)
                yield Output(stderr=data) if stream == _STDERR else Output(data=data)

    async def _end(self) -> job_pb2.ExecEnded:
        """The engine tells a signal as a shell does: 128 and its number."""
        try:
            seen = await self._engine.inspect_exec(self._run.ident)
        except (EngineAway, EngineRefused):
            # Gone with its container, or its engine.
            return job_pb2.ExecEnded(signal=signal.SIGKILL)
        return job_pb2.ExecEnded(exit_code=seen.get("ExitCode") or 0)

    async def close(self) -> None:
        """Hang up. The engine lets the command run on: it is ended here, where it can be seen."""
        self._writer.close()
        if self._over:
            return
        with contextlib.suppress(EngineAway, EngineRefused):
            seen = await self._engine.inspect_exec(self._run.ident)
            if seen["Running"] and seen["Pid"]:
                await asyncio.to_thread(_kill, seen["Pid"], self._run.mark)


def _kill(pid: int, mark: str) -> None:
    """End a process and its descendants, if this machine's number `pid` is the session's."""
    if procfs.environment(pid).get(MARK) != mark:
        return
    for each in procfs.descendants([pid]).values():
        procfs.send(each, signal.SIGKILL)


async def begin(
    engine: Engine, socket: str, container: str, start: job_pb2.ExecStart
) -> ContainerDoor:
    """Start a command in a container. Raises AttachFailed."""
    mark = os.urandom(16).hex()
    env = {MARK: mark} | ({"TERM": start.term or "xterm"} if start.terminal else {})
    try:
        ident = await engine.create_exec(container, start.command, env, terminal=start.terminal)
        run = ExecRun(ident, start.terminal, mark)
        async with asyncio.timeout(BEGINS_WITHIN):
            connection = await _hijacked(socket, f"/{engine.api}/exec/{ident}/start", run)
    except (EngineAway, EngineRefused, OSError, TimeoutError) as error:
        raise AttachFailed(f"the engine did not start it: {error}") from error
    door = ContainerDoor(engine, run, connection)
    await door.resize(start.size)
    return door


async def _hijacked(
    socket: str, path: str, run: ExecRun
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The engine's connection, from now on the command's. Raises OSError, EngineRefused."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=CHUNK)
    body = json.dumps({"Detach": False, "Tty": run.terminal}).encode()
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status != _SWITCHED:
            told = await reader.read(CHUNK)
            raise EngineRefused(status, told.decode(errors="replace")[:500])
    except (
        asyncio.IncompleteReadError,
        asyncio.LimitOverrunError,
        ValueError,
        IndexError,
    ) as error:
        writer.close()
        raise OSError(f"it speaks something else: {error!r}") from error
    except BaseException:
        writer.close()
        raise
    return reader, writer
