"""DatasetService: names and numbers for trees of data and of code."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import grpc

from hatoba.artifacts.manifest import FILE, path_problem
from hatoba.artifacts.source import without_credentials
from hatoba.v1 import artifact_pb2, common_pb2, dataset_pb2, dataset_pb2_grpc
from hatoba_scheduler.control.freezing import freeze
from hatoba_scheduler.control.imports import Buckets, imported
from hatoba_scheduler.control.items import MODE, PAGE_BYTES, Content, ItemReader, Survey
from hatoba_scheduler.convert import manifest_of, pairs
from hatoba_scheduler.convert_datasets import (
    code_to_proto,
    dataset_to_proto,
    differences_to_proto,
    items_to_proto,
    plain_attributes,
    version_to_proto,
)
from hatoba_scheduler.domain.datasets import (
    MOST_LINE,
    CodeVersionRecord,
    DatasetVersionRecord,
    FilterError,
    HeadItem,
    Item,
    ItemProblem,
    ItemTerm,
    NewDatasetVersion,
    Origins,
    attributes_text,
    captured_from,
    checked_item,
    item_line,
    parse_item_filter,
)
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.records import ManifestRef, Micros
from hatoba_scheduler.domain.references import BadReference, Reference, parse
from hatoba_scheduler.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Reason,
    Resource,
    ResourceExhausted,
)
from hatoba_scheduler.interceptors.context import current_call
from hatoba_scheduler.services.paging import Pager, page_size
from hatoba_scheduler.services.requests import made_before, request_key, seen_before
from hatoba_scheduler.store.base import RequestKey, Stale, Store
from hatoba_scheduler.store.blobs import ChunkStore, Piece
from hatoba_scheduler.store.datasets import EVERY_BATCH, Appended, DatasetKey, InUse, Kept, KeptCode

Context = grpc.aio.ServicerContext[Any, Any]
UNCHANGED = ("hatoba-unchanged", "true")
HEAD_ITEMS = 1_000_000
APPEND_BYTES = 3 * 1024 * 1024
MOST_APPENDED = MOST_LINE - 1024
"""Bytes of an item's line: its file may get a longer path when it is frozen."""
_HEAD_PAGE = 1_000
_TRIES = 3


@dataclass(frozen=True, slots=True)
class DatasetParts:
    """What the service stands on."""

    store: Store
    blobs: ChunkStore
    buckets: Buckets
    pager: Pager
    now: Callable[[], Micros]


