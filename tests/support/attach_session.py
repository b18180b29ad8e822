"""The server's side of one session: what somebody says through it, and what came back."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from waiting import News

from hatoba.v1 import job_pb2, worker_pb2


class AttachSession:
    """One session, as the test that asked for it sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out = b""
        self.error = b""
        self.refused = ""
        self.began = False
        self.port_ended = False
        self.ended: job_pb2.ExecEnded | None = None
        self._said: asyncio.Queue[job_pb2.AttachInput | None] = asyncio.Queue(1000)
        self._news = News()

    def say(self, data: bytes) -> None:
        """Bytes for its stdin or port."""
        self._said.put_nowait(job_pb2.AttachInput(data=data))

    def end_input(self) -> None:
        """No more will come."""
        self._said.put_nowait(job_pb2.AttachInput(end=True))

    def resize(self, rows: int, columns: int) -> None:
        """The terminal has another size."""
        size = job_pb2.TerminalSize(rows=rows, columns=columns)
        self._said.put_nowait(job_pb2.AttachInput(size=size))

    def leave(self) -> None:
        """End it from this side."""
        self._said.put_nowait(None)

    async def begun(self) -> None:
        """Wait until it is attached."""
        await self._news.until(lambda: self.began)

    async def told(self, text: bytes) -> None:
        """Wait until `text` came."""
        await self._news.until(lambda: text in self.out)

    async def end(self) -> job_pb2.ExecEnded:
        """How its command ended, waited for."""
        await self._news.until(lambda: self.ended is not None)
        assert self.ended is not None
        return self.ended

    async def refusal(self) -> str:
        """Why nothing was begun, waited for."""
        await self._news.until(lambda: bool(self.refused))
        return self.refused

    async def serve(self, first: worker_pb2.WorkerServiceAttachRequest, context: Any) -> None:
        """Answer the worker's call until this side leaves, or there is nothing more to come."""
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write(context))
            message: Any = first
            while message is not grpc.aio.EOF:
                self._take(message)
                if self.ended is not None or self.refused:
                    break
                reader = tasks.create_task(context.read())
                await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
                if not reader.done():
                    reader.cancel()
                    return
                message = reader.result()
            writer.cancel()

    async def _write(self, context: Any) -> None:
        while (said := await self._said.get()) is not None:
            await context.write(worker_pb2.WorkerServiceAttachResponse(input=said))

    def _take(self, message: worker_pb2.WorkerServiceAttachRequest) -> None:
        self.refused = message.refused
        self.began = self.began or not message.refused
        self.out += message.output.data
        self.error += message.output.stderr
        self.port_ended = self.port_ended or message.output.end
        if message.output.HasField("ended"):
            self.ended = message.output.ended
        self._news.tell()
