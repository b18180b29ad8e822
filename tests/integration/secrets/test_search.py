"""What looks for canaries finds them, however they are written down."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from canaries import Canaries, Finding

SECRET = "cn0123456789abcdef0123456789abcd"


def writings() -> list[bytes]:
    raw = SECRET.encode()
    encoded = [base64.b64encode(b"u:" * n + b"x" * m + raw + b"!") for n in (0, 1) for m in (0, 1)]
    return [raw, b'{"a": "' + raw + b'"}', raw.hex().encode(), *encoded]


@pytest.mark.parametrize("content", writings())
def test_every_writing_is_heard(content: bytes) -> None:
    canaries = Canaries()
    canaries.know("a file", SECRET)
    canaries.look("log", "somewhere", b"before " + content + b" after")
    assert canaries.found == {Finding("a file", "log: somewhere")}


def test_only_its_own_home_may_have_it(tmp_path: Path) -> None:
    canaries = Canaries()
    for name in ("one", "other", "home"):
        (tmp_path / name).write_text(SECRET if name != "other" else "nothing")
    canaries.know("a file", SECRET, tmp_path / "home")
    canaries.look_into("disk", tmp_path)
    assert canaries.found == {Finding("a file", f"disk: {tmp_path}/one")}


def test_what_a_claim_is_answered_is_known_by_its_form() -> None:
    canaries = Canaries()
    canaries.look("pod", "p", f"hr_s_01234567_h1-aa-0-1_7_1795741888_{'0f' * 32}".encode())
    assert canaries.found == {Finding("session of a runner", "pod: p")}


def test_places_that_were_really_searched_are_remembered() -> None:
    canaries = Canaries(mark=b"seen")
    canaries.look("log", "l", b"it was seen")
    canaries.look("pod", "p", b"nothing")
    assert (canaries.seen, canaries.found) == ({"log"}, set())
