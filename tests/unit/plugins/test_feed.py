"""News for watchers: nothing lost silently, nothing without bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from hatoba_plugins.feed import Feed
from hatoba_plugins.values import Gap, Observation, Phase, Synced, WatchItem


def seen(name: str) -> Observation:
    return Observation(name, Phase.RUNNING, exists=True)


async def read(watch: AsyncIterator[WatchItem], count: int) -> list[WatchItem]:
    return [await anext(watch) for _ in range(count)]


async def test_what_is_comes_before_synced_and_news_after() -> None:
    feed: Feed[WatchItem] = Feed()
    watch = feed.watch(lambda: [seen("a")])
    first = await anext(watch)
    feed.publish([seen("b")])
    assert [first, *await read(watch, 2)] == [seen("a"), Synced(), seen("b")]


async def test_a_slow_watcher_is_told_of_its_gap_and_others_are_not() -> None:
    feed: Feed[WatchItem] = Feed(limit=3)
    slow, quick = feed.watch(list), feed.watch(list)
    await read(slow, 1)
    await read(quick, 1)
    for number in range(10):
        feed.publish([seen(str(number))])
        assert await anext(quick) == seen(str(number))
    assert await anext(slow) == Gap()


async def test_a_reader_that_waits_is_woken() -> None:
    feed: Feed[WatchItem] = Feed()
    watch = feed.watch(list)
    await read(watch, 1)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(read(watch, 1))
        await asyncio.sleep(0)
        feed.publish([seen("a")])
    assert waiting.result() == [seen("a")]


async def test_an_ended_watch_gives_what_is_pending_and_ends() -> None:
    feed: Feed[WatchItem] = Feed()
    watch = feed.watch(list)
    await read(watch, 1)
    feed.publish([seen("a")])
    feed.end()
    assert [item async for item in watch] == [seen("a")]


async def test_dropped_news_is_never_told() -> None:
    feed: Feed[WatchItem] = Feed()
    watch = feed.watch(list)
    await read(watch, 1)
    feed.publish([seen("a")])
    feed.drop()
    feed.publish([seen("b")])
    assert await anext(watch) == seen("b")
