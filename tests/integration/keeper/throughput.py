"""How many processes a second, against a bare loop. Run by hand: `python .../throughput.py [N]`.

Both start /bin/true N times with two log files each. Rounds alternate; the medians are compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hatoba_worker.keeper.client import KeeperClient
from hatoba_worker.keeper.ensure import ensure_keeper
from hatoba_worker.keeper.messages import Exited, Spawn

ROUNDS = 5


def bare(directory: Path, count: int) -> float:
    """Start `count` processes one by one without waiting; return how many a second."""
    directory.mkdir()
    begun = time.perf_counter()
    for number in range(count):
        logs = [open(directory / f"{number}.{kind}", "ab") for kind in ("out", "err")]  # noqa: SIM115
        process = subprocess.Popen(
            ["/bin/true"],
            stdin=subprocess.DEVNULL,
            stdout=logs[0],
            stderr=logs[1],
            cwd=directory,
            env={"A": "1"},
            start_new_session=True,
        )
        process.returncode = 0
        for log in logs:
            log.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0):
            pass
    return count / (time.perf_counter() - begun)


async def kept(keeper: KeeperClient, directory: Path, count: int) -> float:
    """Start `count` processes through the keeper and hear of every end."""
    os.mkdir(directory)
    spawns = [
        Spawn(
            attempt=f"{directory.name}-{number}",
            argv=["/bin/true"],
            env={"A": "1"},
            cwd=str(directory),
            stdout=str(directory / f"{number}.out"),
            stderr=str(directory / f"{number}.err"),
        )
        for number in range(count)
    ]
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        group.create_task(keeper.spawn_many(spawns), name="spawns")
        left = count
        async for event in keeper.events():
            left -= isinstance(event, Exited)
            if not left:
                break
    rate = count / (time.perf_counter() - begun)
    await keeper.forget_many(spawn.attempt for spawn in spawns)
    return rate


async def main(count: int) -> None:
    """Print both rates and their ratio."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        ensure_keeper(data)
        async with await KeeperClient.connect(data) as keeper:
            await keeper.watch()
            floor, ours = [], []
            for number in range(ROUNDS):
                floor.append(bare(data / f"bare-{number}", count))
                ours.append(await kept(keeper, data / f"kept-{number}", count))
            await keeper.shutdown(stop_attempts=True)
    bare_rate, kept_rate = statistics.median(floor), statistics.median(ours)
    print(f"bare {bare_rate:,.0f}/s  keeper {kept_rate:,.0f}/s  {kept_rate / bare_rate:.2f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
