from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from hatoba.v1 import runner_pb2, worker_pb2
from hatoba_worker.attempts import Attempt, Book, Checkpoint, Logged
from hatoba_worker.tombstones import KEPT_SECONDS, Tombstones


def opened(data: Path, boot: str = "boot") -> tuple[Book, bool]:
    numbers = count()
    book = Book(data, boot, lambda: f"nonce-{next(numbers)}")
    return book, book.load()


def launch(name: str = "a-1") -> worker_pb2.LaunchAttempt:
    return worker_pb2.LaunchAttempt(attempt=name, fence=4, command=["/bin/true"])


def entered(book: Book, name: str = "a-1") -> Attempt:
    attempt = book.enter(launch(name))
    assert attempt is not None
    return attempt


def state(attempt: Attempt) -> dict[str, Any]:
    names = "launch nonce home launched_ns why grace dropped checkpoint stored_step models holes"
    return {name: getattr(attempt, name) for name in [*names.split(), "reports"]}


CHANGES: list[Callable[[Book, Attempt], object]] = [
    lambda _book, _attempt: None,
    lambda book, attempt: book.stopped(attempt, "timeout", 2.5),
    lambda book, attempt: book.stopped(attempt, "stop", 1.5),
    lambda book, attempt: book.cut(attempt, 100),
    lambda book, attempt: book.cut(attempt, 250),
    lambda book, attempt: book.acked(attempt, 1),
    lambda book, attempt: book.announced(attempt, Checkpoint(3, "step-3", {"acc": 0.5})),
    lambda book, attempt: book.stored(attempt, 3),
    lambda book, attempt: book.punched(attempt, "stdout", 4096),
    lambda book, attempt: book.logged(
        attempt, Logged(2, runner_pb2.LoggedModel(model="digits", metrics={"acc": 0.5}), True)
    ),
    lambda book, attempt: book.dropped(attempt),
]


@pytest.mark.parametrize("count", range(1, len(CHANGES) + 1))
def test_a_new_worker_knows_what_the_old_one_knew(tmp_path: Path, count: int) -> None:
    book, rebooted = opened(tmp_path)
    assert not rebooted
    attempt = entered(book)
    for change in CHANGES[:count]:
        change(book, attempt)
    book.save()
    # Twice: once from the changes, once from the journal that the first wrote anew.
    for _ in range(2):
        again, _ = opened(tmp_path)
        assert state(again.live["a-1"]) == state(attempt)


def test_the_first_reason_to_stop_counts(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    attempt = entered(book)
    book.stopped(attempt, "timeout", 2.5)
    book.stopped(attempt, "stop", 1.5)
    assert (attempt.why, attempt.grace) == ("timeout", 1.5)


def test_reports_are_numbered_and_acknowledged_in_order(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    attempt = entered(book)
    assert [book.cut(attempt, end) for end in (100, 250, 300)] == [1, 2, 3]
    book.acked(attempt, 2)
    book.acked(attempt, 1)
    assert (attempt.reports.acked_end, attempt.reports.ends) == (250, {3: 300})
    book.acked(attempt, 3)
    assert attempt.reports.read == 300
    assert book.cut(attempt, 400) == 4


def test_what_was_not_saved_never_happened(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    entered(book)
    assert opened(tmp_path)[0].live == {}


def test_a_torn_last_record_is_left_out(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    entered(book)
    book.save()
    with (tmp_path / "worker.journal").open("ab") as file:
        file.write(b'{"k":"done","a":"a')
    again, _ = opened(tmp_path)
    assert list(again.live) == ["a-1"]
    entered(again, "a-2")
    again.save()
    assert list(opened(tmp_path)[0].live) == ["a-1", "a-2"]


def test_a_launch_is_taken_once(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    entered(book)
    assert book.enter(launch()) is None
    book.forget("a-1", "EXITED")
    assert book.enter(launch()) is None
    book.save()
    again, _ = opened(tmp_path)
    assert again.enter(launch()) is None
    assert again.tombstones.get("a-1") == "EXITED"


def test_a_refused_name_is_refused_after_a_restart(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    book.forget("a-1", "STOPPED")
    book.save()
    assert opened(tmp_path)[0].enter(launch()) is None


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a" * 129, "a\0b"])
def test_a_name_that_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    assert opened(tmp_path)[0].enter(launch(name)) is None


def test_a_new_start_of_the_machine_is_noticed_once(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    entered(book)
    book.save()
    assert opened(tmp_path, "another")[1]
    assert not opened(tmp_path, "another")[1]


def test_how_an_attempt_ended_is_kept_on_disk_with_its_name(tmp_path: Path) -> None:
    book, _ = opened(tmp_path)
    commit = runner_pb2.CommitAttemptRequest(attempt="a-1", fence=4, nonce="n" * 16, exit_code=3)
    entered(book).outcome = commit.SerializeToString()
    entered(book, "a-2")
    book.forget("a-1", "EXIT_KIND_EXITED")
    book.forget("a-2", "DROPPED")
    book.save()
    again, _ = opened(tmp_path)
    assert again.tombstones.get("a-1") == "EXIT_KIND_EXITED"
    assert "a-2" in again.tombstones
    kept = [runner_pb2.CommitAttemptRequest.FromString(one) for one in again.tombstones.commits()]
    assert kept == [commit]


def test_tombstones_are_bounded_in_number(tmp_path: Path) -> None:
    stones = Tombstones(tmp_path, most=10)
    for number in range(23):
        stones.add(f"a-{number}", "EXITED")
        stones.flush()
    kept = [number for number in range(23) if f"a-{number}" in stones]
    assert kept == list(range(15, 23))
    again = Tombstones(tmp_path, most=10)
    again.load()
    assert [number for number in range(23) if f"a-{number}" in again] == kept


def test_tombstones_are_kept_for_seven_days(tmp_path: Path) -> None:
    now = 1e9
    stones = Tombstones(tmp_path, lambda: now)
    stones.add("a-1", "EXITED")
    stones.flush()
    now += KEPT_SECONDS + 1
    stones.add("a-2", "EXITED")
    stones.flush()
    assert "a-1" in stones
    now += 1
    stones.add("a-3", "EXITED")
    stones.flush()
    now += KEPT_SECONDS + 1
    stones.add("a-4", "EXITED")
    stones.flush()
    assert "a-1" not in stones
    assert "a-3" in stones
