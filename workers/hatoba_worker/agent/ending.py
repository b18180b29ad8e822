"""Ends an agent by its data directory, and what runs there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from hatoba_worker.agent import jobs, lock
from hatoba_worker.agent.engines import DeviceEngine
from hatoba_worker.agent.settings import BadSettings, Settings
from hatoba_worker.executors.containers.ending import end_those_of
from hatoba_worker.keeper.client import end_keeper


async def end(data: Path, environ: Mapping[str, str], *, everything: bool, grace: float) -> None:
    """End the agent, if one runs; with `everything` its models and jobs as well, by force after
    `grace` seconds, and their keepers. Raises OSError.
    """
    await asyncio.to_thread(lock.end, data)
    if not everything:
        return
    async with asyncio.TaskGroup() as tasks:
        for directory in (data, data / jobs.DIRECTORY):
            tasks.create_task(end_keeper(directory, grace), name=f"end keeper of {directory}")
        tasks.create_task(_end_containers(data, environ, grace), name="end containers")


async def _end_containers(data: Path, environ: Mapping[str, str], grace: float) -> None:
    engine = await asyncio.to_thread(_engine, data, environ)
    if not await asyncio.to_thread(engine.lacks):
        await end_those_of(engine.socket, engine.book.key, grace)


def _engine(data: Path, environ: Mapping[str, str]) -> DeviceEngine:
    try:
        settings = Settings.load(data)
    except BadSettings:
        settings = None
    return DeviceEngine.of(data, settings.engine if settings is not None else "", environ)
