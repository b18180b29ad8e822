"""Watchers in a process of their own: each follows one team's jobs; prints when it hears of them.

Reads from its arguments where the server is and which watchers it keeps; prints `ready` once all of
them follow, and, when its input ends, the seconds from each event's time to its arrival as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import grpc.aio

from hatoba.v1 import job_pb2, job_pb2_grpc

A_CHANNEL = 90
"""Streams on one connection; the server allows 100."""


class Watchers:
    """Watchers `first` to `first + count`, of as many teams as there are."""

    def __init__(self, address: str, token: str, teams: int) -> None:
        self._address = address
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._teams = teams
        self.delays: list[float] = []

    async def follow(self, first: int, count: int) -> None:
        """Until the input ends."""
        async with asyncio.TaskGroup() as group:
            ready = asyncio.Semaphore(0)
            tasks = [
                group.create_task(
                    self._channel(range(start, min(start + A_CHANNEL, first + count)), ready),
                    name=f"channel-{start}",
                )
                for start in range(first, first + count, A_CHANNEL)
            ]
            for _ in range(count):
                await ready.acquire()
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.read)
            for task in tasks:
                task.cancel()

    async def _channel(self, numbers: range, ready: asyncio.Semaphore) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._address, options=options) as channel:
            stub = job_pb2_grpc.JobServiceStub(channel)
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(self._watch(stub, number, ready), name=f"watch-{number}")

    async def _watch(
        self, stub: job_pb2_grpc.JobServiceAsyncStub, number: int, ready: asyncio.Semaphore
    ) -> None:
        request = job_pb2.WatchJobsRequest(filter=f"labels.team = t{number % self._teams}")
        messages = aiter(stub.WatchJobs(request, metadata=self._metadata))
        # Without a cursor the first message says where the watch begins.
        await anext(messages)
        ready.release()
        async for message in messages:
            if message.HasField("event"):
                told = message.event.time
                self.delays.append(time.time() - told.seconds - told.nanos / 1e9)


async def main(address: str, token_file: str, first: int, count: int, teams: int) -> None:
    """Follow, and tell how late it was."""
    token = await asyncio.to_thread(Path(token_file).read_text)
    watchers = Watchers(address, token.strip(), teams)
    await watchers.follow(first, count)
    print(json.dumps(watchers.delays))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
