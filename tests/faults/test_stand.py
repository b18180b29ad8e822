"""The stand where containers tell of themselves: it misses nothing, and sees who is there too."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fault_oracle import Line, read_lines
from fault_stand import Stand
from waiting import until

FIRST, SECOND = "h1-0123-0-1", "h1-0123-0-2"
OTHER = "h1-0123-1-1"


@asynccontextmanager
async def telling(stand: Stand, attempt: str) -> AsyncIterator[asyncio.StreamWriter]:
    """A container that started, and is there until it is killed."""
    _, writer = await asyncio.open_connection(stand.host, stand.port)
    writer.write(f"start {attempt} 1.0 7\n".encode())
    await writer.drain()
    yield writer
    writer.close()


async def lines(ledger: Path, count: int) -> list[Line]:
    """All lines once there are so many."""
    await until(lambda: len(read_lines(ledger)) >= count)
    return await asyncio.to_thread(read_lines, ledger)


def events(found: list[Line]) -> list[tuple[str, str]]:
    return [(line.event, line.attempt) for line in found]


async def test_a_command_tells_before_it_ends_with_its_code(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    async with Stand.running("127.0.0.1", ledger) as stand:
        environ = {**os.environ, "HATOBA_ATTEMPT": FIRST}
        process = await asyncio.create_subprocess_exec(*stand.python(10, 3), env=environ)
        assert await process.wait() == 3
        found = await asyncio.to_thread(read_lines, ledger)
    assert events(found) == [("start", FIRST), ("end", FIRST)]
    assert found[0].time <= found[1].time


async def test_one_that_starts_beside_another_of_its_task_is_seen(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    async with Stand.running("127.0.0.1", ledger) as stand, telling(stand, FIRST):
        await lines(ledger, 1)
        async with telling(stand, OTHER):
            await lines(ledger, 2)
            async with telling(stand, SECOND):
                found = await lines(ledger, 4)
    assert events(found) == [
        ("start", FIRST),
        ("start", OTHER),
        ("start", SECOND),
        ("overlap", SECOND),
    ]


async def test_one_that_was_killed_or_has_ended_is_not_there_any_more(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    async with Stand.running("127.0.0.1", ledger) as stand:
        async with telling(stand, FIRST):
            await lines(ledger, 1)
        async with telling(stand, SECOND) as second:
            second.write(f"end {SECOND} 2.0 7\n".encode())
            await lines(ledger, 3)
            async with telling(stand, "h1-0123-0-3"):
                found = await lines(ledger, 4)
    assert [event for event, _ in events(found)] == ["start", "start", "end", "start"]
