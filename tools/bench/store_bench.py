"""What the store costs: processor time per job submitted and per change applied, and rates.

Run it by hand: `.venv/bin/python tools/bench/store_bench.py [DIRECTORY]` (a temporary one by
default; figures depend on the disk beneath it).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hatoba_scheduler.domain.records import AttemptWrite, Change, Job, TaskWrite
from hatoba_scheduler.domain.states import AttemptState, JobState
from hatoba_scheduler.store.base import Stale, Store, Submission, Submitted
from hatoba_scheduler.store.samples import event_of, new_attempt, new_task, submission
from hatoba_scheduler.store.sqlite import open_store, tune_interpreter

BATCH = 1_000
ROUNDS = 20
STATES = (AttemptState.LAUNCHING, AttemptState.STARTING, AttemptState.RUNNING)


class Meter:
    """Processor and wall time of what runs inside."""

    def __init__(self, what: str, count: int) -> None:
        self._what = what
        self._count = count

    def __enter__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        cpu = (time.process_time() - self._cpu) / self._count * 1e6
        wall = (time.perf_counter() - self._wall) / self._count
        print(f"{self._what:<40} {cpu:8.1f} us cpu {wall * 1e6:8.1f} us wall {1 / wall:10,.0f}/s")


async def submit_batches(store: Store) -> list[Job]:
    """Batches of a thousand, one after the other; the jobs of the last."""
    await store.submit([submission() for _ in range(BATCH)])
    batches = [[submission() for _ in range(BATCH)] for _ in range(ROUNDS)]
    last: Sequence[object] = ()
    with Meter(f"submit, {BATCH} a call", BATCH * ROUNDS):
        for batch in batches:
            last = await store.submit(batch)
    return [found.job for found in last if isinstance(found, Submitted)]


async def submit_singly(store: Store, at_once: int, rounds: int) -> None:
    """One job a call, so many callers at once, each its next as soon as its last is stored."""

    async def caller(items: Sequence[Submission]) -> None:
        for item in items:
            await store.submit([item])

    items = [[submission() for _ in range(rounds)] for _ in range(at_once)]
    with Meter(f"submit, 1 a call, {at_once} at once", at_once * rounds):
        async with asyncio.TaskGroup() as group:
            for some in items:
                group.create_task(caller(some))


def step(job: Job, number: int) -> Change:
    """The next step of a job's one task: job, task, attempt and two events."""
    state = STATES[min(number, 2)]
    before, after = job.version, replace(job, version=job.version + 1, state=JobState.RUNNING)
    task = replace(new_task(job), state=JobState.RUNNING, version=number + 1)
    attempt = replace(new_attempt(job), state=state, version=number + 1)
    event = event_of(job, number + 2)
    return Change(
        after,
        before,
        (TaskWrite(task, number),),
        (AttemptWrite(attempt, number),),
        (event, replace(event, job_seq=number + 3)),
    )


async def apply_changes(store: Store, jobs: Sequence[Job], size: int) -> None:
    """So many changes a call; every job takes five steps."""
    calls: list[list[Change]] = []
    for number in range(5):
        steps = [step(job, number) for job in jobs]
        calls += [steps[start : start + size] for start in range(0, len(steps), size)]
        jobs = [replace(job, version=job.version + 1) for job in jobs]
    results: list[object] = []
    with Meter(f"apply, {size} changes a call", len(jobs) * 5):
        for call in calls:
            results += await store.apply(call)
    assert Stale.STALE not in results


async def run(directory: Path) -> None:
    """All figures."""
    tune_interpreter()
    store = await open_store(directory, lambda: 1)
    try:
        jobs = await submit_batches(store)
        await submit_singly(store, 1, 500)
        await submit_singly(store, 50, 100)
        await apply_changes(store, jobs[:500], 100)
        await apply_changes(store, jobs[500:], 500)
        await apply_changes(store, (await submit_batches(store))[:1000], 1)
        live = len((await store.live(1_000_000)).jobs)
        with Meter("live, a job", live):
            await store.live(1_000_000)
    finally:
        await store.close()


def main() -> None:
    """Print the table."""
    if len(sys.argv) > 1:
        asyncio.run(run(Path(sys.argv[1])))
        return
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


if __name__ == "__main__":
    main()
