"""The worker as a process: its lock, its log, its signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from hatoba_worker.config import BadConfig, Config, load
from hatoba_worker.executors.containers.ending import end_containers
from hatoba_worker.keeper.client import end_keeper
from hatoba_worker.process_log import configure_log
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
    options = parser.parse_args(arguments)
    data: Path = options.data.resolve()
    try:
        config = load(data, embedded=True) if options.embedded else load(data)
    except BadConfig as error:
        sys.stderr.write(f"hatoba worker: {error}\n")
        return USAGE
    return run(config)


def run(config: Config) -> int:
    """Work until SIGTERM or SIGINT; returns the exit code. 75: another worker has the directory."""
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
        asyncio.run(_until_told(worker))
    finally:
        os.close(lock)
    return 0


async def _until_told(worker: Worker) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: task.cancel() if task else None)
    with contextlib.suppress(asyncio.CancelledError):
        await worker.run()


async def end_all(data: Path, grace: float) -> None:
    """End what a directory's keeper and engine run, by force after `grace` seconds, and the
    keeper."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(end_keeper(data, grace), name="end keeper")
        tasks.create_task(end_containers(data, grace), name="end containers")


async def end(data: Path, *, everything: bool, grace: float) -> None:
    """End the worker of a directory, if one runs; with `everything` its jobs and keeper too."""
    await asyncio.to_thread(_end_worker, data)
    if everything:
        await end_all(data, grace)


def _end_worker(data: Path) -> None:
    try:
        handle = os.open(data / "worker.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.kill(int(os.pread(handle, 32, 0)), signal.SIGTERM)
            fcntl.flock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)
