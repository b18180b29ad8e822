"""Log lines with the kubelet's stamps become bytes, each once, wherever reading goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from hatoba_plugins.backends.k8s_gpu.logs import Cursor, Place, Tail, chunks

LINES = [
    b"2026-11-26T10:00:01.1Z first\n",
    b"2026-11-26T10:00:01.12Z second\n",
    b"2026-11-26T10:00:01.12Z third, which is ",
    b"long and comes ",
    b"in pieces\n",
    b"2026-11-26T10:00:02Z \n",
    b"2026-11-26T10:00:02Z fifth\n",
    b"2026-11-26T10:00:02.000000001Z last without an end",
]
TEXT = b"first\nsecond\nthird, which is long and comes in pieces\n\nfifth\nlast without an end"
REFUSAL = (
    b'failed to try resolving symlinks in path "/var/log/pods/a/main/0.log": lstat: no such file'
)


async def streamed(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    """A log as it comes from the API server."""
    for piece in pieces:
        yield piece


async def read(cursor: Cursor, pieces: Sequence[bytes], offset: int = 0) -> bytes:
    """All that is new of it behind an offset, whose chunks follow each other."""
    found = b""
    async for chunk in chunks(streamed(pieces), cursor, "a-1", offset):
        assert chunk.offset == offset + len(found)
        found += chunk.data
    return found


async def test_stamps_are_taken_off() -> None:
    cursor = Cursor(Place())
    assert await read(cursor, LINES) == TEXT
    assert cursor.offset == len(TEXT)


async def test_reading_goes_on_anywhere_without_a_byte_twice() -> None:
    """The kubelet gives whole seconds again: what was read of them is known by its moment."""
    for cut in range(len(LINES) + 1):
        before = Cursor(Place())
        first = await read(before, LINES[:cut])
        assert before.place.offset <= before.offset == len(first)
        second = await read(Cursor(before.place), LINES, len(first))
        assert first + second == TEXT, cut


async def test_what_the_kubelet_says_of_itself_is_no_line_of_a_program() -> None:
    cursor = Cursor(Place())
    assert await read(cursor, [REFUSAL]) == b""
    assert cursor.refused == REFUSAL
    assert await read(cursor, [*LINES, REFUSAL][:5]) == TEXT[: TEXT.index(b"\n\n") + 1]


def follow(*looks: Sequence[bytes]) -> bytes:
    """What somebody sees who asks for the last lines again and again, as the server does."""
    read, seen = 0, b""
    for pieces in looks:
        tail = Tail()
        for piece in pieces:
            chunk = tail.take("r-1", "stdout", piece)
            if chunk is not None:
                seen += chunk.data[max(read - chunk.offset, 0) :]
                read = max(read, chunk.offset + len(chunk.data))
    return seen


def test_the_last_lines_are_followed_whatever_went_before_them() -> None:
    """One look begins later than the one before it, or earlier: a line is seen once."""
    assert follow(LINES[1:2], LINES[1:6], LINES[5:]) == TEXT[len("first\n") :]
    assert follow(LINES[5:6], LINES) == b"\nfifth\nlast without an end"
    ticks = [b"2026-11-26T10:00:%02dZ tick\n" % second for second in range(50)]
    assert follow(ticks[:10], ticks[5:30], ticks[29:]) == b"tick\n" * 50


def test_lines_of_one_moment_keep_their_order() -> None:
    same = [b"2026-11-26T10:00:01Z %d\n" % number for number in range(20)]
    assert follow(same[:7], same[:15], same) == b"".join(b"%d\n" % one for one in range(20))
