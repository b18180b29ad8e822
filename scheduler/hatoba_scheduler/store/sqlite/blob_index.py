"""`BlobIndex` on the store's SQLite file."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.blob_index import BlobKind, Judged
from hatoba_scheduler.store.sqlite.readers import Readers, fetch
from hatoba_scheduler.store.sqlite.statements import Row, execute_rows, of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

PART = "blobs"
STEP = 1_000
"""Rows of one step of the writer: others wait a millisecond or two for it."""
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}")

T = TypeVar("T")


class _State(NamedTuple):
    leased_until: Micros
    marked: Micros


class SqliteBlobIndex:
    """See `BlobIndex`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def lease(self, kind: BlobKind, digests: Sequence[bytes], until: Micros) -> None:
        """See `BlobIndex.lease`."""
        for some in _steps(digests):
            rows = [(int(kind), digest, until, 0) for digest in some]
            await self._write("lease", rows)

    async def judge(
        self, kind: BlobKind, digests: Sequence[bytes], now: Micros, run: Micros, *, only_say: bool
    ) -> Judged:
        """See `BlobIndex.judge`."""
        judged = Judged([], [])
        for some in _steps(digests):
            step = _Judge(kind, some, now, run)
            found = await (
                self._readers.run(step.say) if only_say else self._writer.call(Direct(step.carry))
            )
            judged.marked.extend(found.marked)
            judged.condemned.extend(found.condemned)
        return judged

    async def forget(self, kind: BlobKind, digests: Sequence[bytes]) -> None:
        """See `BlobIndex.forget`."""
        for some in _steps(digests):
            await self._write("forget", [(int(kind), digest) for digest in some])

    async def leased(self, kind: BlobKind, now: Micros) -> set[bytes]:
        """See `BlobIndex.leased`."""
        sql = of(PART, "leased")
        rows = await self._readers.run(lambda c: fetch(c, sql, (int(kind), now)))
        return {digest for (digest,) in rows}

    async def purge(self, now: Micros, marked_before: Micros) -> int:
        """See `BlobIndex.purge`."""
        sql, total = of(PART, "purge"), 0

        def work(connection: sqlite3.Connection) -> int:
            return connection.execute(sql, (now, marked_before, STEP)).rowcount

        while True:
            dropped: int = await self._writer.call(Direct(work))
            total += dropped
            if dropped < STEP:
                return total

    async def _write(self, name: str, rows: list[Row]) -> None:
        await self._writer.call(Direct(lambda c: execute_rows(c, name, rows, PART)))


class _Judge:
    """One step of judging."""

    def __init__(self, kind: BlobKind, digests: Sequence[bytes], now: Micros, run: Micros) -> None:
        self._kind = int(kind)
        self._digests = digests
        self._now = now
        self._run = run

    def say(self, connection: sqlite3.Connection) -> Judged:
        """What would become of them."""
        rows = [(self._kind, digest) for digest in self._digests]
        found = {
            digest: _State(leased_until, marked)
            for digest, leased_until, marked in execute_rows(connection, "states", rows, PART)
        }
        nothing = _State(0, 0)
        free = [
            (digest, found.get(digest, nothing).marked)
            for digest in self._digests
            if found.get(digest, nothing).leased_until <= self._now
        ]
        return Judged(
            [digest for digest, marked in free if not marked],
            [digest for digest, marked in free if 0 < marked < self._run],
        )

    def carry(self, connection: sqlite3.Connection) -> Judged:
        """What becomes of them; those that are marked are marked."""
        judged = self.say(connection)
        rows = [(self._kind, digest, 0, self._run) for digest in judged.marked]
        execute_rows(connection, "mark", rows, PART)
        return judged


def job_roots(connection: sqlite3.Connection) -> set[str]:
    """Digests of all manifests that jobs name: code, inputs, outputs, checkpoints."""
    found: set[str] = set()
    for name in ("roots_of_specs", "roots_of_jobs"):
        for (text,) in connection.execute(of(PART, name)):
            raw = text if isinstance(text, bytes) else text.encode()
            found.update(digest.decode() for digest in _DIGEST.findall(raw))
    return found


def _steps(digests: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(digests)
    while some := list(islice(rest, STEP)):
        yield some
