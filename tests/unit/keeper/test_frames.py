from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba_worker.keeper.frames import MAX_FRAME, FrameBuffer, FrameError, Json, encode

JSON = st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text(), st.booleans()))


@given(st.lists(JSON), st.integers(min_value=1, max_value=50))
def test_frames_survive_being_cut_anywhere(bodies: list[Json], size: int) -> None:
    data = b"".join(map(encode, bodies))
    buffer = FrameBuffer()

    received = [
        frame
        for start in range(0, len(data), size)
        for frame in buffer.feed(data[start : start + size])
    ]

    assert received == bodies


def test_the_length_is_four_bytes_big_endian() -> None:
    assert encode({"a": 1}) == b'\0\0\0\x07{"a":1}'


def test_a_frame_over_the_limit_is_not_made() -> None:
    with pytest.raises(FrameError, match=str(MAX_FRAME)):
        encode({"a": "x" * MAX_FRAME})


@pytest.mark.parametrize(
    "data",
    [b"\0\x10\0\x01", b"\0\0\0\x01{", b"\0\0\0\x02[]", b"\0\0\0\x02\xff\xff"],
    ids=["too long", "no json", "no object", "no text"],
)
def test_a_bad_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameBuffer().feed(data)
