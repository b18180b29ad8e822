"""Datasets: push a folder, append single items, commit, look into versions, pull one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import (
    AsyncGenerator,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

from hatoba import packing
from hatoba.artifacts.manifest import FILE
from hatoba.artifacts.pack import PackedTree, pack_tree
from hatoba.artifacts.scan import Scan, Selection, scan_tree
from hatoba.artifacts.scan_cache import ScanCache
from hatoba.artifacts.transfer import Progress
from hatoba.errors import InvalidSpec, NotFound
from hatoba.options import NOT_IN_NAMES
from hatoba.v1 import common_pb2, dataset_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

ITEMS_FILE = "items.jsonl"
VERSION_SECONDS = 120.0
IMPORT_SECONDS = 300.0
APPEND_ITEMS = 500
APPEND_BYTES = 2 * 1024 * 1024
MOST_FILE = 1024 * 1024
_PAGE = 1_000

ItemDict = Mapping[str, Any]
"""An item as a line of `items.jsonl` has it: id, path, attributes, media_type."""


class PushOptions(TypedDict, total=False):
    """How to push. Every one may be left out.

    `items` is a JSONL file, or items as dicts; `labels_from_folders` and `split_from_folders` take
    the first folders of each path for its label and split (split first when both are said);
    `message` is a few words; `labels` are the version's; `progress` is told (bytes done, in all).
    """

    items: str | Path | Iterable[ItemDict]
    labels_from_folders: bool
    split_from_folders: bool
    message: str
    labels: Mapping[str, str]
    progress: Progress


class NewItem(NamedTuple):
    """An item to append: `data` are the bytes of its file, if it has one."""

    id: str
    data: bytes = b""
    attributes: Mapping[str, Any] = {}
    path: str = ""
    media_type: str = ""


class Difference(NamedTuple):
    """What became of an item: `added`, `removed`, `content` or `attributes`."""

    id: str
    change: str


@dataclass(frozen=True)
class Diff:
    """How two versions differ, by items."""

    added: int = 0
    removed: int = 0
    changed: int = 0
    same: int = 0
    differences: list[Difference] = field(default_factory=list)


class AsyncDatasets:
    """Datasets of a client's project. Names are `faces`, versions `faces:3` (`faces`: newest)."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def push(
        self, directory: str | Path, name: str = "", **options: Unpack[PushOptions]
    ) -> dataset_pb2.DatasetVersion:
        """Make the next version of everything in a directory; its name is the default.

        What did not change makes no other version: the newest is returned. Raises InvalidSpec for
        items that cannot be read, TreeRefused for what cannot be packed.
        """
        name = name or await asyncio.to_thread(name_of, Path(directory))
        progress = options.get("progress", packing.nobody)
        async with packing.on_thread(_packed(Path(directory), options)) as (tree, items):
            for warning in tree.warnings:
                self._client.notify(warning)
            newest = await self._newest(name)
            if newest is not None and _same(newest, tree, items):
                return newest
            request = dataset_pb2.CreateDatasetVersionRequest(
                project=self._client.project,
                dataset=name,
                message=options.get("message", ""),
                labels=options.get("labels"),
            )
            request.manifest.CopyFrom(await packing.upload(self._client, tree, progress))
            if items is not None:
                request.items.CopyFrom(await packing.upload(self._client, items))
            return await self._client.call(
                request, dataset_pb2.DatasetVersion, timeout=VERSION_SECONDS
            )

    async def _newest(self, name: str) -> dataset_pb2.DatasetVersion | None:
        try:
            return await self.get(name)
        except NotFound:
            return None

    async def append(self, name: str, items: Iterable[NewItem], *, request_id: str = "") -> int:
        """Add items to a dataset's head, durably; how many it has now."""
        count = number = 0
        batches = _batches(items)
        # Items may be read from files as they are asked for.
        while batch := await asyncio.to_thread(next, batches, None):
            request = dataset_pb2.AppendDatasetItemsRequest(
                project=self._client.project, dataset=name, items=map(_item_message, batch)
            )
            if request_id:
                request.request_id = f"{request_id}-{number}"
            reply = await self._client.call(request, dataset_pb2.AppendDatasetItemsResponse)
            count, number = reply.head_items, number + 1
        return count

    async def commit(self, name: str, message: str = "") -> dataset_pb2.DatasetVersion:
        """Freeze the newest version's items and the head's as the next version."""
        request = dataset_pb2.CommitDatasetRequest(
            project=self._client.project, dataset=name, message=message
        )
        return await self._client.call(request, dataset_pb2.DatasetVersion, timeout=VERSION_SECONDS)

    async def import_bucket(
        self, uri: str, name: str, *, message: str = "", labels_from_folders: bool = False
    ) -> dataset_pb2.DatasetVersion:
        """Record what lies below `s3://BUCKET/PREFIX` as the next version, without copying it."""
        request = dataset_pb2.ImportDatasetRequest(
            project=self._client.project,
            dataset=name,
            uri=uri,
            message=message,
            labels_from_folders=labels_from_folders,
        )
        return await self._client.call(request, dataset_pb2.DatasetVersion, timeout=IMPORT_SECONDS)

    async def get(self, name: str) -> dataset_pb2.DatasetVersion:
        """One version; without a number the newest."""
        request = dataset_pb2.GetDatasetVersionRequest(project=self._client.project, name=name)
        return await self._client.call(request, dataset_pb2.DatasetVersion)

    async def list(self) -> Sequence[dataset_pb2.Dataset]:
        """All datasets by name."""
        request = dataset_pb2.ListDatasetsRequest(project=self._client.project, page_size=_PAGE)
        found: list[dataset_pb2.Dataset] = []
        while True:
            page = await self._client.call(request, dataset_pb2.ListDatasetsResponse)
            found.extend(page.datasets)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return found

    async def versions(
        self, name: str, *, limit: int = 100
    ) -> Sequence[dataset_pb2.DatasetVersion]:
        """The newest versions of a dataset, at most `limit`."""
        request = dataset_pb2.ListDatasetVersionsRequest(project=self._client.project, dataset=name)
        found: list[dataset_pb2.DatasetVersion] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), _PAGE)
            page = await self._client.call(request, dataset_pb2.ListDatasetVersionsResponse)
            found.extend(page.versions)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

    async def items(
        self, name: str, filter: str = "", *, head: bool = False
    ) -> AsyncGenerator[dataset_pb2.DatasetItem, None]:
        """Items in order, those that a filter (`split = test AND label != 3`) leaves."""
        if not head:
            name = await self._numbered(name)
        request = dataset_pb2.ListDatasetItemsRequest(
            project=self._client.project, name=name, filter=filter, head=head, page_size=_PAGE
        )
        while True:
            page = await self._client.call(request, dataset_pb2.ListDatasetItemsResponse)
            for item in page.items:
                yield item
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    async def _numbered(self, name: str) -> str:
        """A name with a number: the newest may be another one before its last page was read."""
        if ":" in name or "/versions/" in name:
            return name
        return (await self.get(name)).name

    async def diff(self, before: str, after: str, *, limit: int = 1_000) -> Diff:
        """How two versions differ; the counts are of all, `differences` the first `limit`."""
        before, after = await self._numbered(before), await self._numbered(after)
        request = dataset_pb2.DiffDatasetVersionsRequest(project=self._client.project, to=after)
        setattr(request, "from", before)
        found: list[Difference] = []
        while True:
            request.page_size = max(1, min(limit - len(found), _PAGE))
            page = await self._client.call(request, dataset_pb2.DiffDatasetVersionsResponse)
            found += [Difference(one.id, change_word(one.change)) for one in page.differences]
            request.page_token = page.next_page_token
            if not page.next_page_token or len(found) >= limit:
                return Diff(page.added, page.removed, page.changed, page.same, found[:limit])

    async def pull(
        self,
        name: str,
        directory: str | Path,
        filter: str = "",
        *,
        progress: Progress = packing.nobody,
    ) -> dataset_pb2.DatasetVersion:
        """Fetch a version into a directory, which must be absent or empty; with a filter only the
        files of those items. `items.jsonl` beside it says what is known of them.
        """
        version = await self.get(name)
        target = Path(directory)
        if filter:
            wanted = [item async for item in self.items(version.name, filter)]
            if not wanted:
                raise NotFound(f"no item of {short_version(version)} is left by {filter!r}")
            paths = frozenset(item.path for item in wanted)
            await packing.fetch(self._client, version.manifest, target, progress, paths)
            await asyncio.to_thread(_write_items, target, map(item_dict, wanted))
            return version
        await packing.fetch(self._client, version.manifest, target, progress)
        if version.items.digest:
            await self._fetch_items(version.items, target)
        return version

    async def _fetch_items(self, ref: common_pb2.ManifestRef, target: Path) -> None:
        async with packing.on_thread(packing.scratch(target)) as made:
            tree = made / "items"
            await packing.fetch(self._client, ref, tree)
            await asyncio.to_thread(os.replace, tree / ITEMS_FILE, beside(target))

    async def delete(self, name: str) -> dataset_pb2.DatasetVersion:
        """Remove a version (`faces:3`) that nothing uses."""
        request = dataset_pb2.DeleteDatasetVersionRequest(project=self._client.project, name=name)
        return await self._client.call(request, dataset_pb2.DatasetVersion)


