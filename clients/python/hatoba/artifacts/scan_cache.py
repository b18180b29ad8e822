"""What files held when they were last packed, so that an unchanged folder is not read again.

A file counts as unchanged when size, times and inode are. One that was written to within two
seconds before it was looked at could have changed again without its time telling: it is not
remembered. Without a directory to write to, or with a damaged one, nothing is remembered.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from hatoba.artifacts.manifest import FILE, MIB
from hatoba.artifacts.scan import Found, Scan
from hatoba.v1 import common_pb2

Content = list[tuple[bytes, int]]
"""A file's chunks in order: digest and size."""

T = TypeVar("T")

RACY_NS: Final = 2_000_000_000
TREES: Final = 64
"""Folders that are remembered; those used longest ago go first."""
WORTH_BYTES: Final = 16 * MIB
WORTH_FILES: Final = 500
_WAIT_SECONDS = 2.0
_CHUNK = struct.Struct("<32sI")
_ENTRY = "%s\0%s\0%d\0%o\0%d\0%s\0%d\0%d\0%d\n"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS trees (
    id INTEGER PRIMARY KEY, root TEXT NOT NULL UNIQUE, signature BLOB NOT NULL,
    digest TEXT NOT NULL, total_bytes INTEGER NOT NULL, files INTEGER NOT NULL,
    used INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS files (
    tree INTEGER NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, chunks BLOB NOT NULL,
    PRIMARY KEY (tree, path)
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


class _Known(NamedTuple):
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    chunks: bytes


class ScanCache:
    """A file of what was packed before. Every method blocks, and none ever raises for the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of_user(cls) -> ScanCache:
        """The one in the user's cache directory."""
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return cls(Path(base) / "hatoba" / "scans.db")

    @classmethod
    def worth_it(cls, scan: Scan) -> ScanCache | None:
        """The user's, for a tree that takes longer to read than the cache does."""
        big = scan.total_bytes > WORTH_BYTES or len(scan.entries) > WORTH_FILES
        return cls.of_user() if big else None

    def ref(self, scan: Scan) -> common_pb2.ManifestRef | None:
        """What the whole tree was packed as, when nothing in it changed since."""
        found = self._rows(
            "SELECT digest, total_bytes, files FROM trees WHERE root = ? AND signature = ?",
            (scan.root, _signature(scan.entries)),
        )
        for digest, total_bytes, files in found:
            return common_pb2.ManifestRef(digest=digest, total_bytes=total_bytes, files=files)
        return None

    def contents(self, scan: Scan) -> Mapping[str, Content]:
        """Chunks of the files that did not change since they were packed, by path."""
        rows = self._rows(
            "SELECT path, size, mtime_ns, ctime_ns, inode, chunks FROM files "
            "WHERE tree = (SELECT id FROM trees WHERE root = ?)",
            (scan.root,),
        )
        known = {path: _Known(*rest) for path, *rest in rows}
        return {
            found.path: list(_CHUNK.iter_unpack(held.chunks))
            for found in scan.entries
            if (held := known.get(found.path)) is not None and held[:4] == _stamp(found)
        }

    def remember(
        self, scan: Scan, ref: common_pb2.ManifestRef, contents: Mapping[str, Content]
    ) -> None:
        """Keep what was packed, as far as it can be told apart from what comes later."""
        settled = [one for one in scan.entries if one.type == FILE and _settled(one, scan)]
        whole = len(settled) == scan.files
        signature = _signature(scan.entries) if whole else b""
        rows = (
            (one.path, *_stamp(one), b"".join(_CHUNK.pack(*chunk) for chunk in contents[one.path]))
            for one in settled
            if one.path in contents
        )
        tree = (signature, ref.digest, ref.total_bytes, ref.files)
        self._use(lambda connection: _write(connection, scan.root, tree, rows), None)

    def forget(self, root: str) -> None:
        """Remember nothing of a tree any more: it was not what it seemed to be."""
        self._use(lambda connection: _drop(connection, "root = ?", (root,)), None)

    def _rows(self, sql: str, parameters: Sequence[str | bytes]) -> list[tuple[Any, ...]]:
        if not self._path.exists():
            return []
        return self._use(lambda connection: connection.execute(sql, parameters).fetchall(), [])

    def _use(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Work on the file in one transaction; what goes wrong with it is passed over."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=_WAIT_SECONDS)) as connection:
                connection.execute("PRAGMA synchronous = OFF")
                connection.executescript(_SCHEMA)
                with connection:
                    return work(connection)
        except (OSError, sqlite3.Error):
            return otherwise


def _write(
    connection: sqlite3.Connection,
    root: str,
    tree: tuple[bytes, str, int, int],
    rows: Iterable[tuple[Any, ...]],
) -> None:
    _drop(connection, "root = ?", (root,))
    used = time.time_ns()
    made = connection.execute(
        "INSERT INTO trees (root, signature, digest, total_bytes, files, used) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (root, *tree, used),
    )
    number = made.lastrowid
    connection.executemany(f"INSERT INTO files VALUES ({number}, ?, ?, ?, ?, ?, ?)", rows)
    _drop(
        connection,
        "id NOT IN (SELECT id FROM trees ORDER BY used DESC LIMIT ?)",
        (TREES,),
    )


def _drop(connection: sqlite3.Connection, where: str, parameters: Sequence[str | int]) -> None:
    connection.execute(
        f"DELETE FROM files WHERE tree IN (SELECT id FROM trees WHERE {where})", parameters
    )
    connection.execute(f"DELETE FROM trees WHERE {where}", parameters)


def _signature(entries: Sequence[Found]) -> bytes:
    text = "".join([_ENTRY % one for one in entries])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _stamp(found: Found) -> tuple[int, int, int, int]:
    return found.size, found.mtime_ns, found.ctime_ns, found.inode


def _settled(found: Found, scan: Scan) -> bool:
    return max(found.mtime_ns, found.ctime_ns) < scan.began_ns - RACY_NS
