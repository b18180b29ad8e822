"""Puts a backup in place: its database, the blobs that are in it, its settings if there are none.

Blocks; no server may run on the directory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hatoba_scheduler.config import Config, ConfigError, load_config
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.blob_files import BlobFiles
from hatoba_scheduler.store.blob_index import BlobKind
from hatoba_scheduler.store.blob_place import BlobPlace
from hatoba_scheduler.store.disk import sync
from hatoba_scheduler.store.errors import BadBackup
from hatoba_scheduler.store.places import open_place
from hatoba_scheduler.store.sqlite.backup import restore
from hatoba_scheduler.store.sqlite.database import FILE

CONFIG = "hatoba.toml"
BLOBS = "blobs"
EPOCHS = "restored.json"
"""In a backup: the newest epoch that it was restored as, so that none is given twice."""
BLOBS_AT_ONCE = 64


class Restored(NamedTuple):
    """What was put in place; `aside` is where the store is now that was there before."""

    cluster_id: str
    epoch: int
    aside: Path | None


def restore_backup(backup: Path, directory: Path, now: Micros, *, replace: bool) -> Restored:
    """Make a backup, or a bare database file, the store of a directory.

    Raises AlreadyRunning, StoreExists, BadBackup, SchemaTooNew and OSError; then the store that was
    there is still in place.
    """
    file = backup / FILE if backup.is_dir() else backup
    if not file.is_file():
        raise BadBackup(backup, f"it has no {FILE}")
    given = _note(backup / EPOCHS).get("epoch", 0) if backup.is_dir() else 0
    done = Restored(*restore(file, directory, now, replace=replace, epoch_above=int(given)))
    if backup.is_dir():
        _remember(backup / EPOCHS, done.epoch)
        _settings(backup / CONFIG, directory / CONFIG)
        if (backup / BLOBS).is_dir():
            _blobs(BlobFiles(backup / BLOBS), directory)
    return done


def _note(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(path: Path, epoch: int) -> None:
    try:
        path.write_text(json.dumps({"epoch": epoch}) + "\n")
        sync(path)
    except OSError:
        # A backup on a medium that takes no writes: the store that is replaced tells its epoch.
        return


def _settings(source: Path, target: Path) -> None:
    if source.exists() and not target.exists():
        shutil.copyfile(source, target)


def _blobs(source: BlobFiles, directory: Path) -> None:
    """Bring all that is not there yet to where `[blobs]` of the directory says."""
    try:
        config = load_config(directory / CONFIG) if (directory / CONFIG).exists() else Config()
    except ConfigError as error:
        raise BadBackup(directory / CONFIG, f"its blobs have no place: {error}") from error
    place = open_place(config.blobs, directory / BLOBS)
    place.prepare()
    for kind in (BlobKind.CHUNK, BlobKind.MANIFEST):
        group: list[bytes] = []
        for stored in source.listed(kind):
            group.append(stored.digest)
            if len(group) == BLOBS_AT_ONCE:
                _bring(source, place, kind, group)
                group = []
        _bring(source, place, kind, group)


def _bring(source: BlobFiles, place: BlobPlace, kind: BlobKind, digests: list[bytes]) -> None:
    sizes = place.sizes(kind, digests)
    files: dict[bytes, str] = {}
    for digest, size in zip(digests, sizes, strict=True):
        if size is None:
            files[digest] = place.spool.temporary()
            shutil.copyfile(source.path(kind, digest), files[digest])
    if files:
        place.publish(kind, files)