class Datasets:
    """Datasets, for callers without an event loop; see AsyncDatasets."""

    def __init__(self, loop: _LoopThread, datasets: AsyncDatasets) -> None:
        self._loop = loop
        self._datasets = datasets

    def push(
        self, directory: str | Path, name: str = "", **options: Unpack[PushOptions]
    ) -> dataset_pb2.DatasetVersion:
        """See AsyncDatasets.push."""
        return self._loop.run(self._datasets.push(directory, name, **options))

    def append(self, name: str, items: Iterable[NewItem], *, request_id: str = "") -> int:
        """See AsyncDatasets.append."""
        return self._loop.run(self._datasets.append(name, items, request_id=request_id))

    def commit(self, name: str, message: str = "") -> dataset_pb2.DatasetVersion:
        """See AsyncDatasets.commit."""
        return self._loop.run(self._datasets.commit(name, message))

    def import_bucket(
        self, uri: str, name: str, *, message: str = "", labels_from_folders: bool = False
    ) -> dataset_pb2.DatasetVersion:
        """See AsyncDatasets.import_bucket."""
        imported = self._datasets.import_bucket(
            uri, name, message=message, labels_from_folders=labels_from_folders
        )
        return self._loop.run(imported)

    def get(self, name: str) -> dataset_pb2.DatasetVersion:
        """See AsyncDatasets.get."""
        return self._loop.run(self._datasets.get(name))

    def list(self) -> Sequence[dataset_pb2.Dataset]:
        """See AsyncDatasets.list."""
        return self._loop.run(self._datasets.list())

    def versions(self, name: str, *, limit: int = 100) -> Sequence[dataset_pb2.DatasetVersion]:
        """See AsyncDatasets.versions."""
        return self._loop.run(self._datasets.versions(name, limit=limit))

    def items(
        self, name: str, filter: str = "", *, head: bool = False
    ) -> Generator[dataset_pb2.DatasetItem, None, None]:
        """See AsyncDatasets.items."""
        return self._loop.iterate(self._datasets.items(name, filter, head=head))

    def diff(self, before: str, after: str, *, limit: int = 1_000) -> Diff:
        """See AsyncDatasets.diff."""
        return self._loop.run(self._datasets.diff(before, after, limit=limit))

    def pull(
        self, name: str, directory: str | Path, filter: str = ""
    ) -> dataset_pb2.DatasetVersion:
        """See AsyncDatasets.pull."""
        return self._loop.run(self._datasets.pull(name, directory, filter))

    def delete(self, name: str) -> dataset_pb2.DatasetVersion:
        """See AsyncDatasets.delete."""
        return self._loop.run(self._datasets.delete(name))


