"""What a device has to tell: in order, bounded, with visible gaps, over any power cut."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from hatoba_worker.agent.ring import LARGEST, Batch, Ring

SMALL = 2_000


def ring(path: Path, limit: int = 20_000) -> Ring:
    made = Ring(path, limit, SMALL)
    made.open()
    return made


def filled(path: Path, count: int, size: int = 100) -> Ring:
    made = ring(path)
    for number in range(1, count + 1):
        assert made.add(number, 1, b"%d" % number + bytes(size)) == number
    made.sync()
    return made


def numbers(batch: Batch) -> list[int]:
    return [one.number for one in batch.records]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    made = filled(tmp_path, 50)
    assert numbers(made.read(0, 1 << 20)) == list(range(1, 51))
    (one,) = made.read(49, 1).records
    assert (one.number, one.time, one.kind, one.data[:2]) == (50, 50, 1, b"50")
    assert numbers(made.read(50, 1)) == []
    assert made.newest == 50


def test_as_much_as_is_asked_for_but_at_least_one(tmp_path: Path) -> None:
    made = filled(tmp_path, 10)
    assert numbers(made.read(0, 1)) == [1]
    assert numbers(made.read(0, 250)) == [1, 2]


def test_only_what_is_on_the_disk_is_given_out(tmp_path: Path) -> None:
    made = ring(tmp_path)
    made.add(1, 1, b"one")
    assert numbers(made.read(0, 1 << 20)) == []
    # The power fails: what was never given out may lend its number to another.
    again = ring(tmp_path)
    assert again.add(2, 1, b"other") == 1
    again.sync()
    assert again.read(0, 1).records[0].data == b"other"


def test_it_goes_on_after_a_restart(tmp_path: Path) -> None:
    filled(tmp_path, 30)
    again = ring(tmp_path)
    assert again.add(0, 1, b"x") == 31
    again.sync()
    assert numbers(again.read(0, 1 << 20)) == list(range(1, 32))


def test_what_the_server_has_goes_and_its_numbers_are_not_used_again(tmp_path: Path) -> None:
    made = filled(tmp_path, 30)
    before = made.size
    made.acked(20)
    assert made.size < before
    assert numbers(made.read(20, 1 << 20)) == list(range(21, 31))
    made.acked(30)
    assert made.size == 0
    again = ring(tmp_path)
    assert again.newest == 30
    assert again.add(0, 1, b"x") == 31


def test_what_is_oldest_goes_when_it_is_full_and_is_counted(tmp_path: Path) -> None:
    made = ring(tmp_path, limit=5_000)
    for number in range(100):
        made.add(number, 1, bytes(100))
        made.sync()
    assert made.size <= 5_000 + SMALL
    batch = made.read(0, 1 << 20)
    first = batch.records[0].number
    assert first > 50
    assert batch.gone == first - 1
    assert made.read(first + 2, 1).gone == 0


def test_a_full_disk_keeps_what_was_taken_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(tmp_path, 3)
    made.add(4, 1, b"four")

    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        made.sync()
    monkeypatch.undo()
    made.sync()
    assert numbers(made.read(0, 1 << 20)) == [1, 2, 3, 4]


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 262,144 bytes"):
        ring(tmp_path).add(0, 1, bytes(LARGEST + 1))


@given(count=st.integers(1, 60), cut=st.integers(0, 400))
@limits(max_examples=60, deadline=None)
def test_a_torn_end_is_cut_off(
    tmp_path_factory: pytest.TempPathFactory, count: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("ring")
    filled(path, count)
    last = max(path.glob("*.ring"))
    data = last.read_bytes()
    last.write_bytes(data[: max(0, len(data) - cut)])
    again = ring(path)
    kept = numbers(again.read(0, 1 << 20))
    assert kept == list(range(1, len(kept) + 1))
    number = again.add(0, 1, b"new")
    assert number > len(kept)
    again.sync()
    assert numbers(again.read(0, 1 << 20)) == [*kept, number]


@given(seed=st.integers(0, 2**32))
@limits(max_examples=60, deadline=None)
def test_a_number_never_stands_for_two_things(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """Whatever is damaged on the disk: what was given out once is given out again or is gone."""
    rng, path = random.Random(seed), tmp_path_factory.mktemp("ring")
    given_out: dict[int, bytes] = {}
    made, written = ring(path), 0
    for _ in range(60):
        match rng.randrange(5):
            case 0:
                made.sync()
                batch = made.read(rng.randrange(1 + written), 1 << 20)
                for one in batch.records:
                    assert given_out.setdefault(one.number, one.data) == one.data
            case 1:
                files = sorted(path.glob("*.ring"))
                if files:
                    victim = rng.choice(files)
                    data = bytearray(victim.read_bytes())
                    if data:
                        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                        victim.write_bytes(data)
                made = ring(path)
            case 2:
                made.acked(rng.randrange(1 + written))
            case _:
                written += 1
                made.add(0, 1, b"%d" % written + bytes(rng.randrange(200)))


def test_who_has_more_of_us_than_is_here_gets_higher_numbers(tmp_path: Path) -> None:
    made = filled(tmp_path, 3)
    made.begin_after(2)
    assert made.add(4, 1, b"next") == 4
    made.sync()
    made.begin_after(1_000)
    assert ring(tmp_path).add(5, 1, b"after a restart") == 1_001
    assert made.add(5, 1, b"far") == 1_001
    made.sync()
    batch = made.read(4, 1 << 20)
    assert (numbers(batch), batch.gone) == ([1_001], 996)
