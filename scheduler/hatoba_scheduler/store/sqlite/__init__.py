"""The store on SQLite: one file, one writer, one process."""

from __future__ import annotations

from hatoba_scheduler.store.sqlite.store import SqliteStore, open_store
from hatoba_scheduler.store.sqlite.writer import tune_interpreter

__all__ = ["SqliteStore", "open_store", "tune_interpreter"]
