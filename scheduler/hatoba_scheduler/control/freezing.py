"""From a dataset's newest version and its head to the content of the next version."""

from __future__ import annotations

import asyncio
import json
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

from hatoba.artifacts.manifest import FILE, path_problem
from hatoba.v1 import artifact_pb2, common_pb2
from hatoba_scheduler.control.items import MODE, Content, ItemReader, ItemWriter
from hatoba_scheduler.domain.datasets import (
    HeadItem,
    Item,
    Tally,
    item_line,
    parse_item,
)
from hatoba_scheduler.store.blobs import ChunkStore

_AT_ONCE = 5_000
_PLACES = ("appended", "appended.files", "appended.more")
"""Where files go whose own path is taken: the first that is no file itself."""


class Frozen(NamedTuple):
    """The content of a new version."""

    manifest: common_pb2.ManifestRef
    items: common_pb2.ManifestRef
    tally: Tally
    by_reference: bool


async def freeze(
    blobs: ChunkStore, reader: ItemReader, newest: Content | None, head: Sequence[HeadItem]
) -> Frozen:
    """The newest version's items, then the head's. An item of the head replaces one of its id."""
    last = {item.id: item for item in head}
    tree = await _tree_of(blobs, newest)
    tally = Tally()
    async with ItemWriter(blobs) as writer:
        dropped = await _copy_old(reader, writer, newest, _Old(last, tree, tally))
        tree.drop(dropped)
        items = list(last.values())
        for start in range(0, len(items), _AT_ONCE):
            some = items[start : start + _AT_ONCE]
            await writer.write(await asyncio.to_thread(_new_lines, some, tree, tally))
        stored = await writer.finish()
    manifest = await asyncio.to_thread(tree.manifest)
    return Frozen(await blobs.put_manifest(manifest), stored, tally, tree.external)


class _Old(NamedTuple):
    """What the walk over the newest version's items looks at, and fills."""

    replaced: Mapping[str, HeadItem]
    tree: _Tree
    tally: Tally


async def _copy_old(
    reader: ItemReader, writer: ItemWriter, newest: Content | None, old: _Old
) -> set[str]:
    """Write the items that stay; the paths of those that do not, and that no other item has."""
    dropped: set[str] = set()
    kept: set[str] = set()
    if newest is None:
        return dropped
    if newest.items is None:
        paths = await reader.paths(newest.manifest)
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            await writer.write(await asyncio.to_thread(_old_paths, some, old, dropped))
        return dropped
    async with aclosing(reader.lines(newest.items)) as pieces:
        async for piece in pieces:
            lines = await asyncio.to_thread(_old_lines, piece.lines, old, dropped, kept)
            await writer.write(lines)
    return dropped - kept


def _old_paths(paths: Iterable[str], old: _Old, dropped: set[str]) -> bytes:
    stay = [path for path in paths if path not in old.replaced]
    dropped.update(old.replaced.keys() & set(paths))
    old.tally.items += len(stay)
    return b"".join([item_line(Item(path, path)) for path in stay])


def _old_lines(lines: Iterable[bytes], old: _Old, dropped: set[str], kept: set[str]) -> bytes:
    stay = []
    for line in lines:
        if not line.strip():
            continue
        item = parse_item(line)
        if item.id in old.replaced:
            dropped.add(item.path)
            continue
        kept.add(item.path)
        old.tally.add(item)
        stay.append(line.rstrip(b"\n") + b"\n")
    return b"".join(stay)


def _new_lines(items: Iterable[HeadItem], tree: _Tree, tally: Tally) -> bytes:
    lines = []
    for held in items:
        path = tree.place(held) if held.sha256 else ""
        item = Item(held.id, path, json.loads(held.attributes or "{}"), held.media_type)
        tally.add(item)
        lines.append(item_line(item))
    return b"".join(lines)


class _Tree:
    """Files by path. Whatever was appended finds a place: a commit never fails for a name."""

    def __init__(self, manifest: artifact_pb2.Manifest) -> None:
        self._entries = {entry.path: entry for entry in manifest.entries}
        self._above: set[str] = set()
        for path in self._entries:
            self._note(path)
        self.external = any(entry.HasField("external") for entry in manifest.entries)

    def drop(self, paths: Iterable[str]) -> None:
        """Take files away."""
        for path in paths:
            self._entries.pop(path, None)

    def place(self, item: HeadItem) -> str:
        """Put an item's file in; where it is."""
        sha = bytes.fromhex(item.sha256)
        for path in self._candidates(item):
            known = self._entries.get(path)
            if known is not None and [chunk.sha256 for chunk in known.chunks] == [sha]:
                return path
            if known is None and self._fits(path):
                break
        entry = artifact_pb2.ManifestEntry(path=path, type=FILE, mode=MODE, size=item.size)
        entry.chunks.add(sha256=sha, size=item.size)
        self._entries[path] = entry
        self._note(path)
        return path

    def manifest(self) -> artifact_pb2.Manifest:
        """All of it, in order."""
        return artifact_pb2.Manifest(
            entries=[self._entries[path] for path in sorted(self._entries)]
        )

    def _candidates(self, item: HeadItem) -> list[str]:
        ending = _ending(item)
        own = [item.path] if not path_problem(item.path) else []
        return [*own, *(f"{place}/{item.sha256}{ending}" for place in _PLACES)]

    def _fits(self, path: str) -> bool:
        """No file stands where it needs a directory, and no directory where it would be."""
        above = path.rpartition("/")[0]
        while above:
            entry = self._entries.get(above)
            if entry is not None and entry.type == FILE:
                return False
            above = above.rpartition("/")[0]
        return path not in self._above

    def _note(self, path: str) -> None:
        above = path.rpartition("/")[0]
        while above and above not in self._above:
            self._above.add(above)
            above = above.rpartition("/")[0]


async def _tree_of(blobs: ChunkStore, newest: Content | None) -> _Tree:
    manifest = await blobs.manifest(newest.manifest) if newest else artifact_pb2.Manifest()
    return await asyncio.to_thread(_Tree, manifest)


def _ending(item: HeadItem) -> str:
    if item.media_type:
        return mimetypes.guess_extension(item.media_type) or ""
    name = item.path.rpartition("/")[2]
    return f".{name.rpartition('.')[2]}" if "." in name and name.isascii() else ""
