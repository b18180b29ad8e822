"""A keeper that does not answer: nothing freezes silently, and never do two of one model run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from blockbuster import BlockBuster
from edge_device import Shop
from edge_house import DEPLOYMENT, NAME, EdgeHouse
from replica_house import predict

from hatoba.v1 import worker_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_worker.agent.blobs import BlobStore
from hatoba_worker.agent.conductor import Conductor, Phase
from hatoba_worker.agent.content import ModelContent
from hatoba_worker.agent.journal import Journal
from hatoba_worker.agent.servers import STOP_MOST, Servers
from hatoba_worker.agent.slots import Release, Wanted
from hatoba_worker.agent.trees import DeviceTrees
from hatoba_worker.agent.watchdog import LOOK_EVERY, Watchdog
from hatoba_worker.keeper.client import end_keeper

pytestmark = pytest.mark.timeout(300)
STEP = 0.5
TINY = {"exists", "read_piece", "write", "swap"}


class Agent:
    """One run of what keeps models running, whose time is a test's."""

    def __init__(self, house: EdgeHouse, clock: FakeClock) -> None:
        data, self._clock = house.data, clock
        blobs = BlobStore(data / "blobs")
        trees = DeviceTrees(data / "trees", blobs)
        self.ended: list[int] = []
        self._watchdog = Watchdog({}, clock.monotonic, self.ended.append)
        self.content = ModelContent(data / "specs", trees, blobs, Shop(house.shop))
        self.servers = Servers(
            data,
            {"PATH": os.defpath},
            trees,
            self.content.spec_of,
            name="edge-1",
            pulse=self._watchdog.inner_beat("replicas"),
            sleep=clock.sleep,
            monotonic=clock.monotonic,
        )
        self.conductor = Conductor(
            Journal(data / "journal"),
            self.content,
            self.servers,
            "boot-1",
            beat=self._watchdog.inner_beat,
            sleep=clock.sleep,
        )

    @contextlib.asynccontextmanager
    async def runs(self) -> AsyncIterator[Agent]:
        await asyncio.to_thread(self.content.prepare)
        await self.conductor.load()
        begun = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            life = tasks.create_task(self._live(begun))
            await begun.wait()
            yield self
            life.cancel()

    async def _live(self, begun: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as tasks:
            await self.servers.begin(tasks)
            tasks.create_task(self.conductor.run())
            begun.set()

    async def for_long(self) -> None:
        """Let more time go by than the end of a server may take."""
        until = self._clock.monotonic() + 2 * STOP_MOST
        await self.until(lambda: self._clock.monotonic() > until)

    async def want(self, spec: worker_pb2.ReplicaSpec) -> None:
        release = Release(spec.revision, 0, await self.content.offer(spec))
        generation = self.conductor.slots.generation + 1
        assert await self.conductor.want(generation, {NAME: Wanted(release, 1.0)})

    async def until(self, what: Callable[[], object]) -> None:
        """Let time go on until something holds; the watchdog looks as it does."""
        looked = self._clock.monotonic()
        async with asyncio.timeout(60.0):
            while not what():
                await self._clock.advance(STEP)
                await asyncio.sleep(0.005)
                if self._clock.monotonic() - looked >= LOOK_EVERY:
                    looked = self._clock.monotonic()
                    self._watchdog.look()

    def is_good(self, revision: int) -> bool:
        status = self.conductor.status(NAME)
        running = status.running.revision if status.running is not None else 0
        return status.phase is Phase.GOOD and running == revision and bool(self.address)

    @property
    def address(self) -> str:
        return self.servers.address(NAME)


@pytest.fixture
async def house(
    tmp_path: Path, no_blocking_call_on_the_loop: BlockBuster
) -> AsyncIterator[EdgeHouse]:
    """Models, and a device's directory. What is tiny is read and written where it is needed."""
    for function in no_blocking_call_on_the_loop.functions.values():
        function.can_block_in("hatoba_worker/tinyfiles.py", TINY)
    made = await asyncio.to_thread(EdgeHouse, tmp_path)
    yield made
    await end_keeper(made.data, 0.0)
    assert await asyncio.to_thread(made.marked) == []


@contextlib.asynccontextmanager
async def hung_keeper(house: EdgeHouse) -> AsyncIterator[None]:
    """It answers nobody, until this is left."""
    keeper = int(await asyncio.to_thread((house.data / "keeper.lock").read_text))
    os.kill(keeper, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(keeper, signal.SIGCONT)


async def made(house: EdgeHouse, revision: int, bias: int) -> worker_pb2.ReplicaSpec:
    return await asyncio.to_thread(lambda: house.spec(revision, bias))


async def servers_of(house: EdgeHouse) -> list[str]:
    """Those that there are, or may be."""
    return await asyncio.to_thread(os.listdir, house.data / "replicas")


async def first_one(agent: Agent, house: EdgeHouse) -> str:
    """Have revision 1 running, good; where it answers."""
    await agent.want(await made(house, 1, 5))
    await agent.until(lambda: agent.is_good(1))
    return agent.address


async def test_what_does_not_end_is_told_and_nothing_takes_its_place_before_it_has(
    house: EdgeHouse,
) -> None:
    async with Agent(house, FakeClock()).runs() as agent:
        address = await first_one(agent, house)
        (only,) = await servers_of(house)
        async with hung_keeper(house):
            await agent.want(await made(house, 2, 50))
            await agent.until(agent.servers.problems)
            (told,) = agent.servers.problems()
            assert DEPLOYMENT in told
            assert "does not end" in told
            # It is waited for again and again; what was good answers all the while.
            await agent.for_long()
            assert (await predict(address, x=2))["y"] == 7
            assert await servers_of(house) == [only]
            assert agent.ended == []
        await agent.until(lambda: agent.is_good(2))
        assert (await predict(agent.address, x=2))["y"] == 52
        assert agent.servers.problems() == []


async def test_an_agent_that_begins_meanwhile_waits_for_it_as_well(house: EdgeHouse) -> None:
    clock = FakeClock()
    async with Agent(house, clock).runs() as agent:
        address = await first_one(agent, house)
        (only,) = await servers_of(house)
        hung = hung_keeper(house)
        await hung.__aenter__()
        await agent.want(await made(house, 2, 50))
        await agent.until(agent.servers.problems)
    async with Agent(house, clock).runs() as agent:
        await agent.until(agent.servers.problems)
        assert "does not answer" in agent.servers.problems()[0]
        assert (await predict(address, x=2))["y"] == 7
        assert await servers_of(house) == [only]
        await hung.__aexit__(None, None, None)
        most = 0

        def is_good() -> bool:
            nonlocal most
            most = max(most, len(os.listdir(house.data / "replicas")))
            return agent.is_good(2)

        await agent.until(is_good)
        assert most == 1
        assert agent.servers.problems() == []