class DatasetServicer(dataset_pb2_grpc.DatasetServiceServicer):
    """See proto/hatoba/v1/dataset.proto."""

    def __init__(self, parts: DatasetParts) -> None:
        self._parts = parts
        self._store = parts.store
        self._kept = parts.store.datasets
        self._reader = ItemReader(parts.blobs)
        # A lock is there as long as somebody commits: anybody may name any dataset.
        self._committing: WeakValueDictionary[DatasetKey, asyncio.Lock] = WeakValueDictionary()

    # -- versions -------------------------------------------------------------------------------

    async def CreateDatasetVersion(
        self, request: dataset_pb2.CreateDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        """Make the next version from a stored tree."""
        project = request.project or DEFAULT_PROJECT
        key = request_key(project, "CreateDatasetVersion", request.request_id, request)
        made = await seen_before(self._store, key)
        if made is not None:
            return version_to_proto(await self._version(parse(made, "datasets")))
        manifest = await self._stored("manifest", request.manifest)
        items = await self._stored("items", request.items) if request.HasField("items") else None
        newest = await self._kept.version(DatasetKey(project, request.dataset))
        if newest is not None and (newest.manifest, newest.items) == (manifest, items):
            survey = None
        else:
            survey = await self._reader.survey(Content.of(manifest, items))
        new = self._new(DatasetKey(project, request.dataset), manifest, items, survey)
        new = new.described(request.message, pairs(request.labels.items()), Origins("push"))
        return await self._put(new, key)

    def _new(
        self,
        key: DatasetKey,
        manifest: ManifestRef,
        items: ManifestRef | None,
        survey: Survey | None,
    ) -> NewDatasetVersion:
        return NewDatasetVersion(
            key.project,
            key.dataset,
            manifest,
            items,
            survey.tally.items if survey else 0,
            self._parts.now(),
            current_call().principal,
            survey.tally.splits if survey else (),
            survey.tally.labels if survey else (),
            by_reference=survey.by_reference if survey else False,
        )

    async def _put(
        self, new: NewDatasetVersion, key: RequestKey | None, frozen: int = 0
    ) -> dataset_pb2.DatasetVersion:
        kept = await self._kept.put_version(new, key, frozen)
        if isinstance(kept, Stale):
            raise Aborted(f"dataset {new.dataset!r} got another version meanwhile; try again")
        if isinstance(kept, Kept):
            if kept.unchanged:
                current_call().trailers.append(UNCHANGED)
            return version_to_proto(kept.record)
        return version_to_proto(await self._version(parse(made_before(kept, key), "datasets")))

    async def _stored(self, field: str, told: common_pb2.ManifestRef) -> ManifestRef:
        """A manifest reference with its true sizes. Raises InvalidArgument."""
        try:
            return manifest_of(await self._parts.blobs.ref(told.digest))
        except NotFound as error:
            raise InvalidArgument.field(
                field,
                "names a manifest that is not stored",
                value=told.digest,
                remedy="upload it with ArtifactService first",
                rule="manifest.unknown",
            ) from error

    async def ImportDataset(
        self, request: dataset_pb2.ImportDatasetRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        """Make the next version from a bucket, by reference."""
        project = request.project or DEFAULT_PROJECT
        key = request_key(project, "ImportDataset", request.request_id, request)
        made = await seen_before(self._store, key)
        if made is not None:
            return version_to_proto(await self._version(parse(made, "datasets")))
        found = await imported(
            self._parts.buckets,
            self._parts.blobs,
            request.uri,
            labelled=request.labels_from_folders,
        )
        items = manifest_of(found.items) if found.items else None
        survey = Survey(found.tally, True)
        own = DatasetKey(project, request.dataset)
        new = self._new(own, manifest_of(found.manifest), items, survey)
        return await self._put(
            new.described(request.message, (), Origins(f"import {request.uri}")), key
        )

    async def GetDatasetVersion(
        self, request: dataset_pb2.GetDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        """One version."""
        reference = _reference("name", request.name, "datasets", request.project)
        return version_to_proto(await self._version(reference))

    async def _version(self, reference: Reference) -> DatasetVersionRecord:
        key = DatasetKey(reference.project, reference.name, reference.version)
        found = await self._kept.version(key)
        if found is None:
            raise await self._missing(reference)
        return found

    async def _missing(self, reference: Reference) -> NotFound:
        dataset = await self._kept.dataset(DatasetKey(reference.project, reference.name))
        resource = Resource("dataset_version", reference.resource)
        if dataset is None:
            where = f"in project {reference.project!r}"
            text = f"there is no dataset {reference.name!r} {where}; see `hatoba datasets list`"
        elif not dataset.latest:
            text = (
                f"dataset {reference.name!r} has no version yet; "
                f"`hatoba datasets commit {reference.name}` makes one of its head"
            )
        else:
            text = (
                f"there is no version {reference.version} of dataset {reference.name!r}, the "
                f"newest is {dataset.latest}; see `hatoba datasets list {reference.name}`"
            )
        return NotFound(text, resource=resource)

    async def ListDatasets(
        self, request: dataset_pb2.ListDatasetsRequest, context: Context
    ) -> dataset_pb2.ListDatasetsResponse:
        """Datasets by name."""
        project = request.project or DEFAULT_PROJECT
        scope = f"datasets:{project}"
        after = self._parts.pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = await self._kept.datasets(project, after, size + 1)
        reply = dataset_pb2.ListDatasetsResponse(datasets=map(dataset_to_proto, found[:size]))
        if len(found) > size:
            reply.next_page_token = self._parts.pager.token(scope, found[size - 1].name)
        return reply

    async def ListDatasetVersions(
        self, request: dataset_pb2.ListDatasetVersionsRequest, context: Context
    ) -> dataset_pb2.ListDatasetVersionsResponse:
        """Versions of a dataset, newest first."""
        reference = _reference("dataset", request.dataset, "datasets", request.project)
        key = DatasetKey(reference.project, reference.name)
        scope = f"dataset-versions:{reference.parent}"
        below = self._parts.pager.position(scope, request.page_token)
        size = page_size(request.page_size)
        found = await self._kept.versions(key, int(below or EVERY_BATCH), size + 1)
        if not found and not below and await self._kept.dataset(key) is None:
            raise await self._missing(reference)
        reply = dataset_pb2.ListDatasetVersionsResponse(
            versions=map(version_to_proto, found[:size])
        )
        if len(found) > size:
            position = str(found[size - 1].version)
            reply.next_page_token = self._parts.pager.token(scope, position)
        return reply

    async def DeleteDatasetVersion(
        self, request: dataset_pb2.DeleteDatasetVersionRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        """Remove a version that nothing uses."""
        reference = _reference("name", request.name, "datasets", request.project)
        if not reference.version:
            raise InvalidArgument.field(
                "name",
                "must say which version",
                value=request.name,
                remedy=f"write for example {reference.name}:3",
                rule="reference.version",
            )
        key = request_key(reference.project, "DeleteDatasetVersion", request.request_id, request)
        own = DatasetKey(reference.project, reference.name, reference.version)
        outcome = await self._kept.delete_version(own, key)
        if outcome is None:
            raise await self._missing(reference)
        if isinstance(outcome, InUse):
            raise FailedPrecondition(
                f"{reference.short} is used by {', '.join(outcome.users)}; nothing was removed",
                resource=Resource("dataset_version", reference.resource),
            )
        if isinstance(outcome, DatasetVersionRecord):
            return version_to_proto(outcome)
        return dataset_pb2.DatasetVersion(name=made_before(outcome, key), version=reference.version)

    # -- items ------------------------------------------------------------------------------------

    async def ListDatasetItems(
        self, request: dataset_pb2.ListDatasetItemsRequest, context: Context
    ) -> dataset_pb2.ListDatasetItemsResponse:
        """Items of a version or of the head, in order."""
        reference = _reference("name", request.name, "datasets", request.project)
        terms = _terms(request.filter)
        size = page_size(request.page_size)
        if request.head:
            return await self._head_page(reference, terms, size, request)
        record = await self._version(reference)
        # The newest version of today is another tomorrow: its pages belong to it alone.
        scope = f"items:{record.resource}:{request.filter}"
        after = self._parts.pager.position(scope, request.page_token)
        content = Content.of(record.manifest, record.items)
        page = await self._reader.page(content, terms, size, after)
        messages = await asyncio.to_thread(items_to_proto, page.items)
        reply = dataset_pb2.ListDatasetItemsResponse(items=messages)
        if page.after:
            reply.next_page_token = self._parts.pager.token(scope, page.after)
        return reply

    async def _head_page(
        self,
        reference: Reference,
        terms: Sequence[ItemTerm],
        size: int,
        request: dataset_pb2.ListDatasetItemsRequest,
    ) -> dataset_pb2.ListDatasetItemsResponse:
        key = DatasetKey(reference.project, reference.name)
        if await self._kept.dataset(key) is None:
            raise await self._missing(reference)
        scope = f"head:{reference.parent}:{request.filter}"
        after = int(self._parts.pager.position(scope, request.page_token) or 0)
        # A page may hold fewer than asked for; it is the last one when no token comes with it.
        held = await self._kept.head(key, after, size)
        some = _fitting(held)
        messages = await asyncio.to_thread(_meant, some, terms)
        reply = dataset_pb2.ListDatasetItemsResponse(items=messages)
        if len(some) < len(held) or len(held) == size:
            reply.next_page_token = self._parts.pager.token(scope, str(some[-1].position))
        return reply

    async def DiffDatasetVersions(
        self, request: dataset_pb2.DiffDatasetVersionsRequest, context: Context
    ) -> dataset_pb2.DiffDatasetVersionsResponse:
        """What changed between two versions, by items."""
        told = (("from", getattr(request, "from")), ("to", request.to))
        before, after = [
            await self._version(_reference(field, name, "datasets", request.project))
            for field, name in told
        ]
        scope = f"diff:{before.resource}:{after.resource}"
        start = int(self._parts.pager.position(scope, request.page_token) or 0)
        size = page_size(request.page_size)
        contents = [Content.of(one.manifest, one.items) for one in (before, after)]
        found = await self._reader.compare(*contents)
        reply = differences_to_proto(found, start, size)
        if start + size < len(found.changes):
            reply.next_page_token = self._parts.pager.token(scope, str(start + size))
        return reply

    # -- head -------------------------------------------------------------------------------------

    async def AppendDatasetItems(
        self, request: dataset_pb2.AppendDatasetItemsRequest, context: Context
    ) -> dataset_pb2.AppendDatasetItemsResponse:
        """Add items to the head, durably."""
        return await self.append(request)

    async def append(
        self, request: dataset_pb2.AppendDatasetItemsRequest
    ) -> dataset_pb2.AppendDatasetItemsResponse:
        """Add checked items to a head, durably, once for their request id."""
        project = request.project or DEFAULT_PROJECT
        own = DatasetKey(project, request.dataset)
        key = request_key(project, "AppendDatasetItems", request.request_id, request)
        made = await seen_before(self._store, key)
        if made is not None:
            return dataset_pb2.AppendDatasetItemsResponse(head_items=await self._head_items(own))
        items = await asyncio.to_thread(_head_items_of, request.items)
        if await self._head_items(own) + len(items) > HEAD_ITEMS:
            raise ResourceExhausted(
                f"the head of {request.dataset!r} would have more than {HEAD_ITEMS:,} items; "
                f"`hatoba datasets commit {request.dataset}` empties it"
            )
        items = await self._with_files(items, request.items)
        added = Appended(items, current_call().principal, self._parts.now())
        outcome = await self._kept.append(own, added, key)
        if not isinstance(outcome, int):
            made_before(outcome, key)
            outcome = await self._head_items(own)
        return dataset_pb2.AppendDatasetItemsResponse(head_items=outcome)

    async def _head_items(self, key: DatasetKey) -> int:
        dataset = await self._kept.dataset(key)
        return dataset.head_items if dataset else 0

    async def _with_files(
        self, items: Sequence[HeadItem], told: Sequence[dataset_pb2.DatasetItem]
    ) -> list[HeadItem]:
        """The items once their files are stored, in one tree that keeps them until the commit."""
        files = {item.sha256: one.data for item, one in zip(items, told, strict=True) if one.data}
        if not files:
            return list(items)
        manifest = artifact_pb2.Manifest()
        async with self._parts.blobs.upload() as upload:
            for name, data in sorted(files.items()):
                sha = bytes.fromhex(name)
                await upload.add(Piece(sha, data, True))
                entry = manifest.entries.add(path=name, type=FILE, mode=MODE, size=len(data))
                entry.chunks.add(sha256=sha, size=len(data))
            await upload.commit()
        ref = await self._parts.blobs.put_manifest(manifest)
        return [item.stored_in(ref.digest) if item.sha256 else item for item in items]

    async def CommitDataset(
        self, request: dataset_pb2.CommitDatasetRequest, context: Context
    ) -> dataset_pb2.DatasetVersion:
        """Freeze the head as the next version."""
        reference = _reference("dataset", request.dataset, "datasets", request.project)
        key = request_key(reference.project, "CommitDataset", request.request_id, request)
        own = DatasetKey(reference.project, reference.name)
        async with self._committing.setdefault(own, asyncio.Lock()):
            made = await seen_before(self._store, key)
            if made is not None:
                return version_to_proto(await self._version(parse(made, "datasets")))
            return await self._commit(reference, request.message, key)

    async def _commit(
        self, reference: Reference, message: str, key: RequestKey | None
    ) -> dataset_pb2.DatasetVersion:
        own = DatasetKey(reference.project, reference.name)
        for _ in range(_TRIES):
            frozen = await self._kept.freeze(own)
            if frozen is None:
                raise await self._missing(reference)
            if not frozen.items:
                raise FailedPrecondition(
                    f"the head of {reference.name!r} is empty; "
                    f"`hatoba datasets append {reference.name} FILE` adds to it",
                    resource=Resource("dataset", reference.parent),
                )
            new = await self._frozen_version(own, frozen.batch, frozen.latest, message)
            try:
                return await self._put(new, key, frozen.batch)
            except Aborted:
                # A push came between; what was frozen stays, and is frozen over that one.
                continue
        raise Aborted(f"dataset {reference.name!r} keeps getting other versions; try again")

    async def _frozen_version(
        self, own: DatasetKey, batch: int, latest: int, message: str
    ) -> NewDatasetVersion:
        newest = None
        if latest:
            record = await self._version(Reference("datasets", own.project, own.dataset, latest))
            newest = Content.of(record.manifest, record.items)
        head = await self._whole_head(own, batch)
        made = await freeze(self._parts.blobs, self._reader, newest, head)
        survey = Survey(made.tally, made.by_reference)
        new = self._new(own, manifest_of(made.manifest), manifest_of(made.items), survey)
        captured = await asyncio.to_thread(captured_from, head, own.project)
        return new.described(message, (), Origins("append", captured_from=captured)).over(latest)

    async def _whole_head(self, key: DatasetKey, batch: int) -> list[HeadItem]:
        found: list[HeadItem] = []
        while True:
            after = found[-1].position if found else 0
            some = await self._kept.head(key, after, _HEAD_PAGE, batch)
            found += some
            if len(some) < _HEAD_PAGE:
                return found

    # -- code -------------------------------------------------------------------------------------

    async def CreateCodeVersion(
        self, request: dataset_pb2.CreateCodeVersionRequest, context: Context
    ) -> dataset_pb2.CodeVersion:
        """Record code by content, with where it came from."""
        project = request.project or DEFAULT_PROJECT
        key = request_key(project, "CreateCodeVersion", request.request_id, request)
        made = await seen_before(self._store, key)
        if made is not None:
            return code_to_proto(await self._code(parse(made, "code")))
        code = CodeVersionRecord(
            project,
            request.code,
            0,
            await self._stored("manifest", request.manifest),
            without_credentials(request.git_remote),
            request.git_commit,
            request.dirty,
            await self._stored("patch", request.patch) if request.HasField("patch") else None,
            self._parts.now(),
            current_call().principal,
        )
        kept = await self._kept.put_code(code, key)
        if isinstance(kept, KeptCode):
            if kept.unchanged:
                current_call().trailers.append(UNCHANGED)
            return code_to_proto(kept.record)
        return code_to_proto(await self._code(parse(made_before(kept, key), "code")))

    async def GetCodeVersion(
        self, request: dataset_pb2.GetCodeVersionRequest, context: Context
    ) -> dataset_pb2.CodeVersion:
        """One version of code."""
        reference = _reference("name", request.name, "code", request.project)
        return code_to_proto(await self._code(reference))

    async def _code(self, reference: Reference) -> CodeVersionRecord:
        found = await self._kept.code_version(reference.project, reference.name, reference.version)
        if found is None:
            raise NotFound(
                f"there is no code {reference.short!r} in project {reference.project!r}; "
                "see `hatoba code list`",
                resource=Resource("code_version", reference.resource),
            )
        return found

    async def ListCodeVersions(
        self, request: dataset_pb2.ListCodeVersionsRequest, context: Context
    ) -> dataset_pb2.ListCodeVersionsResponse:
        """Versions of one code name, or of all, newest first."""
        project, code = request.project or DEFAULT_PROJECT, ""
        if request.code:
            reference = _reference("code", request.code, "code", request.project)
            project, code = reference.project, reference.name
        scope = f"code:{project}:{code}"
        below = _code_position(self._parts.pager.position(scope, request.page_token))
        size = page_size(request.page_size)
        found = await self._kept.code_versions(project, code, below, size + 1)
        reply = dataset_pb2.ListCodeVersionsResponse(versions=map(code_to_proto, found[:size]))
        if len(found) > size:
            last = found[size - 1]
            position = f"{last.create_time}/{last.code}/{last.version}"
            reply.next_page_token = self._parts.pager.token(scope, position)
        return reply


def _reference(field: str, text: str, kind: str, project: str) -> Reference:
    try:
        return parse(text, kind, project)
    except BadReference as error:
        raise InvalidArgument.field(field, str(error), rule="reference") from None


def _terms(text: str) -> tuple[ItemTerm, ...]:
    try:
        return parse_item_filter(text)
    except FilterError as error:
        raise InvalidArgument(f"filter: {error}", reason=Reason.INVALID_FILTER) from None


def _code_position(text: str) -> tuple[Micros, str, int] | None:
    if not text:
        return None
    time, code, version = text.split("/")
    return int(time), code, int(version)


def _fitting(held: Sequence[HeadItem]) -> Sequence[HeadItem]:
    """As many as one message holds."""
    taken = 0
    for position, one in enumerate(held):
        taken += len(one.attributes)
        if taken >= PAGE_BYTES:
            return held[: position + 1]
    return held


def _meant(held: Iterable[HeadItem], terms: Sequence[ItemTerm]) -> list[dataset_pb2.DatasetItem]:
    items = [Item(one.id, one.path, json.loads(one.attributes), one.media_type) for one in held]
    return items_to_proto(item for item in items if all(term.holds(item) for term in terms))


def _head_items_of(told: Sequence[dataset_pb2.DatasetItem]) -> list[HeadItem]:
    """The items of a call, checked. Raises InvalidArgument."""
    total = sum(len(item.data) for item in told)
    if total > APPEND_BYTES:
        raise InvalidArgument.field(
            "items",
            f"must hold at most {APPEND_BYTES:,} bytes together",
            value=total,
            remedy="send them in several calls",
        )
    seen: set[str] = set()
    found = []
    for position, item in enumerate(told):
        at = f"items[{position}]"
        if item.id in seen:
            raise InvalidArgument.field(f"{at}.id", "must be there once in a call", value=item.id)
        seen.add(item.id)
        found.append(_head_item(at, item))
    return found


def _head_item(at: str, told: dataset_pb2.DatasetItem) -> HeadItem:
    try:
        attributes = plain_attributes(told.attributes)
        item = checked_item(told.id, told.path, attributes, told.media_type)
    except ItemProblem as error:
        field = f"{at}.{error.field}"
        raise InvalidArgument.field(field, error.problem, value=error.value) from None
    except ValueError as error:
        raise InvalidArgument.field(f"{at}.attributes", str(error)) from None
    if told.path and (wrong := path_problem(told.path)):
        raise InvalidArgument.field(f"{at}.path", wrong, value=told.path)
    if told.path and not told.data:
        raise InvalidArgument.field(
            f"{at}.data",
            "must hold the file's bytes",
            remedy="or leave the path empty",
            rule="item.data",
        )
    sha = hashlib.sha256(told.data).hexdigest() if told.data else ""
    path = (told.path or told.id) if told.data else ""
    text = attributes_text(item.attributes)
    if len(item_line(item)) > MOST_APPENDED:
        rule = f"must have at most {MOST_APPENDED:,} bytes as JSON, id and path included"
        raise InvalidArgument.field(f"{at}.attributes", rule, value=len(text))
    return HeadItem(told.id, path, text, told.media_type, sha, len(told.data))
