"""Decisions become rows and events together, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from domain_rows import CANCEL, NOW, intent, new_job
from memory_store import MemoryStore

from hatoba_scheduler.control import ledger as ledger_module
from hatoba_scheduler.control.ledger import Answer, Decide, Ledger
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.causes import Ending, ExitKind
from hatoba_scheduler.domain.records import Change, Job
from hatoba_scheduler.domain.states import AttemptState, JobState
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    Settings,
    View,
    cancel,
    ended,
    launch,
    released,
    running,
    updated,
)
from hatoba_scheduler.errors import Unavailable
from hatoba_scheduler.store.base import Duplicate, Mismatch, Submission, Submitted
from hatoba_scheduler.store.errors import WriteRefused

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books

J = JobState
GOOD = Outcome(AttemptState.SUCCEEDED, None)
BAD = Outcome(*causes.judge(Ending(ExitKind.EXITED, 1)))


def launching(index: int = 0) -> Decide:
    return lambda rows: launch(rows, intent(rows, index), NOW)


def about(step: Callable[[View], Change | None], index: int = 0) -> Decide:
    def decide(rows: Rows) -> Change | None:
        view = rows.view(index)
        return step(view) if view else None

    return decide


def run(index: int = 0) -> Decide:
    return about(lambda view: running(view, 5, "", NOW), index)


def end(outcome: Outcome, index: int = 0) -> Decide:
    return about(lambda view: ended(view, outcome, NOW), index)


def release(index: int = 0) -> Decide:
    return about(released, index)


def cancelled(rows: Rows) -> Change | None:
    return cancel(rows, CANCEL, NOW)


def hurried(priority: int) -> Decide:
    return lambda rows: updated(rows, Settings(priority=priority), NOW)


class Broken(Exception):
    """A store that cannot write."""


async def carry(books: Books, *decisions: Decide, uid: str = "job-1") -> None:
    for decision in decisions:
        assert await books.ledger.decide(uid, decision) is not None


async def test_a_new_job_is_in_memory_and_told_of(books: Books) -> None:
    await books.submit(new_job())
    assert books.rows().job.name == "job-1-1"
    (event,) = books.told
    assert (event.reason, event.job_name, event.seq) == ("submit", "job-1-1", 1)
    assert books.commits[0].before is None
    assert books.ledger.active() == 1


async def test_what_memory_holds_is_what_is_stored(books: Books) -> None:
    await books.submit(new_job(size=2))
    await carry(books, launching(0), launching(1), run(1), end(replace(BAD, gone=True), 0))
    rows = books.rows()
    assert rows.job == books.store.jobs["job-1"]
    assert rows.tasks == {1: books.store.kept_tasks["job-1", 1]}
    name = rows.attempts[1].name
    assert rows.attempts == {1: books.store.kept_attempts[name]}
    assert books.ledger.find_attempt(name) == ("job-1", 1)
    assert books.told == books.store.log


async def test_decisions_of_one_batch_see_each_other_and_are_one_commit(books: Books) -> None:
    await books.submit(new_job("a"), new_job("b"))
    asked = [
        books.ledger.ask(uid, decide)
        for uid, decide in [("a", launching()), ("b", launching()), ("a", run()), ("a", run())]
    ]
    answers = await asyncio.gather(*asked)
    assert [answer is not None for answer in answers] == [True, True, True, False]
    assert books.store.batches == [2]
    assert [event.reason for event in books.told[2:]] == ["launch", "run", "launch"]


async def test_decisions_are_taken_in_order(books: Books) -> None:
    await books.submit(new_job())
    await asyncio.gather(*[books.ledger.ask("job-1", hurried(n)) for n in (3, 1, 2)])
    assert books.rows().job.priority == 2
    assert [event.job_seq for event in books.told] == [1, 2, 3, 4]


async def test_nothing_moves_before_the_commit_is_known(books: Books) -> None:
    await books.submit(new_job())
    books.store.open.clear()
    books.store.reached.clear()
    first = books.ledger.ask("job-1", launching())
    await books.store.reached.wait()
    second = books.ledger.ask("job-1", run())
    assert books.rows().job.state is J.QUEUED
    assert not first.done()
    books.store.open.set()
    await second
    assert books.rows().job.state is J.RUNNING
    assert first.done()


async def test_a_failed_commit_fails_all_who_asked_and_moves_nothing(books: Books) -> None:
    await books.submit(new_job("a"), new_job("b"))
    before = (books.rows("a"), books.rows("b"), list(books.told))
    books.store.fail_with = Broken("disk full")
    asked = [books.ledger.ask(uid, launching()) for uid in ("a", "b")]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Broken, Broken]
    assert (books.rows("a"), books.rows("b"), books.told) == before
    assert books.ledger.find_attempt("h1-a-0-1") is None

    books.store.fail_with = None
    await carry(books, launching(), uid="a")


async def test_a_failed_submit_leaves_nothing(books: Books) -> None:
    books.store.fail_with = Broken("disk full")
    with pytest.raises(Broken):
        await books.submit(new_job())
    assert (books.ledger.rows("job-1"), books.told) == (None, [])
    books.store.fail_with = None
    await books.submit(new_job())
    assert books.ledger.active() == 1


async def test_a_submit_whose_caller_went_away_is_carried_through(books: Books) -> None:
    books.store.open.clear()
    async with asyncio.TaskGroup() as group:
        caller = group.create_task(books.submit(new_job()))
        await books.store.reached.wait()
        caller.cancel()
    books.store.open.set()
    await carry(books, launching())
    assert [event.seq for event in books.told] == [1, 2]


async def test_a_decision_whose_caller_went_away_is_carried_through(books: Books) -> None:
    await books.submit(new_job())
    books.ledger.ask("job-1", launching()).cancel()
    await carry(books, run())
    assert books.rows().job.state is J.RUNNING


async def test_a_bug_in_one_decision_stays_with_who_asked(books: Books) -> None:
    await books.submit(new_job("a"), new_job("b"))
    stale = launch(books.rows("a"), intent(books.rows("a")), NOW)

    def faulty(rows: Rows) -> Change | None:
        raise KeyError(rows.job.uid)

    asked = [
        books.ledger.ask("a", hurried(1)),
        books.ledger.ask("a", faulty),
        books.ledger.ask("a", lambda _: stale),
        books.ledger.ask("b", lambda _: stale),
        books.ledger.ask("a", launching()),
        books.ledger.ask("b", launching()),
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    kinds = [type(answer) for answer in answers]
    assert kinds == [Change, KeyError, ValueError, ValueError, Change, Change]
    assert books.rows("a").job.state is J.LAUNCHING


async def test_a_stale_decision_is_taken_again_on_what_is_stored(books: Books) -> None:
    await books.submit(new_job("a"), new_job("b"))
    books.store.jobs["a"] = replace(books.store.jobs["a"], version=7, queue="night")
    seen: list[int] = []

    def decide(rows: Rows) -> Change | None:
        seen.append(rows.job.version)
        return updated(rows, Settings(priority=9), NOW)

    asked = [books.ledger.ask("a", decide), books.ledger.ask("b", launching())]
    first, other = await asyncio.gather(*asked)
    assert first is not None
    assert other is not None
    assert seen == [1, 7]
    assert (books.rows("a").job.queue, books.rows("a").job.priority) == ("night", 9)


async def test_a_stale_no_is_taken_again_too(books: Books) -> None:
    """What a decision saw of a batch that was not written is no reason for its answer."""
    await books.submit(new_job())
    books.store.jobs["job-1"] = replace(books.store.jobs["job-1"], version=7)
    blocker = books.ledger.ask("job-1", cancelled_once())
    launching_now = books.ledger.ask("job-1", launching())
    assert await blocker is None
    assert await launching_now is not None


def cancelled_once() -> Decide:
    answers: list[Decide] = [cancelled, lambda _: None]
    return lambda rows: answers.pop(0)(rows)


async def test_after_a_reload_its_attempts_are_found_by_name(books: Books) -> None:
    await books.submit(new_job())
    other = Ledger(books.store.as_store())
    await other.recover()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(other.run())
        change = await other.decide("job-1", launching())
        task.cancel()
    assert change is not None
    await carry(books, hurried(1))
    assert books.ledger.find_attempt("h1-job-1-0-1") == ("job-1", 0)
    await carry(books, run())
    assert books.rows().job.state is J.RUNNING


async def test_a_job_that_is_over_elsewhere_leaves_memory(books: Books) -> None:
    await books.submit(new_job())
    books.store.jobs["job-1"] = replace(books.store.jobs["job-1"], version=5, state=J.CANCELLED)
    assert await books.ledger.decide("job-1", launching()) is None
    assert books.ledger.rows("job-1") is None


async def test_an_ended_job_leaves_memory_when_nothing_of_it_is_held(books: Books) -> None:
    await books.submit(new_job())
    await carry(books, launching(), run(), end(GOOD))
    assert books.ledger.rows("job-1") is not None, "it holds its place still"
    assert books.ledger.active() == 0
    await carry(books, release())
    assert books.ledger.rows("job-1") is None
    assert books.ledger.find_attempt("h1-job-1-0-1") is None
    assert await books.ledger.decide("job-1", cancelled) is None
    assert books.store.jobs["job-1"].state is J.SUCCEEDED


async def test_a_job_cancelled_before_it_started_leaves_memory(books: Books) -> None:
    await books.submit(new_job(size=1000))
    await carry(books, cancelled)
    assert books.ledger.rows("job-1") is None


async def test_an_array_keeps_in_memory_what_is_under_way(books: Books) -> None:
    await books.submit(new_job(size=3))
    for index in (0, 1):
        await carry(books, launching(index), run(index), end(GOOD, index))
    await carry(books, release(0))
    rows = books.rows()
    assert (set(rows.tasks), set(rows.attempts)) == ({1}, {1})
    assert rows.job.counts[J.SUCCEEDED] == 2
    assert books.ledger.find_attempt("h1-job-1-0-1") is None


async def test_only_the_newest_attempt_of_a_task_is_found(books: Books) -> None:
    await books.submit(new_job())
    lost = Outcome(*causes.judge(Ending(ExitKind.LOST)), gone=True)
    await carry(books, launching(), end(lost), launching())
    assert books.ledger.find_attempt("h1-job-1-0-1") is None
    assert books.ledger.find_attempt("h1-job-1-0-2") == ("job-1", 0)


async def test_listeners_see_rows_as_committed_and_events_in_order(books: Books) -> None:
    await books.submit(new_job(size=2))
    await asyncio.gather(*[books.ledger.ask("job-1", launching(n)) for n in (0, 1)])
    await carry(books, end(replace(GOOD, gone=True), 0))
    last = books.commits[-1]
    assert last.before is not None
    assert last.before.state is J.LAUNCHING
    assert [commit.rows.job.version for commit in books.commits] == [1, 3, 4]
    assert [event.seq for event in books.told] == [1, 2, 3, 4]


async def test_recovery_takes_up_what_is_not_over(books: Books) -> None:
    await books.submit(new_job("done"), new_job("ended"), new_job("array", size=3))
    for uid in ("done", "ended"):
        await carry(books, launching(), end(GOOD), uid=uid)
    await carry(books, release(), uid="done")
    await carry(books, launching(0), end(replace(GOOD, gone=True), 0), launching(1), uid="array")

    fresh = Ledger(books.store.as_store())
    await fresh.recover()
    assert {rows.job.uid for rows in fresh.all_rows()} == {"ended", "array"}
    for uid in ("ended", "array"):
        assert fresh.rows(uid) == Rows(
            books.rows(uid).job, books.rows(uid).tasks, books.rows(uid).attempts
        )
    assert fresh.find_attempt("h1-array-1-1") == ("array", 1)


async def test_who_asks_a_lot_hears_each_answer_once_and_after_its_commit(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "QUEUE", 3)
    await books.submit(new_job("a"), new_job("b"))
    books.store.jobs["a"] = replace(books.store.jobs["a"], version=7)
    heard: list[tuple[str, type, int]] = []
    all_heard = asyncio.Event()

    def hear(word: str) -> Callable[[Answer], None]:
        def told(answer: Answer) -> None:
            heard.append((word, type(answer), books.rows("b").job.priority))
            if len(heard) == 4:
                all_heard.set()

        return told

    def faulty(rows: Rows) -> Change | None:
        raise KeyError(rows.job.uid)

    books.ledger.request("a", hurried(5), hear("stale"))
    books.ledger.request("b", hurried(5), hear("good"))
    books.ledger.request("b", faulty, hear("faulty"))
    books.ledger.request("b", hurried(6), hear("too much"))
    assert heard == [("too much", Unavailable, 0)]
    await all_heard.wait()
    await carry(books, hurried(7), uid="a")
    assert heard[1:] == [("faulty", KeyError, 0), ("good", Change, 5), ("stale", Change, 5)]


async def test_too_much_at_once_is_refused(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "QUEUE", 2)
    await books.submit(new_job())
    asked = [books.ledger.ask("job-1", hurried(n)) for n in (1, 2, 3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Change, Change, Unavailable]


async def test_who_asks_while_it_stops_is_told(
    submission_of: Callable[[Job], Submission],
) -> None:
    store = MemoryStore()
    ledger = Ledger(store.as_store())
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.run())
        await ledger.submit([submission_of(new_job())])
        store.open.clear()
        store.reached.clear()
        under_way = ledger.ask("job-1", launching())
        await store.reached.wait()
        queued = ledger.ask("job-1", run())
        task.cancel()
    late = ledger.ask("job-1", cancelled)
    answers = await asyncio.gather(under_way, queued, late, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    with pytest.raises(Unavailable, match="stopping"):
        await ledger.submit([submission_of(new_job("late"))])


async def test_the_same_request_twice_is_one_job(
    books: Books, submission_of: Callable[[Job], Submission]
) -> None:
    await books.submit(new_job())
    known = books.rows().job

    async def repeated(items: object) -> list[Submitted]:
        return [Submitted(known, 1)]

    books.store.submit = repeated  # type: ignore[method-assign, assignment]
    await books.ledger.submit([submission_of(new_job())])
    assert len(books.told) == 1


async def test_submits_that_arrive_together_are_one_write(
    books: Books, submission_of: Callable[[Job], Submission]
) -> None:
    calls: list[list[str]] = []
    store_submit = books.store.submit

    async def noted(items: Sequence[Submission]) -> list[Submitted | Duplicate | Mismatch]:
        calls.append([item.job.uid for item in items])
        return await store_submit(items)

    books.store.submit = noted  # type: ignore[method-assign]
    jobs = [new_job(f"job-{number}") for number in range(1, 6)]
    found = await asyncio.gather(*(books.ledger.submit([submission_of(job)]) for job in jobs))
    assert calls == [[job.uid for job in jobs]]
    assert [result.job.uid for (result,) in found if isinstance(result, Submitted)] == calls[0]


async def test_a_small_call_is_answered_before_a_whole_batch_is_taken_in(
    books: Books, submission_of: Callable[[Job], Submission]
) -> None:
    batch = [submission_of(new_job(f"batch-{number}")) for number in range(200)]
    async with asyncio.TaskGroup() as group:
        whole = group.create_task(books.ledger.submit(batch), name="batch")
        await asyncio.sleep(0)
        (alone,) = await books.ledger.submit([submission_of(new_job("alone"))])
        assert isinstance(alone, Submitted)
        assert "alone" in {event.job_uid for event in books.told}
        assert len(books.told) < len(batch)
        assert not whole.done()
    found = [one.job.uid for one in whole.result() if isinstance(one, Submitted)]
    assert found == [item.job.uid for item in batch]
    assert len(books.told) == len(batch) + 1
    assert await books.ledger.submit([]) == []


async def test_a_refused_submit_fails_alone(
    books: Books, submission_of: Callable[[Job], Submission]
) -> None:
    store_submit = books.store.submit

    async def picky(items: Sequence[Submission]) -> list[Submitted | Duplicate | Mismatch]:
        if any(item.job.uid == "bad" for item in items):
            raise WriteRefused("the store refused a row")
        return await store_submit(items)

    books.store.submit = picky  # type: ignore[method-assign]
    jobs = [new_job("good"), new_job("bad"), new_job("fine")]
    answers = await asyncio.gather(
        *(books.ledger.submit([submission_of(job)]) for job in jobs), return_exceptions=True
    )
    assert [type(answer) for answer in answers] == [list, WriteRefused, list]
    assert {event.job_uid for event in books.told} == {"good", "fine"}
