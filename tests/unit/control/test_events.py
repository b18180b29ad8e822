"""The newest events in memory, in order, whatever the order in which commits are told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from domain_rows import NOW, new_job
from memory_store import MemoryStore

from hatoba_scheduler.control import events as events_module
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.domain.records import Event
from hatoba_scheduler.domain.transitions import submitted


def event(seq: int) -> Event:
    return replace(submitted(new_job(), NOW), seq=seq)


def log_over(store: MemoryStore, newest: int = 0) -> EventLog:
    return EventLog(store.as_store(), newest)


def seqs(events: list[Event]) -> list[int]:
    return [one.seq for one in events]


async def test_commits_told_out_of_order_are_put_in_order() -> None:
    log = log_over(MemoryStore())
    log.on_commit([], [event(3), event(4)])
    assert (log.newest, await log.read(0)) == (0, [])
    log.on_commit([], [event(1)])
    assert seqs(await log.read(0)) == [1]
    log.on_commit([], [event(2)])
    assert (log.newest, seqs(await log.read(1))) == (4, [2, 3, 4])


async def test_whoever_waits_is_woken_by_the_next_event_and_not_before() -> None:
    log = log_over(MemoryStore())
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(log.wait_beyond(seq)) for seq in (0, 1)]
        await asyncio.sleep(0)
        log.on_commit([], [event(2)])
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [False, False]
        log.on_commit([], [event(1)])
    await log.wait_beyond(1)


async def test_one_wakes_and_the_other_waits_on() -> None:
    log = log_over(MemoryStore())
    async with asyncio.TaskGroup() as group:
        first = group.create_task(log.wait_beyond(0))
        later = group.create_task(log.wait_beyond(1))
        await asyncio.sleep(0)
        log.on_commit([], [event(1)])
        await first
        assert not later.done()
        log.on_commit([], [event(2)])


async def test_older_events_are_read_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "KEPT", 3)
    store = MemoryStore(log=[event(seq) for seq in range(1, 8)])
    log = log_over(store, newest=2)
    for seq in range(3, 8):
        log.on_commit([], [event(seq)])
    assert seqs(await log.read(4)) == [5, 6, 7]
    assert store.reads == 0
    assert seqs(await log.read(3)) == [4, 5, 6, 7]
    assert store.reads == 1


async def test_a_reader_page_by_page_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "PAGE", 4)
    monkeypatch.setattr(events_module, "KEPT", 5)
    store = MemoryStore(log=[event(seq) for seq in range(1, 21)])
    log = log_over(store)
    log.on_commit([], store.log)
    found: list[int] = []
    while page := await log.read(found[-1] if found else 0):
        assert len(page) <= 4
        found.extend(seqs(page))
    assert found == list(range(1, 21))
