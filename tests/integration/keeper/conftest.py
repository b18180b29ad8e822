"""A real keeper on a directory of its own; whatever a test leaves, nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from server_process import runs
from waiting import PATIENCE, until

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.client import KeeperClient, KeeperGone
from hatoba_worker.keeper.ensure import ensure_keeper
from hatoba_worker.keeper.family import KEEPER_MARK
from hatoba_worker.keeper.keeper import data_key
from hatoba_worker.keeper.messages import Event, Exited, Gone, Limits, Spawn, Spawned, Stray


def working_directory(pid: int) -> str:
    """Return the directory `pid` works in, or nothing when it is gone."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd")
    return ""


class Watcher:
    """A client that watches, and remembers every event."""

    def __init__(self, client: KeeperClient) -> None:
        self.client = client
        self.seen: list[Event] = []
        self._events = client.events()

    async def exited(self, attempt: str) -> Exited:
        event = await self._first(lambda each: isinstance(each, Exited) and each.attempt == attempt)
        assert isinstance(event, Exited)
        return event

    async def gone(self, attempt: str) -> None:
        """Wait until the keeper says that nothing of `attempt` is left."""

        def says_so(event: Event) -> bool:
            match event:
                case Exited():
                    return event.attempt == attempt and event.gone
                case Gone():
                    return event.attempt == attempt
                case _:
                    return False

        await self._first(says_so)

    async def stray(self) -> Stray:
        event = await self._first(lambda each: isinstance(each, Stray))
        assert isinstance(event, Stray)
        return event

    async def hung_up(self) -> None:
        """Wait until the keeper closes the connection."""
        with contextlib.suppress(KeeperGone):
            async with asyncio.timeout(PATIENCE):
                while True:
                    self.seen.append(await anext(self._events))

    async def _first(self, fits: Callable[[Event], bool]) -> Event:
        for event in self.seen:
            if fits(event):
                return event
        async with asyncio.timeout(PATIENCE):
            while True:
                event = await anext(self._events)
                self.seen.append(event)
                if fits(event):
                    return event


class House:
    """A data directory, and the keepers that serve it one after another."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.pid = 0

    async def start(self, *options: str) -> None:
        """Start a keeper, unless one serves."""
        await asyncio.to_thread(ensure_keeper, self.data, options=options)
        self.pid = int((self.data / "keeper.lock").read_text())

    async def kill(self) -> None:
        """kill -9 the keeper."""
        handle = os.pidfd_open(self.pid)
        try:
            os.kill(self.pid, signal.SIGKILL)
            await asyncio.to_thread(select.select, [handle], [], [], PATIENCE)
        finally:
            os.close(handle)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[KeeperClient]:
        """Connect."""
        async with await KeeperClient.connect(self.data) as client:
            yield client

    @contextlib.asynccontextmanager
    async def watcher(self) -> AsyncIterator[Watcher]:
        """Connect, and watch."""
        async with self.client() as client:
            await client.watch()
            yield Watcher(client)

    def spawn(
        self,
        attempt: str,
        *argv: str,
        limits: Limits | None = None,
        linger_grace: float = 5.0,
        cwd: str | None = None,
    ) -> Spawn:
        """Describe a process whose logs are the files ATTEMPT.out and ATTEMPT.err."""
        return Spawn(
            attempt=attempt,
            argv=argv,
            env={"PATH": os.environ["PATH"], "HOUSE": str(self.data)},
            cwd=cwd or str(self.data),
            stdout=str(self.data / f"{attempt}.out"),
            stderr=str(self.data / f"{attempt}.err"),
            limits=limits or Limits(),
            linger_grace=linger_grace,
        )

    def shell(self, attempt: str, script: str, *, linger_grace: float = 5.0) -> Spawn:
        """Describe a shell script."""
        return self.spawn(attempt, "/bin/sh", "-c", script, linger_grace=linger_grace)

    def out(self, attempt: str) -> str:
        """Return what the attempt has printed."""
        path = self.data / f"{attempt}.out"
        return path.read_text() if path.exists() else ""

    async def printed(self, attempt: str, text: str) -> None:
        """Wait until the attempt has printed `text`."""
        await until(lambda: text in self.out(attempt))

    async def pid_printed(self, attempt: str) -> int:
        """Wait for the first line that the attempt prints, which is a pid."""
        await self.printed(attempt, "\n")
        return int(self.out(attempt).split()[0])

    async def alive(self, pid: int) -> bool:
        """Return whether `pid` is a process that still runs."""
        return await asyncio.to_thread(runs, pid)

    async def left(self) -> list[int]:
        """Return the running processes that carry this house's mark or stand in its directory."""
        return await asyncio.to_thread(self._left)

    def _left(self) -> list[int]:
        key = data_key(self.data)
        return [
            each.pid
            for each in procfs.everyone().values()
            if not each.dead
            and (
                procfs.environment(each.pid).get(KEEPER_MARK) == key
                or working_directory(each.pid) == str(self.data)
            )
        ]

    async def close(self) -> None:
        """End all, and see that it ended."""
        try:
            async with self.watcher() as watcher:
                await watcher.client.shutdown(stop_attempts=True, grace=0.0)
                await watcher.hung_up()
        except (OSError, KeeperGone):
            pass
        if self.pid:
            await until(lambda: not runs(self.pid))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A data directory with its keeper."""
    place = House(tmp_path)
    await place.start()
    yield place
    await place.close()
    assert await place.left() == []


@pytest.fixture
async def watcher(house: House) -> AsyncIterator[Watcher]:
    """A client of the house's keeper that watches."""
    async with house.watcher() as one:
        yield one


def started(reply: object) -> Spawned:
    """Return the reply to a spawn that must have started something."""
    assert isinstance(reply, Spawned), reply
    return reply
