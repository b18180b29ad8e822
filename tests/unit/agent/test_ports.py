"""A deployment is found where it was found before."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hatoba_worker.agent.ports import Ports

ADDRESS = "127.0.0.1"


@contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.create_server((ADDRESS, port)):
        yield


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ports.json"


def test_each_has_one_of_its_own_and_keeps_it(file: Path) -> None:
    ports = Ports(file, ADDRESS)
    first, second = ports.of("a"), ports.of("b")
    assert first != second
    with listening(first):
        pass
    again = Ports(file, ADDRESS)
    assert (again.of("a"), again.of("b")) == (first, second)


def test_one_that_somebody_else_has_is_given_up(file: Path) -> None:
    ports = Ports(file, ADDRESS)
    before = ports.of("a")
    with listening(before):
        after = ports.of("a")
        assert after != before
    assert Ports(file, ADDRESS).of("a") == after


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "x"}', '{"a": 70000}', '{"a": null}'])
def test_what_cannot_be_read_does_no_harm(file: Path, text: str) -> None:
    file.write_text(text)
    port = Ports(file, ADDRESS).of("a")
    with listening(port):
        pass
    assert Ports(file, ADDRESS).of("a") == port
