"""Names to do something about: once each, now or later."""

from __future__ import annotations

import asyncio

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.todo import Todo


async def test_a_name_is_there_once_and_in_order() -> None:
    todo = Todo(FakeClock())
    for name in ("a", "b", "a", "c"):
        todo.add(name)
    assert await todo.take(2) == ["a", "b"]
    assert await todo.take(2) == ["c"]


async def test_what_is_due_later_comes_when_it_is_due() -> None:
    clock = FakeClock()
    todo = Todo(clock)
    todo.add_later("late", 5.0)
    todo.add_later("soon", 1.0)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(todo.take(9), name="first")
        await clock.advance(0.9)
        assert not first.done()
        await clock.advance(0.2)
        assert first.result() == ["soon"]
        second = group.create_task(todo.take(9), name="second")
        await clock.advance(10.0)
    assert second.result() == ["late"]
    assert len(todo) == 0


async def test_what_is_added_meanwhile_is_not_held_up_by_what_is_due_later() -> None:
    todo = Todo(FakeClock())
    todo.add_later("late", 5.0)
    async with asyncio.TaskGroup() as group:
        taken = group.create_task(todo.take(9), name="take")
        await asyncio.sleep(0)
        todo.add("now")
    assert taken.result() == ["now"]
    assert "late" in todo


async def test_a_name_that_is_to_be_done_now_is_not_put_off() -> None:
    todo = Todo(FakeClock())
    todo.add("a")
    todo.add_later("a", 5.0)
    assert await todo.take(9) == ["a"]
    assert "a" not in todo


async def test_what_is_discarded_never_comes() -> None:
    clock = FakeClock()
    todo = Todo(clock)
    todo.add("a")
    todo.add_later("b", 1.0)
    todo.discard("a")
    todo.discard("b")
    todo.add_later("c", 2.0)
    async with asyncio.TaskGroup() as group:
        taken = group.create_task(todo.take(9), name="take")
        await clock.advance(3.0)
    assert taken.result() == ["c"]