# -- words -----------------------------------------------------------------------------------------


def short_version(version: dataset_pb2.DatasetVersion | dataset_pb2.CodeVersion) -> str:
    """`faces:3` for a version."""
    parts = version.name.split("/")
    return f"{parts[3]}:{parts[5]}" if len(parts) == 6 else version.name


def change_word(change: dataset_pb2.ItemChange.ValueType) -> str:
    """A change without its prefix, in small letters."""
    return dataset_pb2.ItemChange.Name(change).removeprefix("ITEM_CHANGE_").lower()


def name_of(directory: Path) -> str:
    """A dataset's name out of a directory's. Raises InvalidSpec."""
    found = NOT_IN_NAMES.sub("-", directory.resolve().name.lower())[:48].strip("-")
    if not found:
        raise InvalidSpec(f"{directory} gives no name", remedy="say one: --name NAME")
    return found


def beside(target: Path) -> Path:
    """Where the items of a pulled directory are written."""
    return target.with_name(f"{target.name}.{ITEMS_FILE}")


def item_dict(item: dataset_pb2.DatasetItem) -> dict[str, Any]:
    """An item as a line of `items.jsonl` has it."""
    from google.protobuf import json_format

    found = json_format.MessageToDict(item, preserving_proto_field_name=True)
    attributes = found.get("attributes", {})
    found |= {"attributes": {key: _plain(value) for key, value in attributes.items()}}
    return {key: found[key] for key in ("id", "path", "attributes", "media_type") if key in found}


