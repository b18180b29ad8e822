"""Logs that a backend keeps: followed while somebody reads, whole before the release, resumed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from domain_rows import NOW, intent, new_job

from hatoba_plugins.backend import Backend
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.errors import Retry
from hatoba_plugins.values import Capabilities, Handle, LogChunk, Ref
from hatoba_scheduler.control.calls import CallSettings
from hatoba_scheduler.control.instance import Instance, LoopContext
from hatoba_scheduler.control.launches import encode_handle
from hatoba_scheduler.control.ledger import Decide
from hatoba_scheduler.control.logs import LogStore
from hatoba_scheduler.control.observe import Step
from hatoba_scheduler.control.pulled_logs import GIVE_UP, INTEREST, PulledLogs
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain.records import Attempt, Change, Job
from hatoba_scheduler.domain.states import AttemptState, Release
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    claimed,
    ended,
    launch,
    launched,
    released,
    running,
)

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books


@dataclass
class Shelf:
    """A backend that keeps one stream per attempt, of which a test writes more."""

    runner: str = "pod"
    text: bytes = b""
    gone_below: int = 0
    fails: int = 0
    asked: list[tuple[str, int, bool]] = field(default_factory=list)
    closed: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def jobs(self) -> Shelf:
        return self

    def capabilities(self) -> Capabilities:
        return Capabilities(runner=self.runner, logs=True)

    def write(self, more: bytes) -> None:
        self.text += more
        self.grown.set()

    async def logs(
        self, ref: Ref, stream: str, offset: int, follow: bool
    ) -> AsyncIterator[LogChunk]:
        if stream != "stdout":
            return
        self.asked.append((ref.name, offset, follow))
        if self.fails:
            self.fails -= 1
            raise Retry("not now")
        try:
            while True:
                offset = max(offset, self.gone_below)
                while offset < len(self.text):
                    data = self.text[offset : offset + 3]
                    yield LogChunk(ref.name, stream, offset, data)
                    offset += len(data)
                if not follow:
                    return
                self.grown.clear()
                await self.grown.wait()
        finally:
            self.closed += 1


@dataclass
class Room:
    """Pulled logs at work over a running ledger, with one launched attempt."""

    clock: FakeClock
    books: Books
    store: LogStore
    pulled: PulledLogs
    job: Job
    let_go: list[str]
    root: Path

    @property
    def attempt(self) -> Attempt:
        rows = self.books.ledger.rows(self.job.uid)
        assert rows is not None
        return rows.attempts[0]

    async def decide(self, decide: Decide) -> None:
        await self.books.ledger.decide(self.job.uid, decide)

    async def view(self, step: Step) -> None:
        def decide(rows: Rows) -> Change | None:
            view = rows.view(0)
            assert view is not None
            return step(view)

        await self.decide(decide)

    async def end(self) -> bool:
        outcome = Outcome(AttemptState.SUCCEEDED, None)
        await self.view(lambda view: ended(view, outcome, NOW))
        return self.pulled.note(self.attempt)

    def size(self) -> int:
        path = self.root / self.attempt.job_uid / "0-1" / "stdout"
        return path.stat().st_size if path.exists() else 0

    async def stored(self) -> bytes:
        pieces, offset = [], 0
        while (piece := await self.store.read(self.attempt, "stdout", offset)) is not None:
            pieces.append(piece.data or b"?" * piece.gap)
            offset += len(pieces[-1])
        return b"".join(pieces)

    async def until(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not what():
                await self.clock.advance(0.01)
                await asyncio.sleep(0.001)


@asynccontextmanager
async def at_work(books: Books, shelf: Shelf, root: Path) -> AsyncIterator[Room]:
    clock, let_go = FakeClock(), list[str]()
    store = books.store.as_store()
    logs = LogStore(root)
    ctx = LoopContext(
        ledger=books.ledger,
        store=store,
        specs=SpecCache(store),
        clock=clock,
        rng=random.Random(1),
        cluster_id="cluster",
        describe=lambda *_: None,
        logs=logs,
    )
    instance = Instance("null", cast(Backend, shelf), ctx, CallSettings())
    pulled = PulledLogs(instance, logs, let_go.append)
    job = new_job()
    await books.submit(job)
    room = Room(clock, books, logs, pulled, job, let_go, root)
    await room.decide(lambda rows: launch(rows, intent(rows, fenced=True), NOW))
    await room.view(lambda view: launched(view, encode_handle(Handle(1, "x"))))
    await room.view(lambda view: running(view, NOW.time, "", NOW))
    assert not pulled.note(room.attempt)
    async with asyncio.TaskGroup() as group:
        loops = [
            group.create_task(loop(), name=loop.__name__)
            for loop in (pulled.ship_forever, pulled.follow_forever)
        ]
        yield room
        for task in loops:
            task.cancel()


async def test_what_ended_is_brought_whole_and_then_let_go(books: Books, tmp_path: Path) -> None:
    async with at_work(books, Shelf(text=b"one two three"), tmp_path) as room:
        name = room.attempt.name
        assert room.pulled.expects(name)
        assert await room.end()
        await room.until(lambda: bool(room.let_go))
        assert await room.stored() == b"one two three"
        assert not room.pulled.expects(name)
        assert not room.pulled.note(room.attempt)
    assert room.let_go == [name]


async def test_it_goes_on_from_what_is_stored(books: Books, tmp_path: Path) -> None:
    shelf = Shelf(text=b"one ")
    async with at_work(books, shelf, tmp_path) as room:
        await room.pulled.fresh(room.attempt.name)
        assert await room.stored() == b"one "
        shelf.write(b"two")
        await room.end()
        await room.until(lambda: bool(room.let_go))
        assert await room.stored() == b"one two"
    assert [offset for _, offset, _ in shelf.asked] == [0, 4]


async def test_what_the_backend_dropped_becomes_a_gap(books: Books, tmp_path: Path) -> None:
    shelf = Shelf(text=b"0123456789")
    async with at_work(books, shelf, tmp_path) as room:
        shelf.gone_below = 4
        await room.end()
        await room.until(lambda: bool(room.let_go))
        assert await room.stored() == b"????456789"


async def test_a_failure_is_tried_again_before_the_release(books: Books, tmp_path: Path) -> None:
    async with at_work(books, Shelf(text=b"late", fails=3), tmp_path) as room:
        await room.end()
        await room.until(lambda: bool(room.let_go))
        assert await room.stored() == b"late"
        assert room.clock.monotonic() < GIVE_UP


async def test_it_is_known_why_nothing_came_until_something_does(
    books: Books, tmp_path: Path
) -> None:
    async with at_work(books, Shelf(text=b"late", fails=1), tmp_path) as room:
        name = room.attempt.name
        assert room.pulled.failure(name) is None
        await room.pulled.fresh(name)
        failure = room.pulled.failure(name)
        assert isinstance(failure, Retry)
        assert failure.message == "not now"
        await room.pulled.fresh(name)
        assert room.pulled.failure(name) is None


async def test_a_backend_that_never_answers_does_not_hold_an_attempt_for_ever(
    books: Books, tmp_path: Path
) -> None:
    async with at_work(books, Shelf(text=b"never", fails=10_000), tmp_path) as room:
        await room.end()
        async with asyncio.timeout(20):
            while not room.let_go:
                await room.clock.advance(5)
                await asyncio.sleep(0.001)
        assert room.clock.monotonic() >= GIVE_UP
        assert await room.stored() == b""


async def test_it_is_followed_while_somebody_reads_and_no_longer(
    books: Books, tmp_path: Path
) -> None:
    shelf = Shelf(text=b"a")
    async with at_work(books, shelf, tmp_path) as room:
        name = room.attempt.name
        room.pulled.read(name)
        room.pulled.read(name)
        await room.until(lambda: room.size() == 1)
        shelf.write(b"bc")
        await room.until(lambda: room.size() == 3)
        assert [follow for _, _, follow in shelf.asked] == [True]
        for _ in range(10):
            room.pulled.read(name)
            await room.clock.advance(INTEREST / 2)
        assert shelf.closed == 0
        await room.clock.advance(2 * INTEREST)
        await room.until(lambda: shelf.closed == 1)
        room.pulled.read(name)
        await room.until(lambda: len(shelf.asked) == 2)
        assert shelf.asked[-1] == (name, 3, True)


async def test_a_lost_follow_is_taken_up_again(books: Books, tmp_path: Path) -> None:
    shelf = Shelf(text=b"abc", fails=1)
    async with at_work(books, shelf, tmp_path) as room:
        room.pulled.read(room.attempt.name)
        async with asyncio.timeout(20):
            while room.size() < 3:
                room.pulled.read(room.attempt.name)
                await room.clock.advance(1)
                await asyncio.sleep(0.001)
        assert len(shelf.asked) == 2


async def test_what_is_about_to_be_gone_is_brought_first(books: Books, tmp_path: Path) -> None:
    shelf = Shelf(text=b"last words")
    async with at_work(books, shelf, tmp_path) as room:
        await room.pulled.last(room.attempt.name)
        shelf.text = b""
        assert await room.end()
        await room.until(lambda: bool(room.let_go))
        assert await room.stored() == b"last words"
        await room.pulled.last(room.attempt.name)
    assert [offset for _, offset, _ in shelf.asked] == [0, 10]


@pytest.mark.parametrize("bring", [PulledLogs.fresh, PulledLogs.last])
async def test_a_few_seconds_are_waited_for_what_there_is_now_and_no_longer(
    books: Books,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bring: Callable[[PulledLogs, str], Awaitable[None]],
) -> None:
    for limit in ("FRESH", "LAST"):
        monkeypatch.setattr(f"hatoba_scheduler.control.pulled_logs.{limit}", 0.005)
    shelf = Shelf()

    async def never(*_: object) -> AsyncIterator[LogChunk]:
        await asyncio.Event().wait()
        yield LogChunk("", "", 0, b"")

    async with at_work(books, shelf, tmp_path) as room:
        monkeypatch.setattr(shelf, "logs", never)
        await bring(room.pulled, room.attempt.name)
        assert await room.stored() == b""


async def test_what_a_runner_in_an_image_ships_is_not_brought(books: Books, tmp_path: Path) -> None:
    async with at_work(books, Shelf("image", b"why it never claimed"), tmp_path) as room:
        name = room.attempt.name
        assert room.pulled.expects(name)
        await room.view(lambda view: claimed(view, "n" * 32, NOW))
        assert not room.pulled.note(room.attempt)
        assert not room.pulled.expects(name)
        assert not await room.end()


async def test_what_is_released_by_itself_is_waited_for_no_more(
    books: Books, tmp_path: Path
) -> None:
    async with at_work(books, Shelf(text=b"gone", fails=10_000), tmp_path) as room:
        name = room.attempt.name
        await room.end()
        attempt = room.attempt
        await room.view(released)
        assert not room.pulled.note(replace(attempt, release=Release.RELEASED))
        assert not room.pulled.expects(name)
