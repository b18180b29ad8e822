"""A process that writes to a store until it is killed, and says what was acknowledged.

Each line on stdout is the uid of a job whose submit, or whose change, has been answered.
"""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

from hatoba_scheduler.store.base import Applied, Submitted
from hatoba_scheduler.store.conformance import launched
from hatoba_scheduler.store.samples import new_job, submission
from hatoba_scheduler.store.sqlite import SqliteStore, open_store


async def write_on(store: SqliteStore, writer: int) -> None:
    """Submit and launch jobs, a few at a time."""
    turn = 0
    while True:
        turn += 1
        tag = f"{os.getpid()}-{writer}-{turn}"
        jobs = [replace(new_job(), uid=f"{tag}-{number}") for number in range(1 + turn % 7)]
        results = await store.submit([submission(job) for job in jobs])
        stored = [found.job for found in results if isinstance(found, Submitted)]
        say("submitted", [job.uid for job in stored])
        answers = await store.apply([launched(job) for job in stored])
        assert all(isinstance(answer, Applied) for answer in answers)
        say("launched", [job.uid for job in stored])


def say(what: str, uids: list[str]) -> None:
    """In one write: a reader never sees half a line of an acknowledgement that was not made."""
    os.write(1, "".join(f"{what} {uid}\n" for uid in uids).encode())


async def main() -> None:
    """Eight writers."""
    store = await open_store(Path(sys.argv[1]), lambda: 1)
    async with asyncio.TaskGroup() as group:
        for writer in range(8):
            group.create_task(write_on(store, writer), name=f"write-{writer}")


if __name__ == "__main__":
    asyncio.run(main())
