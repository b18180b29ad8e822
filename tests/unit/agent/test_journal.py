"""An entry is on the disk or it is not; what a power cut tore is left out, and said to be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba_worker.agent import disk
from hatoba_worker.agent.journal import Journal, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "journal"


def written(path: Path, *numbers: int) -> None:
    journal = Journal(path)
    journal.open()
    journal.add(*({"kind": "n", "number": number} for number in numbers))
    journal.close()


def copy_of(path: Path) -> Path:
    return path.with_name("journal.copy")


def flipped(path: Path, place: int, bit: int = 0) -> None:
    """Turn a bit."""
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)


def numbers(path: Path) -> list[int]:
    journal = Journal(path)
    found = [int(entry["number"]) for entry in journal.open().entries]
    journal.close()
    return found


def test_entries_come_back_in_order(path: Path) -> None:
    assert numbers(path) == []
    written(path, 1, 2)
    written(path, 3)
    assert numbers(path) == [1, 2, 3]


def test_what_was_torn_is_left_out_and_writing_goes_on(path: Path) -> None:
    written(path, 1, 2, 3)
    whole, copy = path.read_bytes(), copy_of(path)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        # The power failed before the other file had more than what is whole here.
        kept = whole[:cut].count(b"\n")
        copy.write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]))
        assert numbers(path) == [1, 2, 3][:kept]
        written(path, 9)
        assert numbers(path) == [*[1, 2, 3][:kept], 9]
        assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("missing", ["", ".copy"])
def test_an_entry_that_one_file_has_counts(path: Path, missing: str) -> None:
    written(path, 1)
    late = path.with_name(f"{path.name}{missing}")
    before = late.read_bytes()
    written(path, 2)
    late.write_bytes(before)
    assert numbers(path) == [1, 2]
    late.unlink()
    assert numbers(path) == [1, 2]
    assert copy_of(path).read_bytes() == path.read_bytes()


@given(place=st.integers(0, 400), bit=st.integers(0, 7), of_copy=st.booleans())
def test_a_flipped_bit_loses_nothing_and_is_said(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, of_copy: bool
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    written(path, *range(6))
    flipped(copy_of(path) if of_copy else path, place, bit)
    told = read(path)
    assert [entry["number"] for entry in told.entries] == list(range(6))
    assert told.lost > 0
    assert not told.gap
    assert "its entries are all there" in told.damage
    assert numbers(path) == list(range(6))
    assert read(path).damage == ""


def test_where_both_files_are_damaged_the_other_entries_count_and_the_gap_is_said(
    path: Path,
) -> None:
    written(path, 1, 2, 3, 4)
    line = len(path.read_bytes()) // 4
    flipped(path, 5)
    flipped(copy_of(path), 5)
    flipped(copy_of(path), line + 5)
    journal = Journal(path)
    told = journal.open()
    journal.close()
    assert [entry["number"] for entry in told.entries] == [2, 3, 4]
    assert told.gap
    assert told.damage == f"its journal was damaged: {3 * line} bytes cannot be read, " + (
        "entries are missing"
    )
    written(path, 5)
    assert numbers(path) == [2, 3, 4, 5]


def test_an_end_that_is_damaged_in_both_files_is_a_gap(path: Path) -> None:
    written(path, 1, 2)
    for one in (path, copy_of(path)):
        flipped(one, len(one.read_bytes()) - 3)
    assert read(path).gap
    assert numbers(path) == [1]


def test_a_full_disk_leaves_no_half_entry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(path)
    journal.open()
    journal.add({"number": 1})
    real = os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) < 5:
            raise OSError(errno.ENOSPC, "no space")
        return real(handle, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="no space"):
        journal.add({"number": 2})
    monkeypatch.undo()
    journal.add({"number": 3})
    journal.close()
    assert numbers(path) == [1, 3]


def test_on_a_full_disk_damage_stays_and_writing_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(path, 1, 2)
    flipped(path, 5)
    copy_of(path).write_bytes(copy_of(path).read_bytes() + b"torn")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(disk, "replace", full)
        written(path, 3)
        journal = Journal(path)
        journal.open()
        journal.rewrite([{"number": 9}])
        journal.add({"number": 4})
        journal.close()
    assert numbers(path) == [1, 2, 3, 4]


def test_an_entry_that_only_one_file_took_is_taken_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(path, 1)
    journal = Journal(path)
    journal.open()
    synced = iter([None, OSError(errno.ENOSPC, "no space")])

    def sync(handle: int) -> None:
        if error := next(synced):
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", sync)
        with pytest.raises(OSError, match="no space"):
            journal.add({"number": 2})
    journal.close()
    assert numbers(path) == [1]


def test_each_point_of_an_entry_is_passed(path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def passing(point: str) -> None:
        seen.append((point, len(path.read_bytes()), len(copy_of(path).read_bytes())))

    journal = Journal(path, passing)
    journal.open()
    journal.add({"kind": "good"})
    journal.close()
    size = len(path.read_bytes())
    assert seen == [
        ("journal.good.before", 0, 0),
        ("journal.good.between", size, 0),
        ("journal.good.after", size, size),
    ]


def test_it_is_written_anew_in_one_step(path: Path) -> None:
    written(path, *range(100))
    journal = Journal(path)
    journal.open()
    journal.rewrite([{"number": 7}])
    journal.add({"number": 8})
    journal.close()
    assert numbers(path) == [7, 8]


def test_one_file_that_is_of_before_it_was_written_anew_adds_nothing(path: Path) -> None:
    written(path, *range(100))
    before = copy_of(path).read_bytes()
    journal = Journal(path)
    journal.open()
    journal.rewrite([{"number": 7}])
    journal.add({"number": 8})
    journal.close()
    copy_of(path).write_bytes(before)
    assert numbers(path) == [7, 8]


def test_it_says_when_it_is_large(path: Path) -> None:
    journal = Journal(path)
    journal.open()
    said = [journal.large]
    journal.add({"number": 1, "text": "x" * 300_000})
    said.append(journal.large)
    journal.rewrite([{"number": 1}])
    said.append(journal.large)
    journal.close()
    assert said == [False, True, False]
