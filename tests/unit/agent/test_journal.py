"""An entry is on the disk or it is not; what a power cut tore is left out, and said to be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba_worker.agent.journal import Journal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "journal"


def written(path: Path, *numbers: int) -> None:
    journal = Journal(path)
    journal.open()
    journal.add(*({"kind": "n", "number": number} for number in numbers))
    journal.close()


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
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        assert numbers(path) == [1, 2, 3][:kept]
        written(path, 9)
        assert numbers(path) == [*[1, 2, 3][:kept], 9]


@given(place=st.integers(0, 200), bit=st.integers(0, 7))
def test_a_flipped_bit_ends_what_can_be_trusted(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    written(path, *range(6))
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    before = data[:place].count(b"\n")
    journal = Journal(path)
    read = journal.open()
    assert [entry["number"] for entry in read.entries] == list(range(before))
    assert read.lost > 0
    journal.close()


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


def test_it_is_written_anew_in_one_step(path: Path) -> None:
    written(path, *range(100))
    journal = Journal(path)
    journal.open()
    journal.rewrite([{"number": 7}])
    journal.add({"number": 8})
    journal.close()
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
