"""`DatasetStore` on the SQLite file that everything shares."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from hatoba_scheduler.domain.datasets import (
    CodeVersionRecord,
    DatasetRecord,
    DatasetVersionRecord,
    HeadItem,
    NewDatasetVersion,
    Origins,
)
from hatoba_scheduler.domain.records import ManifestRef, Micros
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Stale
from hatoba_scheduler.store.datasets import (
    EVERY_BATCH,
    Appended,
    DatasetKey,
    Frozen,
    InUse,
    Kept,
    KeptCode,
)
from hatoba_scheduler.store.sqlite.readers import Parameters, Readers, decoded, fetch
from hatoba_scheduler.store.sqlite.requests import keep, met
from hatoba_scheduler.store.sqlite.statements import Row, execute_rows, of
from hatoba_scheduler.store.sqlite.unit import Direct
from hatoba_scheduler.store.sqlite.writer import Writer

T = TypeVar("T")
PART = "datasets"


def sql(name: str) -> str:
    """A statement of this part."""
    return of(PART, name)


class SqliteDatasets:
    """See `DatasetStore`."""

    def __init__(self, writer: Writer, readers: Readers, now: Callable[[], Micros]) -> None:
        self._writer = writer
        self._readers = readers
        self._now = now

    # -- versions -------------------------------------------------------------------------------

    async def create_version(self, new: NewDatasetVersion) -> DatasetVersionRecord:
        """See `DatasetStore.create_version`."""
        kept = await self.put_version(replace(new, expected=None))
        assert isinstance(kept, Kept)
        return kept.record

    async def put_version(
        self, new: NewDatasetVersion, request: RequestKey | None = None, frozen: int = 0
    ) -> Kept | Duplicate | Mismatch | Stale:
        """See `DatasetStore.put_version`."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> Kept | Duplicate | Mismatch | Stale:
            known = met(connection, request)
            if known is not None:
                return known
            kept = _put_version(connection, new)
            if isinstance(kept, Kept):
                _drop_frozen(connection, DatasetKey(new.project, new.dataset), frozen, now)
                keep(connection, request, kept.record.resource, now)
            return kept

        answer: Kept | Duplicate | Mismatch | Stale = await self._writer.call(Direct(work))
        return answer

    async def version(self, key: DatasetKey) -> DatasetVersionRecord | None:
        """See `DatasetStore.version`."""
        if key.version:
            where = "WHERE project = ? AND dataset = ? AND version = ?"
            found = await self._all(f"{sql('versions')} {where}", key, _version_from)
        else:
            found = await self.versions(key, EVERY_BATCH, 1)
        return found[0] if found else None

    async def versions(self, key: DatasetKey, below: int, limit: int) -> list[DatasetVersionRecord]:
        """See `DatasetStore.versions`."""
        where = "WHERE project = ? AND dataset = ? AND version < ? ORDER BY version DESC LIMIT ?"
        parameters = (key.project, key.dataset, below, limit)
        return await self._all(f"{sql('versions')} {where}", parameters, _version_from)

    async def delete_version(
        self, key: DatasetKey, request: RequestKey | None
    ) -> DatasetVersionRecord | InUse | Duplicate | Mismatch | None:
        """See `DatasetStore.delete_version`."""
        now = self._now()

        def work(
            connection: sqlite3.Connection,
        ) -> DatasetVersionRecord | InUse | Duplicate | Mismatch | None:
            known = met(connection, request)
            if known is not None:
                return known
            record = _one_version(connection, key)
            if record is None:
                return None
            users = _users(connection, record.resource)
            if users:
                return InUse(users)
            connection.execute(sql("delete_version"), key)
            connection.execute(sql("one_less"), key[:2])
            connection.execute(sql("delete_links"), (record.resource,))
            keep(connection, request, record.resource, now)
            return record

        answer: DatasetVersionRecord | InUse | Duplicate | Mismatch | None
        answer = await self._writer.call(Direct(work))
        return answer

    # -- datasets and heads -----------------------------------------------------------------------

    async def dataset(self, key: DatasetKey) -> DatasetRecord | None:
        """One dataset."""
        where = "WHERE project = ? AND name = ?"
        found = await self._all(f"{sql('datasets')} {where}", key[:2], _dataset_from)
        return found[0] if found else None

    async def datasets(self, project: str, after: str, limit: int) -> list[DatasetRecord]:
        """See `DatasetStore.datasets`."""
        where = "WHERE project = ? AND name > ? ORDER BY name LIMIT ?"
        return await self._all(f"{sql('datasets')} {where}", (project, after, limit), _dataset_from)

    async def append(
        self, key: DatasetKey, added: Appended, request: RequestKey | None
    ) -> int | Duplicate | Mismatch:
        """See `DatasetStore.append`."""

        def work(connection: sqlite3.Connection) -> int | Duplicate | Mismatch:
            known = met(connection, request)
            if known is not None:
                return known
            count = _append(connection, key, added)
            keep(connection, request, str(count), added.time)
            return count

        answer: int | Duplicate | Mismatch = await self._writer.call(Direct(work))
        return answer

    async def head(
        self, key: DatasetKey, after: int, limit: int, batch: int = EVERY_BATCH
    ) -> list[HeadItem]:
        """See `DatasetStore.head`."""
        parameters = (key.project, key.dataset, after, batch, limit)
        return await self._all(sql("head"), parameters, _head_from)

    async def freeze(self, key: DatasetKey) -> Frozen | None:
        """See `DatasetStore.freeze`."""

        def work(connection: sqlite3.Connection) -> Frozen | None:
            found = connection.execute(sql("dataset"), key[:2]).fetchone()
            if found is None:
                return None
            _, latest, _, batch, items, _ = found
            if items:
                connection.execute(sql("freeze"), key[:2])
            return Frozen(batch, latest, items)

        answer: Frozen | None = await self._writer.call(Direct(work))
        return answer

    # -- code -------------------------------------------------------------------------------------

    async def put_code(
        self, code: CodeVersionRecord, request: RequestKey | None = None
    ) -> KeptCode | Duplicate | Mismatch:
        """See `DatasetStore.put_code`."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> KeptCode | Duplicate | Mismatch:
            known = met(connection, request)
            if known is not None:
                return known
            kept = _put_code(connection, code)
            keep(connection, request, kept.record.resource, now)
            return kept

        answer: KeptCode | Duplicate | Mismatch = await self._writer.call(Direct(work))
        return answer

    async def code_version(self, project: str, code: str, version: int) -> CodeVersionRecord | None:
        """See `DatasetStore.code_version`."""
        where = "WHERE project = ? AND code = ? AND version = ?"
        own: Parameters = (project, code, version)
        if not version:
            where = "WHERE project = ? AND code = ? ORDER BY version DESC LIMIT 1"
            own = (project, code)
        found = await self._all(f"{sql('code')} {where}", own, _code_from)
        return found[0] if found else None

    async def code_versions(
        self, project: str, code: str, below: tuple[Micros, str, int] | None, limit: int
    ) -> list[CodeVersionRecord]:
        """See `DatasetStore.code_versions`."""
        conditions, own = ["project = ?"], list[str | int]([project])
        if code:
            conditions.append("code = ?")
            own.append(code)
        if below is not None:
            conditions.append("(create_time, code, version) < (?, ?, ?)")
            own += below
        order = "ORDER BY create_time DESC, code DESC, version DESC LIMIT ?"
        where = f"{sql('code')} WHERE {' AND '.join(conditions)} {order}"
        return await self._all(where, (*own, limit), _code_from)

    async def manifest_roots(self) -> set[str]:
        """See `DatasetStore.manifest_roots`."""
        found = await self._readers.run(lambda connection: fetch(connection, sql("manifests")))
        return {digest for (digest,) in found}

    async def _all(self, text: str, parameters: Parameters, decode: Callable[[Row], T]) -> list[T]:
        return await self._readers.run(lambda c: decoded(fetch(c, text, parameters), decode, PART))


# -- steps of the writer -------------------------------------------------------------------------


def _put_version(connection: sqlite3.Connection, new: NewDatasetVersion) -> Kept | Stale:
    own = (new.project, new.dataset)
    connection.execute(sql("add_dataset"), (*own, new.create_time, new.created_by, new.create_time))
    counter, latest, *_ = connection.execute(sql("dataset"), own).fetchone()
    if new.expected is not None and latest != new.expected:
        return Stale.STALE
    same = _same_version(connection, new, latest)
    if same is not None:
        return Kept(same, True)
    record = _record(new, counter + 1)
    connection.execute(sql("add_version"), _version_row(record))
    connection.execute(sql("newer"), (*own, record.version, new.create_time))
    execute_rows(connection, "add_links", _links(record), PART)
    return Kept(record, False)


def _same_version(
    connection: sqlite3.Connection, new: NewDatasetVersion, latest: int
) -> DatasetVersionRecord | None:
    """The version that is the newest and equal, or that the same job made."""
    if new.origins.job:
        text = f"{sql('versions')} {sql('version_of_job')}"
        row = connection.execute(text, (new.origins.job, new.project, new.dataset)).fetchone()
        if row is not None:
            return _version_from(row)
    newest = _one_version(connection, DatasetKey(new.project, new.dataset, latest))
    if newest is None or (newest.manifest, newest.items) != (new.manifest, new.items):
        return None
    return newest


def _one_version(connection: sqlite3.Connection, key: DatasetKey) -> DatasetVersionRecord | None:
    text = f"{sql('versions')} WHERE project = ? AND dataset = ? AND version = ?"
    row = connection.execute(text, key).fetchone()
    return _version_from(row) if row is not None else None


def _record(new: NewDatasetVersion, version: int) -> DatasetVersionRecord:
    return DatasetVersionRecord(
        project=new.project,
        dataset=new.dataset,
        version=version,
        manifest=new.manifest,
        items=new.items,
        item_count=new.item_count,
        create_time=new.create_time,
        created_by=new.created_by,
        splits=new.splits,
        item_labels=new.item_labels,
        message=new.message,
        by_reference=new.by_reference,
        labels=new.labels,
        origins=new.origins,
    )


def _links(record: DatasetVersionRecord) -> list[Row]:
    origins = record.origins
    asked = "predicted-with" if origins.job else "captured-from"
    sources = [
        *((source, "made-from") for source in origins.made_from),
        *((source, "captured-from") for source in origins.captured_from),
        (origins.job, "made-by"),
        (origins.model_version, asked),
    ]
    return [(source, record.resource, relation) for source, relation in sources if source]


def _users(connection: sqlite3.Connection, resource: str) -> tuple[str, ...]:
    return tuple(name for (name,) in connection.execute(sql("users"), (resource,)))


def _drop_frozen(connection: sqlite3.Connection, key: DatasetKey, batch: int, now: Micros) -> None:
    if not batch:
        return
    own = (*key[:2], batch)
    items, size = connection.execute(sql("frozen_size"), own).fetchone()
    connection.execute(sql("drop_frozen"), own)
    connection.execute(sql("head_grew"), (*key[:2], -items, -size, now))


def _append(connection: sqlite3.Connection, key: DatasetKey, added: Appended) -> int:
    own = key[:2]
    connection.execute(sql("add_dataset"), (*own, added.time, added.by, added.time))
    _, _, _, batch, count, _ = connection.execute(sql("dataset"), own).fetchone()
    last = {item.id: item for item in added.items}
    known = execute_rows(connection, "head_known", [(*own, batch, id) for id in last], PART)
    execute_rows(connection, "put_head", [_head_row(key, batch, i) for i in last.values()], PART)
    grown = len(last) - len(known)
    size = sum(item.size for item in last.values()) - sum(size for _, size in known)
    connection.execute(sql("head_grew"), (*own, grown, size, added.time))
    return int(count) + grown


def _put_code(connection: sqlite3.Connection, code: CodeVersionRecord) -> KeptCode:
    row = _code_row(code)
    content = (row[0], row[1], row[3], *row[6:10])
    known = connection.execute(f"{sql('code')} {sql('code_like')}", content).fetchone()
    if known is not None:
        return KeptCode(_code_from(known), True)
    (last,) = connection.execute(sql("code_last"), row[:2]).fetchone()
    record = replace(code, version=last + 1)
    connection.execute(sql("add_code"), _code_row(record))
    return KeptCode(record, False)


# -- rows ----------------------------------------------------------------------------------------


def _version_row(record: DatasetVersionRecord) -> Row:
    origins = record.origins
    items = record.items or ManifestRef("", 0, 0)
    return (
        record.project,
        record.dataset,
        record.version,
        record.manifest.digest,
        record.manifest.total_bytes,
        record.manifest.files,
        items.digest,
        items.total_bytes,
        record.item_count,
        json.dumps(record.splits),
        json.dumps(record.item_labels),
        record.message,
        int(record.by_reference),
        json.dumps(record.labels),
        origins.source,
        origins.job,
        origins.model_version,
        json.dumps(origins.made_from),
        record.create_time,
        record.created_by,
    )


def _version_from(row: Row) -> DatasetVersionRecord:
    return DatasetVersionRecord(
        project=row[0],
        dataset=row[1],
        version=row[2],
        manifest=ManifestRef(row[3], row[4], row[5]),
        items=ManifestRef(row[6], row[7], 1) if row[6] else None,
        item_count=row[8],
        splits=_pairs(row[9]),
        item_labels=_pairs(row[10]),
        message=row[11],
        by_reference=bool(row[12]),
        labels=_pairs(row[13]),
        origins=Origins(row[14], row[15], row[16], tuple(json.loads(row[17]))),
        create_time=row[18],
        created_by=row[19],
    )


def _pairs(text: str) -> tuple[tuple[Any, Any], ...]:
    return tuple((key, value) for key, value in json.loads(text))


def _dataset_from(row: Row) -> DatasetRecord:
    return DatasetRecord(*row)


def _head_row(key: DatasetKey, batch: int, item: HeadItem) -> Row:
    return (
        key.project,
        key.dataset,
        batch,
        item.id,
        item.path,
        item.attributes,
        item.media_type,
        item.sha256,
        item.size,
        item.manifest,
    )


def _head_from(row: Row) -> HeadItem:
    return HeadItem(*row)


def _code_row(code: CodeVersionRecord) -> Row:
    patch = code.patch or ManifestRef("", 0, 0)
    return (
        code.project,
        code.code,
        code.version,
        code.manifest.digest,
        code.manifest.total_bytes,
        code.manifest.files,
        code.git_remote,
        code.git_commit,
        int(code.dirty),
        patch.digest,
        patch.total_bytes,
        code.create_time,
        code.created_by,
    )


def _code_from(row: Row) -> CodeVersionRecord:
    return CodeVersionRecord(
        project=row[0],
        code=row[1],
        version=row[2],
        manifest=ManifestRef(row[3], row[4], row[5]),
        git_remote=row[6],
        git_commit=row[7],
        dirty=bool(row[8]),
        patch=ManifestRef(row[9], row[10], 1) if row[9] else None,
        create_time=row[11],
        created_by=row[12],
    )
