"""Ending a host's containers along with its processes, when all of it is to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from hatoba_worker import config, tinyfiles
from hatoba_worker.executors.containers import choosing, manifest
from hatoba_worker.executors.containers.engine import (
    Engine,
    EngineAway,
    EngineMissing,
    EngineRefused,
    connected,
)
from hatoba_worker.executors.containers.starting import STOPPED
from hatoba_worker.host import Identity

LOOK_AGAIN = 0.1


async def end_containers(data: Path, grace: float, environ: Mapping[str, str] = os.environ) -> None:
    """End what runs for the worker of a directory, after `grace` seconds by force.

    The containers stay, for the next worker to tell how they ended. Where no engine answers there
    is nothing that could be ended.
    """
    found = await asyncio.to_thread(_found, data, environ)
    if found is not None:
        await end_those_of(*found, grace)


async def end_those_of(socket: str, key: str, grace: float) -> None:
    """The same for whose containers an engine knows by `key`."""
    with contextlib.suppress(EngineAway, EngineMissing):
        async with connected(socket) as engine:
            await _signal(engine, key, "SIGTERM" if grace else "SIGKILL")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    while await _running(engine, key):  # noqa: ASYNC110 - the engine is asked
                        await asyncio.sleep(LOOK_AGAIN)
            await _signal(engine, key, "SIGKILL")


def _found(data: Path, environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The engine's socket, and what this host's containers are known by."""
    try:
        told = config.load(data)
        name = Identity.find(data, told.name, embedded=told.embedded).name
    except (config.BadConfig, ValueError, OSError):
        return None
    socket = choosing.socket_of(told.engine, environ)
    return (socket, choosing.key_of(name, data)) if tinyfiles.exists(socket) else None


async def _running(engine: Engine, key: str) -> list[tuple[str, str]]:
    """Ids and homes of those that run."""
    return [
        (one["Id"], one["Labels"][manifest.HOME_LABEL])
        for one in await engine.list(f"{manifest.HOST}={key}")
        if one["State"] in ("running", "paused")
    ]


async def _signal(engine: Engine, key: str, signal: str) -> None:
    for name, home in await _running(engine, key):
        with contextlib.suppress(OSError):
            await asyncio.to_thread(tinyfiles.write, f"{home}/{STOPPED}", b"")
        with contextlib.suppress(EngineRefused):
            await engine.signal(name, signal)
