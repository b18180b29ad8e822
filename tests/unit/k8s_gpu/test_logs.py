"""Log lines with the kubelet's stamps become bytes, each once, wherever reading goes on."""

from __future__ import annotations

from hatoba_plugins.backends.k8s_gpu.logs import Cursor, Place

LINES = [
    b"2026-11-26T10:00:01.1Z first\n",
    b"2026-11-26T10:00:01.12Z second\n",
    b"2026-11-26T10:00:01.12Z third\n",
    b"2026-11-26T10:00:02Z \n",
    b"2026-11-26T10:00:02.000000001Z last without an end",
]
TEXT = b"first\nsecond\nthird\n\nlast without an end"


def test_stamps_are_taken_off() -> None:
    cursor = Cursor(Place())
    assert b"".join(cursor.take(line) for line in LINES) == TEXT
    assert cursor.place.offset == len(TEXT)


def test_reading_goes_on_anywhere_without_a_byte_twice() -> None:
    """The kubelet gives whole seconds again: what was read of them is known by its moment."""
    for cut in range(len(LINES) + 1):
        before = Cursor(Place())
        first = b"".join(before.take(line) for line in LINES[:cut])
        after = Cursor(before.place)
        assert first + b"".join(after.take(line) for line in LINES) == TEXT


def test_what_has_no_stamp_belongs_to_the_line_before() -> None:
    cursor = Cursor(Place())
    assert cursor.take(b"2026-11-26T10:00:01Z half") == b"half"
    assert cursor.take(b" and half\n") == b" and half\n"
