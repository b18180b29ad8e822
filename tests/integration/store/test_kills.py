"""kill -9 in the middle of writing: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import pytest
import store_writer
from store_faults import contents

from hatoba_scheduler.store.sqlite import open_store


@pytest.mark.faults
async def test_what_was_acknowledged_survives_kills(tmp_path: Path, full_round: bool) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    acknowledged: set[str] = set()
    for _ in range(100 if full_round else 8):
        lines = await asyncio.to_thread(_kill_after, tmp_path, chance.randrange(20, 600))
        acknowledged |= set(lines)
        await _check(tmp_path, acknowledged)
    assert len(acknowledged) > 100


def _kill_after(directory: Path, lines: int) -> list[str]:
    """Start a writer, kill it after so many acknowledgements; all that it made."""
    command = [sys.executable, store_writer.__file__, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = [process.stdout.readline() for _ in range(lines)]
        assert all(found), "the writer ended by itself"
        process.kill()
        rest, _ = process.communicate()
    return [line.strip() for line in [*found, *rest.splitlines()]]


async def _check(directory: Path, acknowledged: set[str]) -> None:
    store = await open_store(directory, lambda: 1)
    tail = (await store.event_bounds())[1]
    live = await store.live(1_000_000)
    await store.close()
    jobs = {job.uid for job in live.jobs}
    tasks = {task.job_uid for task in live.tasks}
    assert {line.split()[1] for line in acknowledged if line.startswith("submitted")} <= jobs
    assert {line.split()[1] for line in acknowledged if line.startswith("launched")} <= tasks
    assert {attempt.job_uid for attempt in live.attempts} == tasks
    found = await asyncio.to_thread(contents, directory / "hatoba.db")
    assert [row[0] for row in found["events"]] == list(range(1, tail + 1))
    assert tail == len(jobs) + len(tasks)
    numbers = sorted(row[1] for row in found["jobs"])
    assert numbers == list(range(1, len(jobs) + 1))
    assert len(found["requests"]) == len(jobs)
    assert {row[-1] or row[0] for row in found["jobs"]} == {row[0] for row in found["specs"]}
