"""Logs: one JSON object a line, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from hatoba_scheduler.telemetry.logging import configure_logging


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    configure_logging("info", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_logs_are_json_with_level_name_and_time(stream: io.StringIO) -> None:
    structlog.get_logger("hatoba.test").warning("something", job="digits-1")
    (line,) = _lines(stream)
    assert (line["event"], line["job"]) == ("something", "digits-1")
    assert (line["level"], line["logger"]) == ("warning", "hatoba.test")
    assert line["timestamp"].endswith("Z")


def test_logs_of_libraries_look_the_same(stream: io.StringIO) -> None:
    logging.getLogger("grpc").error("lost %s", "it")
    (line,) = _lines(stream)
    assert (line["event"], line["level"], line["logger"]) == ("lost it", "error", "grpc")


def test_what_is_below_the_level_is_left_out(stream: io.StringIO) -> None:
    structlog.get_logger("hatoba.test").debug("a")
    logging.getLogger("grpc").debug("b")
    assert not _lines(stream)


def test_hostile_text_stays_on_its_line(stream: io.StringIO) -> None:
    text = 'a\r\n{"event": "forged"}\x1b[2J\u2028'
    structlog.get_logger("hatoba.test").info("x", name=text)
    (line,) = _lines(stream)
    assert line["name"] == text
    assert "\x1b" not in stream.getvalue()


async def test_an_exception_is_told_without_reading_source_files(stream: io.StringIO) -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ExceptionGroup("outer", [ValueError("one")]) from error
    except ExceptionGroup:
        structlog.get_logger("hatoba.test").exception("failed")
    (line,) = _lines(stream)
    told = line["exception"]
    assert told[0] == "ExceptionGroup: outer (1 sub-exception)"
    assert "test_logging.py" in told[1]
    assert told[2:5] == ["ValueError: one", "after", "KeyError: 'inner'"]


def test_a_library_s_exception_is_told_too(stream: io.StringIO) -> None:
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("lib").exception("oh")
    assert _lines(stream)[0]["exception"][0] == "KeyError: 'x'"
