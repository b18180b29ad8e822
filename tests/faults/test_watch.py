"""Watchers of a server that is killed, floods them, or that they do not read from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from fault_zygote import ZygoteLauncher
from server_process import HatobaServer, configured, running_server
from waiting import PATIENCE, News, eventually
from wire import Wire

from hatoba.v1 import admin_pb2, job_pb2

Message = job_pb2.WatchJobsResponse
NULL = '[defaults]\ntrain = "null"\n[backends.null]\ntype = "null"\n'
KILLS = 5
FOLLOWED = 180.0
BATCH = 200
FLOOD = 1_000
BATCHES = 25
BEHIND = 5_000
STALLED = 50
MOST_GROWN = 120 << 20
"""For 24,000 jobs, the newest events in memory, and 50 watchers that do not read."""


@pytest.fixture(scope="module")
def launcher() -> Iterator[ZygoteLauncher]:
    """Starts servers in no time."""
    one = ZygoteLauncher()
    yield one
    one.close()


@pytest.fixture
async def server(tmp_path: Path, launcher: ZygoteLauncher) -> AsyncIterator[HatobaServer]:
    """A server whose jobs end at once."""
    data = configured(tmp_path / "data", NULL)
    async with running_server(data, worker=False, launcher=launcher) as one:
        yield one


@pytest.fixture
async def short(tmp_path: Path, launcher: ZygoteLauncher) -> AsyncIterator[HatobaServer]:
    """One that tells watchers early that they are too slow."""
    limits = f"[limits]\nwatch_behind = {BEHIND}\n"
    data = configured(tmp_path / "data", NULL + limits)
    async with running_server(data, worker=False, launcher=launcher) as one:
        yield one


class Watched:
    """Everything that one watcher heard, resuming with its cursor."""

    def __init__(self, server: HatobaServer) -> None:
        self.seqs: list[int] = []
        self.resyncs = 0
        self.news = News()
        self._server = server
        self._cursor = "0"

    async def follow(self) -> None:
        """Until cancelled, whatever becomes of servers meanwhile."""
        async with Wire(self._server) as wire:
            await eventually(partial(self._once, wire), FOLLOWED, despite=(grpc.aio.AioRpcError,))

    async def _once(self, wire: Wire) -> None:
        request = job_pb2.WatchJobsRequest(cursor=self._cursor)
        async for message in wire.stream(request, Message):
            self._cursor = message.cursor
            self.resyncs += message.HasField("resync")
            if message.HasField("event"):
                self.seqs.append(message.event.seq)
                self.news.tell()

    async def more(self) -> None:
        """Until it hears something that it has not heard yet."""
        heard = len(self.seqs)
        await self.news.until(lambda: len(self.seqs) > heard)


async def submit(wire: Wire, count: int, first: int, *, hold: bool = False) -> None:
    spec = job_pb2.JobSpec(name="w", command=["true"], hold=hold)
    items = [
        job_pb2.SubmitJobsItem(spec=spec, request_id=f"r{first + number}")
        for number in range(count)
    ]
    request = job_pb2.SubmitJobsRequest(items=items)
    await wire.call(request, job_pb2.SubmitJobsResponse, patience=PATIENCE)


async def settled(wire: Wire, jobs: int) -> int:
    """The newest position once all jobs have ended."""

    async def ended() -> bool:
        counted = await wire.call(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
        return counted.by_state.get("SUCCEEDED", 0) == jobs

    await eventually(ended)
    status = await wire.call(admin_pb2.GetServerStatusRequest(), admin_pb2.ServerStatus)
    return status.last_event


@pytest.mark.timeout(180)
async def test_every_event_is_told_once_however_often_the_server_is_killed(
    server: HatobaServer,
) -> None:
    """The kills come while jobs run and events are told."""
    watched = Watched(server)
    async with asyncio.TaskGroup() as group, Wire(server) as wire:
        follower = group.create_task(watched.follow(), name="watcher")
        for round_ in range(KILLS):
            await submit(wire, BATCH, round_ * BATCH)
            await watched.more()
            await server.kill()
            await server.start()
        last = await settled(wire, KILLS * BATCH)
        await watched.news.until(lambda: watched.seqs[-1:] >= [last])
        follower.cancel()
    assert watched.resyncs == 0
    assert watched.seqs == list(range(1, len(watched.seqs) + 1))


def memory(pid: int) -> int:
    """Resident bytes."""
    (line,) = [
        one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in one
    ]
    return int(line.split()[1]) * 1024


@pytest.mark.timeout(180)
async def test_watchers_that_do_not_read_cost_little_and_are_told_to_read_anew(
    short: HatobaServer,
) -> None:
    async with Wire(short) as wire, Wire(short) as slow:
        streams = [slow.stream(job_pb2.WatchJobsRequest(), Message) for _ in range(STALLED)]
        for stream in streams:
            assert (await anext(stream)).HasField("heartbeat")
        await submit(wire, FLOOD, 0, hold=True)
        before = memory(short.pid)
        for first in range(FLOOD, BATCHES * FLOOD, FLOOD):
            await submit(wire, FLOOD, first, hold=True)
        grown = memory(short.pid) - before
        lively = wire.stream(job_pb2.WatchJobsRequest(cursor=""), Message)
        assert (await anext(lively)).HasField("heartbeat")
        for stream in streams:
            async with asyncio.timeout(PATIENCE):
                messages = [message async for message in stream]
            *heard, last = messages
            assert last.HasField("resync")
            seqs = [message.event.seq for message in heard if message.HasField("event")]
            assert seqs == list(range(1, len(seqs) + 1))
            assert len(seqs) + BEHIND < int(last.cursor.partition(".")[2]) <= BATCHES * FLOOD
    assert grown < MOST_GROWN


async def test_a_flood_of_one_user_does_not_keep_another_waiting(server: HatobaServer) -> None:
    """Calls of one go on being answered, or refused with a delay; another's never are refused."""
    async with Wire(server) as wire:
        made = []
        for principal in ("flood", "calm"):
            request = admin_pb2.CreateTokenRequest(principal=principal, role=admin_pb2.ROLE_USER)
            made.append((await wire.once(request, admin_pb2.CreateTokenResponse)).secret)
        stop = asyncio.Event()
        took: list[float] = []
        codes: set[grpc.StatusCode] = set()
        loop = asyncio.get_running_loop()

        async def flood() -> None:
            async with Wire(server, token=made[0]) as one:
                while not stop.is_set():
                    request = job_pb2.SubmitJobRequest(
                        spec=job_pb2.JobSpec(name="f", command=["true"], hold=True)
                    )
                    try:
                        await one.once(request, job_pb2.Job)
                    except grpc.aio.AioRpcError as error:
                        codes.add(error.code())

        async with asyncio.TaskGroup() as group, Wire(server, token=made[1]) as calm:
            for number in range(100):
                group.create_task(flood(), name=f"flood-{number}")
            for _ in range(50):
                began = loop.time()
                await calm.once(job_pb2.CountJobsRequest(), job_pb2.CountJobsResponse)
                took.append(loop.time() - began)
            stop.set()
        assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert sorted(took)[len(took) // 2] < 1.0
