"""Items of dataset versions where they are stored: read in pieces, checked, compared, written.

What costs time for each item is done on a thread, a piece of about 1 MiB at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from hatoba.artifacts.manifest import CHUNK_BYTES, FILE, PIECE_BYTES
from hatoba.v1 import artifact_pb2, common_pb2
from hatoba_scheduler.domain.datasets import (
    ITEMS_FILE,
    MOST_LINE,
    Differences,
    Item,
    ItemProblem,
    ItemTerm,
    Print,
    Tally,
    attributes_text,
    differences,
    parse_item,
)
from hatoba_scheduler.domain.records import ManifestRef
from hatoba_scheduler.errors import InvalidArgument
from hatoba_scheduler.store.blobs import ChunkStore, Piece

MODE = 0o644
_KEPT = 2
"""Lists of paths, and comparisons, that are kept for the next page."""
_SCANNED = 16 * 1024 * 1024
"""Bytes of items that are looked through for one page."""
PAGE_BYTES = 256 * 1024
"""Bytes of lines after which a page ends: as messages they may be ten times as large."""

K = TypeVar("K")
V = TypeVar("V")


class Content(NamedTuple):
    """What a version is made of; `items` None: an item for every file."""

    manifest: str
    items: str | None

    @classmethod
    def of(cls, manifest: ManifestRef, items: ManifestRef | None) -> Content:
        """The digests of these."""
        return cls(manifest.digest, items.digest if items else None)


class Survey(NamedTuple):
    """What was found in the content of a new version."""

    tally: Tally
    by_reference: bool


class Page(NamedTuple):
    """Items, and where the next page begins; empty when there is none."""

    items: list[Item]
    after: str


class Lines(NamedTuple):
    """Whole lines, without their newlines, and the offset behind the last."""

    lines: list[bytes]
    end: int


class ItemReader:
    """Reads, checks and compares the items of stored trees."""

    def __init__(self, blobs: ChunkStore) -> None:
        self._blobs = blobs
        self._paths: OrderedDict[str, list[str]] = OrderedDict()
        self._compared: OrderedDict[tuple[Content, Content], Differences] = OrderedDict()

    async def survey(self, content: Content) -> Survey:
        """Check a new version's content. Raises InvalidArgument, which names the line."""
        paths: set[str] = set()
        by_reference = False
        async with aclosing(self._files(content.manifest)) as batches:
            async for files in batches:
                paths.update([file.path for file in files])
                by_reference = by_reference or any(file.HasField("external") for file in files)
        if content.items is None:
            return Survey(Tally(len(paths)), by_reference)
        check = _Check(paths)
        async with aclosing(self.lines(content.items)) as pieces:
            async for piece in pieces:
                await asyncio.to_thread(check.take, piece.lines)
        return Survey(check.tally, by_reference)

    async def lines(self, items: str, start: int = 0) -> AsyncGenerator[Lines, None]:
        """The lines of an items tree from an offset on, about 1 MiB at a time.

        Raises InvalidArgument when it is no tree of one file `items.jsonl`, or a line has no end.
        """
        chunks = _items_chunks(await self._blobs.manifest(items))
        first = start // CHUNK_BYTES
        skip, end = start - first * CHUNK_BYTES, start
        rest = b""
        if first >= len(chunks):
            return
        async with aclosing(self._blobs.read([chunk.sha256 for chunk in chunks[first:]])) as reads:
            async for pieces in reads:
                data = b"".join(piece.data for piece in pieces)
                dropped = min(skip, len(data))
                skip -= dropped
                *whole, rest = (rest + data[dropped:]).split(b"\n")
                end += sum(map(len, whole)) + len(whole)
                if len(rest) > MOST_LINE:
                    raise _bad_items(f"a line has more than {MOST_LINE:,} bytes", rest[:40])
                if whole:
                    yield Lines(whole, end)
        if rest:
            yield Lines([rest], end + len(rest))

    async def page(
        self, content: Content, terms: Sequence[ItemTerm], size: int, after: str
    ) -> Page:
        """Items in order, from a place on; fewer than `size` may come before the last page."""
        start = int(after or 0)
        if content.items is None:
            paths = await self.paths(content.manifest)
            return await asyncio.to_thread(_page_of_paths, paths, terms, size, start)
        found: list[Item] = []
        async with aclosing(self.lines(content.items, start)) as pieces:
            position, room = start, PAGE_BYTES
            async for piece in pieces:
                most = _Room(size - len(found), room)
                looked = await asyncio.to_thread(_page_of_lines, piece, position, terms, most)
                found += looked.items
                position, room = looked.end, looked.room
                if len(found) == size or room <= 0 or position - start >= _SCANNED:
                    return Page(found, str(position))
        return Page(found, "")

    async def paths(self, manifest: str) -> list[str]:
        """The files of a tree, in its order."""
        found = self._paths.get(manifest)
        if found is None:
            found = []
            async with aclosing(self._files(manifest)) as batches:
                async for files in batches:
                    found += [file.path for file in files]
        return _keep(self._paths, manifest, found)

    async def compare(self, before: Content, after: Content) -> Differences:
        """What became of every item between two versions."""
        found = self._compared.get((before, after))
        if found is None:
            old, new = await self._prints(before), await self._prints(after)
            found = await asyncio.to_thread(differences, old, new)
        return _keep(self._compared, (before, after), found)

    async def _prints(self, content: Content) -> dict[str, Print]:
        files: dict[str, bytes] = {}
        async with aclosing(self._files(content.manifest)) as batches:
            async for batch in batches:
                files.update({file.path: _content(file) for file in batch})
        if content.items is None:
            return {path: Print(digest, b"") for path, digest in files.items()}
        found: dict[str, Print] = {}
        async with aclosing(self.lines(content.items)) as pieces:
            async for piece in pieces:
                found |= await asyncio.to_thread(_prints_of, piece.lines, files)
        return found

    async def _files(self, manifest: str) -> AsyncGenerator[list[artifact_pb2.ManifestEntry], None]:
        """The files of a tree, some at a time."""
        async with aclosing(self._blobs.entries(manifest)) as batches:
            async for entries in batches:
                yield [entry for entry in entries if entry.type == FILE]


