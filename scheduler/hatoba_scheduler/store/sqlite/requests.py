"""Request keys inside a step of its own (`unit.Direct`)."""

from __future__ import annotations

import sqlite3

from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey
from hatoba_scheduler.store.sqlite.statements import execute_rows, read
from hatoba_scheduler.store.sqlite.unit import compare_request


def met(connection: sqlite3.Connection, key: RequestKey | None) -> Duplicate | Mismatch | None:
    """What a key met before, if anything."""
    if key is None:
        return None
    found = connection.execute(read("request"), key[:3]).fetchone()
    return compare_request(key, *found) if found else None


def keep(
    connection: sqlite3.Connection, key: RequestKey | None, resource: str, now: Micros
) -> None:
    """Keep the key of what was just done."""
    if key is not None:
        execute_rows(connection, "insert_requests", [(*key, resource, now)])
