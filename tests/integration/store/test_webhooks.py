"""Webhooks over the real store: what is kept, and what is given up when its week is over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from hatoba_plugins.clock import SystemClock
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.webhooks import Webhooks
from hatoba_scheduler.domain.webhooks import KEPT, Webhook
from hatoba_scheduler.store.samples import first_event, new_job, submission
from hatoba_scheduler.store.sqlite import SqliteStore, open_store

ONE = Webhook(
    "u1", "default", "ci", "http://127.0.0.1:1/", "", False, ("end",), False, "key", "ann", 5, 0
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    one = await open_store(tmp_path, lambda: 1)
    yield one
    await one.close()


async def test_what_is_written_comes_back(store: SqliteStore) -> None:
    assert await store.webhooks.add(ONE)
    assert not await store.webhooks.add(replace(ONE, uid="u2"))
    assert await store.webhooks.all() == [ONE]
    changed = replace(
        ONE, url="http://b/", filter="queue = x", jobs_only=True, reasons=(), paused=True
    )
    await store.webhooks.put_settings(changed)
    assert await store.webhooks.all() == [changed]
    told = replace(changed, cursor=7, failures=2, last_error="no", next_try=9, given_up=1)
    await store.webhooks.put_progress(told)
    await store.webhooks.put_progress(replace(told, cursor=6, failures=0))
    assert await store.webhooks.all() == [told]
    await store.webhooks.delete("u1")
    await store.webhooks.delete("u1")
    assert await store.webhooks.all() == []
    await store.webhooks.put_progress(told)
    assert await store.webhooks.all() == []


class Later(SystemClock):
    """The system's clock, some time on."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.mark.parametrize("left", [1, -1])
async def test_a_week_after_it_happened_an_event_is_given_up(store: SqliteStore, left: int) -> None:
    clock = Later()
    for age in (KEPT - left * 60_000_000, 0):
        job = new_job()
        event = replace(first_event(job), time=round(clock.time() * 1e6) - age)
        await store.submit([replace(submission(job), event=event)])
    got: list[int] = []
    done = asyncio.Event()

    async def take(request: web.Request) -> web.Response:
        seq = int(json.loads(await request.read())["event"]["seq"])
        got.append(seq)
        if seq == 2 or len(got) > 2:
            done.set()
        return web.Response(status=503 if seq == 1 else 200)

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await store.webhooks.add(replace(ONE, url=url, reasons=()))
    webhooks = Webhooks(store, EventLog(store, 2), clock, ("*",))
    await webhooks.recover()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(webhooks.run(), name="webhooks")
        await done.wait()
        running.cancel()
    await runner.cleanup()
    if left > 0:
        assert got == [1, 1, 1]
        assert webhooks.get("default", "ci").given_up == 0
    else:
        assert got == [1, 2]
        assert webhooks.get("default", "ci").given_up == 1
