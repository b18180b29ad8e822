"""What the store's doctor finds in a stopped store's file."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def problems_of(path: Path) -> list[str]:
    """Everything that is not as it must be, in words."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return []
    finally:
        connection.close()
