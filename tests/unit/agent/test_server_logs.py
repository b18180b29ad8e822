"""What model servers write is heard line by line, from where an earlier agent stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatoba_worker.agent.server_logs import LAG_MOST, LINE_MOST, Home, ServerLogs

DEPLOYMENT = "projects/default/deployments/adder"


class Writer:
    """A server's directory, and who follows it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.home = Home(DEPLOYMENT, root / "adder-1")
        self.home.path.mkdir()
        self.heard: list[str] = []
        self.logs = self.restarted()

    def restarted(self) -> ServerLogs:
        def hear(deployment: str, line: str) -> None:
            assert deployment == DEPLOYMENT
            self.heard.append(line)

        self.logs = ServerLogs(self._root / "logs.json", hear)
        self.logs.load()
        return self.logs

    def write(self, data: bytes, name: str = "stderr.log") -> None:
        with (self.home.path / name).open("ab") as file:
            file.write(data)

    def look(self) -> list[str]:
        self.heard.clear()
        self.logs.look([self.home])
        return list(self.heard)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


def test_whole_lines_are_heard_once(writer: Writer) -> None:
    assert writer.look() == []
    writer.write(b"one\ntwo\r\n\nthr")
    writer.write(b"out\n", "stdout.log")
    assert writer.look() == ["out", "one", "two"]
    assert writer.look() == []
    writer.write(b"ee\n")
    assert writer.look() == ["three"]


def test_a_line_that_does_not_end_is_cut(writer: Writer) -> None:
    writer.write(b"x" * (LINE_MOST + 10))
    assert writer.look() == ["x" * LINE_MOST]
    writer.write(b"\n")
    assert writer.look() == ["x" * 10]


def test_what_is_no_text_is_heard_as_well_as_it_can_be(writer: Writer) -> None:
    writer.write(b"\0\0\0caf\xe9\n")
    assert writer.look() == ["caf�"]


def test_a_later_agent_goes_on_from_where_it_was(writer: Writer) -> None:
    writer.write(b"one\n")
    writer.look()
    writer.logs.save()
    writer.write(b"two\n")
    writer.restarted()
    assert writer.look() == ["two"]


def test_what_was_not_saved_is_heard_again(writer: Writer) -> None:
    writer.write(b"one\n")
    writer.look()
    writer.restarted()
    assert writer.look() == ["one"]


def test_a_log_that_was_cut_off_is_read_from_its_beginning(writer: Writer) -> None:
    writer.write(b"one\ntwo\n")
    writer.look()
    (writer.home.path / "stderr.log").write_bytes(b"new\n")
    assert writer.look() == ["new"]


def test_who_writes_too_much_is_followed_in_leaps(writer: Writer) -> None:
    writer.write(b"%062d\n" % 0 * (LAG_MOST // 63 + 100))
    first = writer.look()[0]
    assert "bytes are left out here" in first
    writer.write(b"last\n")
    assert writer.look()[-1] == "last"


@pytest.mark.parametrize("text", ["", "[1]", '{"adder-1/stderr": "x"}'])
def test_a_damaged_place_is_forgotten(tmp_path: Path, text: str) -> None:
    (tmp_path / "logs.json").write_text(text)
    writer = Writer(tmp_path)
    writer.write(b"one\n")
    assert writer.look() == ["one"]


def test_a_server_that_is_gone_is_forgotten(writer: Writer) -> None:
    writer.write(b"one\n")
    writer.look()
    writer.logs.save()
    writer.logs.look([])
    writer.logs.save()
    writer.restarted()
    assert writer.look() == ["one"]
