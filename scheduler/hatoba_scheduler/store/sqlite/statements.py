"""The statements of `sql/*.sql`, by name, and their many-row forms."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import chain
from typing import Any

Row = tuple[Any, ...]

SIZES = (500, 100, 10, 1)
"""Rows per statement: few forms, so that each stays prepared."""

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_ROWS = re.compile(r"/\*rows (\d+)\*/")


@functools.cache
def _texts() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in ("writes.sql", "reads.sql"):
        text = resources.files(__package__).joinpath("sql", file).read_text("utf-8")
        parts = _NAME.split(text)[1:]
        found |= {
            f"{file}:{name}": body for name, body in zip(parts[::2], parts[1::2], strict=True)
        }
    return found


@functools.cache
def write(name: str) -> str:
    """A statement of the writer."""
    return _texts()[f"writes.sql:{name}"]


@functools.cache
def read(name: str) -> str:
    """A statement, or the head of one, of the readers; without its semicolon."""
    return _texts()[f"reads.sql:{name}"].strip().removesuffix(";")


@functools.cache
def many(name: str, rows: int) -> str:
    """The writer's statement `name` for so many rows."""
    text = write(name)
    found = _ROWS.search(text)
    assert found is not None, name
    row = f"({', '.join('?' * int(found[1]))})"
    return _ROWS.sub(", ".join([row] * rows), text)


def warm() -> None:
    """Build every text now, so that no call on the event loop reads a file."""
    for key in _texts():
        file, _, name = key.partition(":")
        if file == "reads.sql":
            read(name)
        elif _ROWS.search(write(name)):
            for size in SIZES:
                many(name, size)


def chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows in pieces of the fixed sizes, in order."""
    start = 0
    for size in SIZES:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def execute_rows(connection: sqlite3.Connection, name: str, rows: Sequence[Row]) -> list[Row]:
    """Run a many-row statement over all rows; what it returned."""
    found: list[Row] = []
    for chunk in chunks(rows):
        flat = list(chain.from_iterable(chunk))
        found.extend(connection.execute(many(name, len(chunk)), flat))
    return found
