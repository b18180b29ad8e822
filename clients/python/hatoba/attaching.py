"""Into running jobs: a command beside a task, and connections to its ports."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from hatoba.errors import HatobaError, StreamBroken, Unavailable
from hatoba.transport import Transport
from hatoba.v1 import job_pb2

CHUNK = 65_536
"""Bytes of one piece at most."""
Said = AsyncIterator[job_pb2.AttachInput]


async def exec_in_job(
    transport: Transport, start: job_pb2.ExecStart, said: Said
) -> AsyncGenerator[job_pb2.AttachOutput, None]:
    """Run a command beside a task, and yield what it writes; how it ended comes last.

    Nothing of `said` is read before it runs. Leaving the generator ends the command. Raises a
    HatobaError: Unavailable when the connection is lost, and the command ended with it.
    """
    started = asyncio.Event()
    for last in (False, True):
        told = _outputs(transport, start, said, started)
        try:
            async with contextlib.aclosing(told):
                async for output in told:
                    yield output
            return
        except StreamBroken:
            if last or started.is_set():
                raise


async def _outputs(
    transport: Transport, start: job_pb2.ExecStart, said: Said, started: asyncio.Event
) -> AsyncGenerator[job_pb2.AttachOutput, None]:
    async def requests() -> AsyncIterator[job_pb2.ExecJobRequest]:
        yield job_pb2.ExecJobRequest(start=start)
        await started.wait()
        async for one in said:
            yield job_pb2.ExecJobRequest(input=one)

    told = transport.exchange(requests(), job_pb2.ExecJobRequest, job_pb2.ExecJobResponse)
    async with contextlib.aclosing(told):
        async for message in told:
            started.set()
            if message.HasField("output"):
                yield message.output
            if message.output.HasField("ended"):
                return
    raise Unavailable("the server ended the connection, and with it the command")


@dataclass(frozen=True, slots=True)
class Forward:
    """A port here that leads to a port of a task; `local` 0: one that is free."""

    job: str
    index: int
    local: int
    remote: int

    @property
    def start(self) -> job_pb2.ForwardStart:
        """What a connection to it begins with."""
        return job_pb2.ForwardStart(job=self.job, index=self.index, port=self.remote)


async def forward_port(
    transport: Transport,
    forward: Forward,
    listening: Callable[[int], None],
    problem: Callable[[HatobaError], None],
) -> None:
    """Serve a port of this machine until cancelled, to this machine alone.

    Each connection to it is one to the task. `listening` hears which port it is, `problem` why a
    connection was ended. Raises OSError for a port that is taken.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _carry(transport, forward, reader, writer)
        except StreamBroken as error:
            problem(await _reason(transport, forward) or error)
        except HatobaError as error:
            problem(error)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", forward.local, limit=CHUNK)
    async with server:
        listening(server.sockets[0].getsockname()[1])
        await server.serve_forever()


async def _reason(transport: Transport, forward: Forward) -> HatobaError | None:
    """Why a connection is refused; None: it is not."""

    async def requests() -> AsyncIterator[job_pb2.ForwardJobRequest]:
        yield job_pb2.ForwardJobRequest(start=forward.start)

    told = transport.exchange(requests(), job_pb2.ForwardJobRequest, job_pb2.ForwardJobResponse)
    try:
        async with contextlib.aclosing(told):
            await anext(told, None)
    except HatobaError as error:
        return None if isinstance(error, StreamBroken) else error
    return None


async def _carry(
    transport: Transport,
    forward: Forward,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    async def requests() -> AsyncIterator[job_pb2.ForwardJobRequest]:
        yield job_pb2.ForwardJobRequest(start=forward.start)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK):
                yield job_pb2.ForwardJobRequest(input=job_pb2.AttachInput(data=data))
        yield job_pb2.ForwardJobRequest(input=job_pb2.AttachInput(end=True))

    told = transport.exchange(requests(), job_pb2.ForwardJobRequest, job_pb2.ForwardJobResponse)
    async with contextlib.aclosing(told):
        async for message in told:
            if message.output.data:
                writer.write(message.output.data)
                await writer.drain()
            if message.output.end:
                # Most protocols are over then; one that still sends here would not be heard.
                return
