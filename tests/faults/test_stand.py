"""The stand where containers tell of themselves misses nothing that they tell."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from fault_oracle import Line, read_lines
from fault_stand import Stand
from testbed_fixtures import DockerEngine
from waiting import until

ATTEMPT = "h1-0123-0-1"


async def told(ledger: Path, *command: str, **environ: str) -> tuple[int | None, list[Line]]:
    """What a command told, once it has ended with its code."""
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **environ})
    code = await process.wait()
    return code, await asyncio.to_thread(read_lines, ledger)


def is_whole(lines: Sequence[Line], beats: int) -> bool:
    times = [line.time for line in lines]
    events = [line.event for line in lines]
    whole = ["start", *["beat"] * beats, "end"]
    return (
        events == whole and times == sorted(times) and {one.attempt for one in lines} == {ATTEMPT}
    )


async def test_a_command_has_told_all_before_it_ends_with_its_code(tmp_path: Path) -> None:
    async with Stand.running("127.0.0.1", tmp_path / "ledger") as stand:
        command = stand.python(450, 3)
        code, lines = await told(tmp_path / "ledger", *command, HATOBA_ATTEMPT=ATTEMPT)
    assert code == 3
    assert is_whole(lines, 2), lines


@pytest.mark.skipif(shutil.which("docker") is None, reason="needs Docker's command-line client")
async def test_so_has_one_of_busybox(docker_engine: DockerEngine, tmp_path: Path) -> None:
    async with Stand.running(docker_engine.gateway, tmp_path / "ledger") as stand:
        run = ["docker", "--host", docker_engine.host, "run", "--rm", "-e"]
        run += [f"HATOBA_ATTEMPT={ATTEMPT}", docker_engine.busybox, *stand.shell(450, 3)]
        code, lines = await told(tmp_path / "ledger", *run)
    assert code == 3
    assert is_whole(lines, 2), lines


async def test_a_line_that_a_kill_tore_is_none(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    async with Stand.running("127.0.0.1", ledger) as stand:
        _, writer = await asyncio.open_connection(stand.host, stand.port)
        writer.write(f"start {ATTEMPT} 1.0 7\nend {ATTEMPT}".encode())
        writer.close()
        await until(lambda: read_lines(ledger))
    assert await asyncio.to_thread(read_lines, ledger) == [Line("start", ATTEMPT, 1.0, 7)]
