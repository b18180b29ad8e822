"""Into a pod: a command in its main container, a connection to a port of it, by WebSockets.

Each message is one byte, the channel, and what goes there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu import names
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached
from hatoba_plugins.backends.k8s_gpu.objects import Running, SeenPod
from hatoba_plugins.errors import Retry
from hatoba_plugins.pipes import Pipe
from hatoba_plugins.values import Ref

if TYPE_CHECKING:
    import aiohttp

EXEC_PROTOCOL = "v5.channel.k8s.io"
"""The first that can end stdin."""
PORT_PROTOCOL = "v4.channel.k8s.io"
_STDIN, _STDOUT, _STDERR, _STATUS, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_PORT, _PORT_ERROR = 0, 1
_END_OF_INPUT = b"\x04"
_NOT_STARTED = (("not found", 127), ("no such file", 127), ("permission denied", 126))
Said = AsyncIterator[job_pb2.AttachInput]
Message = tuple[int, bytes]
Speak = Callable[["aiohttp.ClientWebSocketResponse"], Coroutine[Any, Any, None]]
Output = job_pb2.AttachOutput
Outputs = AsyncGenerator[Output, None]


class Doors:
    """Attaches people to the main containers of pods."""

    def __init__(
        self,
        kube: Kube,
        ctx: BackendContext,
        pods_path: str,
        pod_of: Callable[[Ref], Awaitable[SeenPod | None]],
    ) -> None:
        self.tasks: asyncio.TaskGroup | None = None
        """Who has the sessions; none before the instance is open."""
        self._open: set[Pipe[Message]] = set()
        self._kube = kube
        self._ctx = ctx
        self._pods_path = pods_path
        self._pod_of = pod_of

    def close(self) -> None:
        """End all sessions."""
        for told in self._open:
            told.leave()
            told.end()

    async def exec(self, ref: Ref, start: job_pb2.ExecStart, said: Said) -> Outputs:
        """Run a command. Its directory is the container's, and so is its environment."""
        query = [("container", names.MAIN), ("stdin", "true"), ("stdout", "true")]
        query += [("tty", "true")] if start.terminal else [("stderr", "true")]
        query += [("command", word) for word in start.command]
        path = await self._path(ref, "exec")
        talk = self._talk(path, query, EXEC_PROTOCOL, lambda socket: _say(socket, start, said))
        async with aclosing(talk) as told:
            async for channel, data in told:
                if channel == _STATUS:
                    for output in ending(data):
                        yield output
                    return
                yield Output(stderr=data) if channel == _STDERR else Output(data=data)

    async def forward(self, ref: Ref, port: int, said: Said) -> Outputs:
        """One connection, made inside the pod."""
        path = await self._path(ref, "portforward")
        query = [("ports", str(port))]
        # What is told first of each channel is the port's number.
        named: set[int] = set()
        talk = self._talk(path, query, PORT_PROTOCOL, lambda socket: _send(socket, said))
        async with aclosing(talk) as told:
            async for channel, data in told:
                if data and channel not in named:
                    named.add(channel)
                elif channel == _PORT_ERROR and data:
                    raise Retry(f"port {port}: {data.decode(errors='replace')[:500]}")
                else:
                    yield Output(data=data)
        yield Output(end=True)

    async def _path(self, ref: Ref, what: str) -> str:
        pod = await self._pod_of(ref)
        if pod is None or pod.main.state is not Running.RUNNING:
            raise Retry("its container does not run (any more)")
        return f"{self._pods_path}/{pod.name}/{what}"

    async def _talk(
        self, path: str, query: list[tuple[str, str]], protocol: str, speak: Speak
    ) -> AsyncGenerator[Message, None]:
        """Channel and bytes of each message, first an empty one; meanwhile `speak`. Raises
        BackendError."""
        await self._ctx.budget("create")
        told: Pipe[Message] = Pipe()
        self._open.add(told)
        if self.tasks is None:
            raise Retry("it is not open")
        self.tasks.create_task(self._serve(told, (path, query, protocol), speak), name=path)
        try:
            while (message := await told.next()) is not None:
                yield message
        except Refusal as refusal:
            raise refusal.error() or Retry(refusal.message) from refusal
        except Unreached as error:
            raise Retry(str(error)) from error
        finally:
            self._open.discard(told)
            told.leave()

    async def _serve(
        self, told: Pipe[Message], where: tuple[str, list[tuple[str, str]], str], speak: Speak
    ) -> None:
        """Carry one session until nobody listens."""
        try:
            async with self._kube.socket(*where) as socket:
                await told.put((_STDOUT, b""))
                async with asyncio.TaskGroup() as tasks:
                    ways = [
                        tasks.create_task(_hear(socket, told), name="attached: output"),
                        tasks.create_task(speak(socket), name="attached: input"),
                    ]
                    await told.left()
                    for way in ways:
                        way.cancel()
        except* Exception as group:  # noqa: BLE001 - of one session; the others go on
            error: Exception = group
            while isinstance(error, ExceptionGroup):
                error = error.exceptions[0]
            known = isinstance(error, Refusal | Unreached)
            told.end(error if known else Unreached(f"{where[0]}: {error!r}", sent=True))
        finally:
            told.end()


async def _hear(socket: aiohttp.ClientWebSocketResponse, told: Pipe[Message]) -> None:
    async for message in socket:
        if isinstance(message.data, bytes) and message.data:
            await told.put((message.data[0], message.data[1:]))
    told.end()


async def _say(
    socket: aiohttp.ClientWebSocketResponse, start: job_pb2.ExecStart, said: Said
) -> None:
    if start.terminal:
        await socket.send_bytes(resized(start.size))
    async for one in said:
        await socket.send_bytes(spoken(one, terminal=start.terminal))


async def _send(socket: aiohttp.ClientWebSocketResponse, said: Said) -> None:
    """A port's connection cannot be ended by half: an end is kept to ourselves."""
    async for one in said:
        if one.data:
            await socket.send_bytes(bytes([_PORT]) + one.data)


def spoken(said: job_pb2.AttachInput, *, terminal: bool) -> bytes:
    """What somebody says to a command, as a message."""
    if said.HasField("size"):
        return resized(said.size)
    if said.end and terminal:
        return bytes([_STDIN]) + _END_OF_INPUT
    if said.end:
        return bytes([_CLOSE, _STDIN])
    return bytes([_STDIN]) + said.data


def resized(size: job_pb2.TerminalSize) -> bytes:
    """A terminal's size, as a message."""
    told = {"Width": size.columns or 80, "Height": size.rows or 24}
    return bytes([_RESIZE]) + json.dumps(told).encode()


def ending(status: bytes) -> list[Output]:
    """How a command ended, as the channel of its status tells it; why it was not started comes as
    its stderr."""
    told = json.loads(status)
    if told.get("status") == "Success":
        return [Output(ended=job_pb2.ExecEnded())]
    causes = (told.get("details") or {}).get("causes") or []
    codes = [one["message"] for one in causes if one.get("reason") == "ExitCode"]
    if codes and codes[0].isdigit():
        return [Output(ended=job_pb2.ExecEnded(exit_code=int(codes[0])))]
    message = str(told.get("message") or "it was not started")
    code = next((code for word, code in _NOT_STARTED if word in message.lower()), 126)
    ended = job_pb2.ExecEnded(exit_code=code)
    return [Output(stderr=message.encode() + b"\n"), Output(ended=ended)]
