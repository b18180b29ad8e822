"""`PublicationStore` on the store's SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from hatoba_scheduler.store.publications import Publication
from hatoba_scheduler.store.sqlite.readers import Readers, fetch
from hatoba_scheduler.store.sqlite.statements import of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

PART = "publications"


class SqlitePublications:
    """See `PublicationStore`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def due(self) -> list[str]:
        """See `PublicationStore.due`."""
        found = await self._readers.run(lambda connection: fetch(connection, of(PART, "due")))
        return [uid for (uid,) in found]

    async def settle(self, job_uid: str, publication: Publication) -> None:
        """See `PublicationStore.settle`."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(of(PART, "settle"), (job_uid, *publication))

        await self._writer.call(Direct(work))

    async def settled(self, job_uids: Sequence[str]) -> dict[str, Publication]:
        """See `PublicationStore.settled`."""
        uids = (json.dumps(list(job_uids)),)
        found = await self._readers.run(lambda c: fetch(c, of(PART, "settled"), uids))
        return {uid: Publication(published, summary) for uid, published, summary in found}
