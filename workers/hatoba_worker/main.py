"""The worker as a process: its lock, its log, its signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from hatoba_worker import watched
from hatoba_worker.config import BadConfig, Config, load
from hatoba_worker.executors.containers.ending import end_containers
from hatoba_worker.holders import end_holder
from hatoba_worker.keeper.client import end_keeper
from hatoba_worker.process_log import configure_log
from hatoba_worker.watched import IDLE, IDLED, UNDER
from hatoba_worker.worker import AlreadyRuns, Worker, hold

log = structlog.get_logger(__name__)

HELD = 75
USAGE = 78


def main(arguments: Sequence[str]) -> int:
    """`python -m hatoba_worker run --data DIR [--embedded]`: what a keeper supervises."""
    parser = argparse.ArgumentParser(prog="hatoba-worker", description="Runs jobs of a server.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="work with the settings in DATA/worker.json")
    command.add_argument("--data", type=Path, required=True, help="data directory")
    command.add_argument("--embedded", action="store_true", help="the server is on this directory")
    command.add_argument(
        IDLE,
        dest="idle",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="end after so long without a job",
    )
    command.add_argument(
        UNDER, dest="under", action="store_true", help="end when standard input does"
    )
    options = parser.parse_args(arguments)
    data: Path = options.data.resolve()
    try:
        config = load(data, embedded=True) if options.embedded else load(data)
    except BadConfig as error:
        sys.stderr.write(f"hatoba worker: {error}\n")
        return USAGE
    return run(config, Life(options.idle, options.under))


@dataclass(frozen=True, slots=True)
class Life:
    """When a worker ends by itself: after `idle` seconds without a job (0: never), and with whoever
    has the other end of its standard input."""

    idle: float = 0.0
    under: bool = False


def run(config: Config, life: Life = Life()) -> int:
    """Work until SIGTERM or SIGINT; returns the exit code. 75: another worker has the directory,
    10: it had no job for as long as `life` says.
    """
    configure_log()
    # What lives here lives long: frequent full collections would only walk it.
    gc.set_threshold(20_000, 20, 50)
    try:
        lock = hold(config.data)
    except AlreadyRuns as error:
        sys.stderr.write(f"hatoba worker: {error}\n")
        return HELD
    try:
        worker = Worker(config, os.environ)
    except ValueError as error:
        sys.stderr.write(f"hatoba worker: {error}\n")
        return USAGE
    try:
        return IDLED if asyncio.run(_until_told(worker, life)) else 0
    finally:
        os.close(lock)


async def _until_told(worker: Worker, life: Life) -> bool:
    """Whether it ended for want of a job."""
    loop, idled = asyncio.get_running_loop(), asyncio.Event()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            if life.idle:
                idle = _then(watched.idle(worker.holds, life.idle), idled.set)
                tasks.create_task(_then(idle, task.cancel), name="idle")
            if life.under:
                tasks.create_task(_then(watched.parent_gone(), task.cancel), name="parent")
            await worker.run()
    return idled.is_set()


async def _then(end: Awaitable[None], ended: Callable[[], object]) -> None:
    await end
    ended()


async def end_all(data: Path, grace: float) -> None:
    """End what a directory's keeper and engine run, by force after `grace` seconds, and the
    keeper."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(end_keeper(data, grace), name="end keeper")
        tasks.create_task(end_containers(data, grace), name="end containers")


async def end(data: Path, *, everything: bool, grace: float) -> None:
    """End the worker of a directory, if one runs; with `everything` its jobs and keeper too."""
    await asyncio.to_thread(end_holder, data / "worker.lock")
    if everything:
        await end_all(data, grace)