def _plain(value: Any) -> Any:
    """Numbers travel as doubles; whole ones are written without a point."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# -- push ------------------------------------------------------------------------------------------


@contextmanager
def _packed(
    directory: Path, options: PushOptions
) -> Iterator[tuple[PackedTree, PackedTree | None]]:
    """A directory's tree and its items', as long as they can be read."""
    if not directory.is_dir():
        raise InvalidSpec(f"there is no directory {directory}")
    scan = scan_tree(directory, Selection.EVERYTHING)
    lines = _item_lines(scan, options)
    if lines is None:
        yield pack_tree(scan, cache=ScanCache.of_user()), None
        return
    # Items that cannot be are told of before the files are read.
    with packing.one_file(ITEMS_FILE, lines) as items:
        yield pack_tree(scan, cache=ScanCache.of_user()), items


def _item_lines(scan: Scan, options: PushOptions) -> Iterator[bytes] | None:
    """The items to send, checked as far as can be seen from here; None: one for every file."""
    files = (found for found in scan.entries if found.type == FILE)
    label = options.get("labels_from_folders", False)
    split = options.get("split_from_folders", False)
    if "items" in options:
        if label or split:
            raise InvalidSpec("say either --items or --labels-from and --split-from")
        return _told_lines(options["items"], {found.path for found in files})
    if not (label or split):
        return None
    return (item_line(_folder_item(found.path, label, split)) for found in files)


def _folder_item(path: str, label: bool, split: bool) -> dict[str, Any]:
    folders = path.split("/")[:-1]
    attributes = {}
    if split and folders:
        attributes["split"] = folders.pop(0)
    if label and folders:
        attributes["label"] = folders[0]
    return {"id": path, "path": path, "attributes": attributes}


def item_line(item: ItemDict) -> bytes:
    """An item as a line. Raises InvalidSpec for what JSON cannot carry."""
    try:
        text = json.dumps(item, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return text.encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise InvalidSpec(f"item {item.get('id', '')!r} cannot be written: {error}") from None


def _told_lines(told: str | Path | Iterable[ItemDict], paths: set[str]) -> Iterator[bytes]:
    if not isinstance(told, str | Path):
        for number, item in enumerate(told, start=1):
            _check_path(f"item {number}", item, paths)
            yield item_line(item)
        return
    try:
        with open(told, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _check_line(f"{told}:{number}", line, paths)
                    yield line.rstrip(b"\r\n") + b"\n"
    except OSError as error:
        raise InvalidSpec(f"the items {told} cannot be read: {error.strerror}") from None


def _check_line(at: str, line: bytes, paths: set[str]) -> None:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise InvalidSpec(f"{at}: not a JSON object: {error}") from None
    if not isinstance(item, dict):
        raise InvalidSpec(f"{at}: not a JSON object")
    _check_path(at, item, paths)


def _check_path(at: str, item: ItemDict, paths: set[str]) -> None:
    path = item.get("path")
    if path and path not in paths:
        raise InvalidSpec(
            f"{at}: there is no file {path!r} in the directory",
            remedy="paths are relative to it, with / between parts",
        )


def _same(newest: dataset_pb2.DatasetVersion, tree: PackedTree, items: PackedTree | None) -> bool:
    wanted = items.ref.digest if items else ""
    return (newest.manifest.digest, newest.items.digest) == (tree.ref.digest, wanted)


# -- append ----------------------------------------------------------------------------------------


def items_of_files(files: Iterable[Path], attributes: Mapping[str, Any]) -> Iterator[NewItem]:
    """An item for each file, called by its name. Raises InvalidSpec for one that is too big."""
    for file in files:
        try:
            data = _read(file)
        except OSError as error:
            raise InvalidSpec(f"{file} cannot be read: {error.strerror}") from None
        yield NewItem(file.name, data, attributes)


def _read(file: Path) -> bytes:
    if file.stat().st_size > MOST_FILE:
        raise InvalidSpec(
            f"{file} has more than {MOST_FILE:,} bytes",
            remedy="a version may have it: hatoba datasets push DIR",
        )
    return file.read_bytes()


def _batches(items: Iterable[NewItem]) -> Iterator[list[NewItem]]:
    batch: list[NewItem] = []
    size = 0
    for item in items:
        if batch and (len(batch) == APPEND_ITEMS or size + len(item.data) > APPEND_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item.data)
    if batch:
        yield batch


def _item_message(item: NewItem) -> dataset_pb2.DatasetItem:
    message = dataset_pb2.DatasetItem(
        id=item.id, path=item.path, media_type=item.media_type, data=item.data
    )
    if item.attributes:
        message.attributes.update(dict(item.attributes))
    return message


def _write_items(target: Path, items: Iterable[ItemDict]) -> None:
    with open(beside(target), "wb") as file:
        file.writelines(map(item_line, items))
