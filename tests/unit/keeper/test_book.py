"""What the keeper remembers over its own death."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hatoba_worker.keeper import book as book_module
from hatoba_worker.keeper.attempts import Attempt
from hatoba_worker.keeper.book import Book
from hatoba_worker.keeper.frames import Json
from hatoba_worker.keeper.journal import Journal
from hatoba_worker.keeper.launch import LaunchError

CONFIG: Json = {"name": "worker", "argv": ["w"], "env": {}, "cwd": "/", "log": "l", "pid": 7}


@pytest.fixture
def reopened(tmp_path: Path) -> Callable[..., Book]:
    """Open the book of a directory, as the next keeper would."""

    def reopen(boot: str = "boot-1") -> Book:
        book = Book(Journal(tmp_path / "journal"), boot)
        book.load()
        return book

    return reopen


def running(name: str) -> Attempt:
    attempt = Attempt(name)
    attempt.pid, attempt.start, attempt.started_at = 42, 1000, 1.5
    return attempt


def ended(name: str) -> Attempt:
    attempt = running(name)
    attempt.exit = {"exit_code": 3}
    attempt.gone = True
    return attempt


def failed(name: str) -> Attempt:
    attempt = Attempt(name)
    attempt.fail(LaunchError(errno.ENOENT, "not_found", "no such program"))
    return attempt


def test_an_end_is_remembered_as_it_was(reopened: Callable[..., Book]) -> None:
    book = reopened()
    book.note(ended("a"))
    book.note(failed("b"))
    book.save()

    after = reopened().attempts

    assert after["a"].view() == ended("a").view()
    assert after["b"].view() == failed("b").view()


def test_what_ran_is_lost_and_to_be_hunted(reopened: Callable[..., Book], tmp_path: Path) -> None:
    book = reopened()
    attempt = running("a")
    book.note(attempt)
    book.note(ended("b"))
    book.save()

    later = Book(Journal(tmp_path / "journal"), "boot-1")
    [remnant] = later.load()

    assert (remnant.name, remnant.lost, remnant.gone) == ("a", True, False)
    assert (remnant.tag, remnant.pid, remnant.start) == (attempt.tag, 42, 1000)


def test_an_exit_that_was_seen_is_no_loss(reopened: Callable[..., Book], tmp_path: Path) -> None:
    book = reopened()
    lingering = ended("a")
    lingering.gone = False
    book.note(lingering)
    book.save()

    [remnant] = Book(Journal(tmp_path / "journal"), "boot-1").load()

    assert not remnant.lost
    assert remnant.exit == {"exit_code": 3}


def test_another_boot_proves_that_all_is_gone(reopened: Callable[..., Book]) -> None:
    book = reopened()
    book.note(running("a"))
    book.supervise(dict(CONFIG))
    book.save()

    later = reopened("boot-2")

    assert (later.attempts["a"].lost, later.attempts["a"].gone) == (True, True)
    assert later.supervised["worker"]["pid"] == 0


def test_an_intent_alone_is_enough_to_be_hunted(
    reopened: Callable[..., Book], tmp_path: Path
) -> None:
    attempt = Attempt("a")
    reopened().intend(attempt)

    [remnant] = Book(Journal(tmp_path / "journal"), "boot-1").load()

    assert (remnant.tag, remnant.pid) == (attempt.tag, 0)


def test_tombstones_and_supervised_ones_are_remembered(reopened: Callable[..., Book]) -> None:
    book = reopened()
    book.note(ended("a"))
    book.bury("a")
    book.bury("late")
    book.supervise(dict(CONFIG))
    book.supervise({**CONFIG, "name": "router"})
    book.unsupervise("router")
    book.save()

    later = reopened()

    assert later.attempts == {}
    assert list(later.tombstones) == ["a", "late"]
    assert later.supervised == {"worker": CONFIG}


def test_tombstones_are_bounded(
    reopened: Callable[..., Book], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "MOST_TOMBSTONES", 3)
    book = reopened()

    for number in range(5):
        book.bury(f"a{number}")

    assert list(book.tombstones) == ["a2", "a3", "a4"]


@pytest.mark.parametrize("torn", [b'{"kind":"attempt","at', b"\xff\xfe\n", b"[1]\n"])
def test_what_cannot_be_read_is_left_out(
    reopened: Callable[..., Book], tmp_path: Path, torn: bytes
) -> None:
    book = reopened()
    book.note(ended("a"))
    book.save()
    with (tmp_path / "journal").open("ab") as journal:
        journal.write(torn)

    assert list(reopened().attempts) == ["a"]


def test_a_start_compacts(reopened: Callable[..., Book], tmp_path: Path) -> None:
    book = reopened()
    for number in range(100):
        book.note(running("a"))
        book.bury(f"{number}")
        book.save()
    before = (tmp_path / "journal").stat().st_size
    reopened()

    after = reopened()

    assert (tmp_path / "journal").stat().st_size < before / 5
    assert len(after.tombstones) == 100
    assert list(after.attempts) == ["a"]


def test_a_journal_that_grows_is_compacted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", compact_above=5000)
    book = Book(journal, "boot-1")
    book.load()

    for _ in range(100):
        book.note(running("a"))
        book.save()

    assert journal.size < 5000
    assert (tmp_path / "journal").stat().st_size == journal.size


def test_a_full_disk_delays_but_drops_nothing(
    reopened: Callable[..., Book], monkeypatch: pytest.MonkeyPatch
) -> None:
    book = reopened()
    book.note(ended("a"))
    write = os.write
    room = [30, 20]

    def cramped(handle: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "no space")
        return write(handle, data[: room.pop()])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", cramped)
        with pytest.raises(OSError, match="no space"):
            book.save()
        book.note(ended("b"))
        with pytest.raises(OSError, match="no space"):
            book.save()
    book.save()

    assert sorted(reopened().attempts) == ["a", "b"]
