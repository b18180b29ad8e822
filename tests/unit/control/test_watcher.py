"""A watcher of a server that is never quiet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
from domain_rows import NOW, new_job

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.domain.records import Event
from hatoba_scheduler.domain.transitions import submitted
from hatoba_scheduler.services import watch as watch_module
from hatoba_scheduler.services.watch import Watcher
from hatoba_scheduler.store.base import ServerIdentity, Store

Message = job_pb2.WatchJobsResponse


class Busy:
    """Events of other projects' jobs, one after another, for ever; and the store of them."""

    identity = ServerIdentity("cluster", 1)
    newest = 0

    async def read(self, after: int) -> Sequence[Event]:
        await asyncio.sleep(0)
        return [replace(submitted(new_job(), NOW), seq=after + 1, project="other")]

    async def event_bounds(self) -> tuple[int, int]:
        return 1, 0


async def watched(stopping: asyncio.Event) -> list[Message]:
    """What a watcher is told, at most three messages."""
    busy = Busy()
    watcher = Watcher(cast(EventLog, busy), cast(Store, busy), stopping)
    told: list[Message] = []
    async for message in watcher.watch(job_pb2.WatchJobsRequest(), []):
        told.append(message)
        if len(told) == 3:
            break
    return told


async def test_it_is_told_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "HEARTBEAT", 0.0)
    told = await watched(asyncio.Event())
    assert [message.WhichOneof("kind") for message in told] == ["heartbeat"] * 3
    assert told[1].cursor != told[2].cursor


async def test_it_is_told_when_the_server_stops() -> None:
    stopping = asyncio.Event()
    stopping.set()
    told = await watched(stopping)
    assert told[-1].end.reason == "shutdown"
