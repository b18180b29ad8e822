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
    for file in resources.files(__package__).joinpath("sql").iterdir():
        parts = _NAME.split(file.read_text("utf-8"))[1:]
        found |= {
            f"{file.name}:{name}": body for name, body in zip(parts[::2], parts[1::2], strict=True)
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
def of(part: str, name: str) -> str:
    """A statement of `sql/PART.sql`; without its semicolon."""
    return _texts()[f"{part}.sql:{name}"].strip().removesuffix(";")


@functools.cache
def many(name: str, rows: int, part: str = "writes") -> str:
    """The statement `name` of `sql/PART.sql` for so many rows."""
    text = _texts()[f"{part}.sql:{name}"]
    found = _ROWS.search(text)
    assert found is not None, name
    row = f"({', '.join('?' * int(found[1]))})"
    return _ROWS.sub(", ".join([row] * rows), text)


def warm() -> None:
    """Build every text now, so that no call on the event loop reads a file."""
    for key in _texts():
        file, _, name = key.partition(":")
        part = file.removesuffix(".sql")
        if not _ROWS.search(of(part, name)):
            continue
        for size in SIZES:
            many(name, size, part)


def chunks(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """The rows in pieces of the fixed sizes, in order."""
    start = 0
    for size in SIZES:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size


def execute_rows(
    connection: sqlite3.Connection, name: str, rows: Sequence[Row], part: str = "writes"
) -> list[Row]:
    """Run a many-row statement over all rows; what it returned."""
    found: list[Row] = []
    for chunk in chunks(rows):
        flat = list(chain.from_iterable(chunk))
        found.extend(connection.execute(many(name, len(chunk), part), flat))
    return found
