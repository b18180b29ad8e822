"""What is left of backups whose server was killed while it took them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from hatoba_scheduler.control.backups import FOLDER, Backups
from hatoba_scheduler.store.backups import BackupRecord
from hatoba_scheduler.store.sqlite import SqliteStore, open_store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    one = await open_store(tmp_path, lambda: 1)
    yield one
    await one.close()


async def test_one_that_was_broken_off_pins_nothing_and_is_gone(
    store: SqliteStore, tmp_path: Path
) -> None:
    broken, whole, away = (tmp_path / name for name in ("broken", "whole", "away"))
    whole.mkdir()
    for number, place in enumerate((broken, whole, away)):
        record = BackupRecord(f"2026-{number}", number, str(place), 1, 1, 1)
        await store.backups.keep(record, frozenset({f"sha256:{number:064x}"}))
    left = tmp_path / ".broken.part", tmp_path / FOLDER / ".other.part"
    for partial in left:
        partial.mkdir(parents=True)
        (partial / "hatoba.db").touch()
    backups = Backups(store, cast(Any, None), tmp_path, lambda: 1, "0")
    await backups.recover()
    assert {record.path for record in await backups.all()} == {str(whole), str(away)}
    assert not any(partial.exists() for partial in left)
    assert whole.is_dir()