class ItemWriter:
    """Writes `items.jsonl` into the store as it comes; holds one chunk of it in memory."""

    def __init__(self, blobs: ChunkStore) -> None:
        self._blobs = blobs
        self._upload = blobs.upload()
        self._buffer = bytearray()
        self._entry = artifact_pb2.ManifestEntry(path=ITEMS_FILE, type=FILE, mode=MODE)

    async def write(self, lines: bytes) -> None:
        """Take whole lines, with their newlines."""
        self._buffer += lines
        while len(self._buffer) >= CHUNK_BYTES:
            await self._send(bytes(self._buffer[:CHUNK_BYTES]))
            del self._buffer[:CHUNK_BYTES]

    async def finish(self) -> common_pb2.ManifestRef:
        """Store the rest and the tree; what it is called."""
        if self._buffer:
            await self._send(bytes(self._buffer))
        await self._upload.commit()
        return await self._blobs.put_manifest(artifact_pb2.Manifest(entries=[self._entry]))

    async def _send(self, chunk: bytes) -> None:
        sha = await asyncio.to_thread(lambda: hashlib.sha256(chunk).digest())
        for start in range(0, len(chunk), PIECE_BYTES):
            data = chunk[start : start + PIECE_BYTES]
            await self._upload.add(Piece(sha, data, start + len(data) == len(chunk)))
        self._entry.chunks.add(sha256=sha, size=len(chunk))
        self._entry.size += len(chunk)

    async def __aenter__(self) -> ItemWriter:
        await self._upload.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._upload.__aexit__(*failure)  # type: ignore[arg-type]


class _Check:
    """One walk over the items of a new version."""

    def __init__(self, paths: set[str]) -> None:
        self.tally = Tally()
        self._paths = paths
        self._ids: set[str] = set()
        self._line = 0

    def take(self, lines: Iterable[bytes]) -> None:
        """Look at the next lines. Raises InvalidArgument."""
        for line in lines:
            self._line += 1
            if line.strip():
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            item = parse_item(line)
        except ItemProblem as error:
            raise _bad_line(self._line, str(error), error.value) from None
        if item.id in self._ids:
            raise _bad_line(self._line, "its id is there before", item.id)
        if item.path and item.path not in self._paths:
            raise _bad_line(self._line, "its path is not in the tree", item.path)
        self._ids.add(item.id)
        self.tally.add(item)


def _bad_line(number: int, problem: str, value: object) -> InvalidArgument:
    return _bad_items(f"line {number:,}: {problem}", value)


def _bad_items(problem: str, value: object) -> InvalidArgument:
    return InvalidArgument.field(
        "items",
        f"{ITEMS_FILE}: {problem}",
        value=value,
        remedy='a line is like {"id": "a.png", "path": "a.png", "attributes": {"label": "3"}}',
        rule="items.line",
    )


def _items_chunks(manifest: artifact_pb2.Manifest) -> list[artifact_pb2.Chunk]:
    entries = manifest.entries
    if len(entries) != 1 or entries[0].path != ITEMS_FILE or entries[0].HasField("external"):
        names = ", ".join(entry.path for entry in entries[:3]) or "nothing"
        raise InvalidArgument.field(
            "items", f"must be a tree of one file {ITEMS_FILE}", value=names, rule="items.tree"
        )
    return list(entries[0].chunks)


def _content(entry: artifact_pb2.ManifestEntry) -> bytes:
    if entry.HasField("external"):
        return f"{entry.external.uri} {entry.external.etag}".encode()
    if len(entry.chunks) == 1:
        return entry.chunks[0].sha256
    return hashlib.sha256(b"".join(chunk.sha256 for chunk in entry.chunks)).digest()


def _prints_of(lines: Iterable[bytes], files: dict[str, bytes]) -> dict[str, Print]:
    found: dict[str, Print] = {}
    for line in lines:
        if line.strip():
            item = parse_item(line)
            told = attributes_text(item.attributes).encode() if item.attributes else b""
            short = told if len(told) <= 32 else hashlib.sha256(told).digest()
            found[item.id] = Print(files.get(item.path, b""), short)
    return found


def _page_of_paths(paths: Sequence[str], terms: Sequence[ItemTerm], size: int, start: int) -> Page:
    found: list[Item] = []
    for position in range(start, len(paths)):
        item = Item(paths[position], paths[position])
        if all(term.holds(item) for term in terms):
            found.append(item)
            if len(found) == size:
                return Page(found, str(position + 1) if position + 1 < len(paths) else "")
    return Page(found, "")


class _Room(NamedTuple):
    """What a page still holds."""

    items: int
    size: int


class _Looked(NamedTuple):
    """Items that are meant, the offset behind the last line, and the bytes that still fit."""

    items: list[Item]
    end: int
    room: int


def _page_of_lines(piece: Lines, position: int, terms: Sequence[ItemTerm], most: _Room) -> _Looked:
    found: list[Item] = []
    room = most.size
    for line in piece.lines:
        position += len(line) + 1
        if not line.strip():
            continue
        item = parse_item(line)
        if not all(term.holds(item) for term in terms):
            continue
        found.append(item)
        room -= len(line)
        if len(found) == most.items or room <= 0:
            break
    return _Looked(found, position, room)


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> V:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > _KEPT:
        kept.popitem(last=False)
    return value
