"""Inputs of mode stream: brought in beside the running command, a bounded part of them at a time.

What the job sees is told in `hatoba.streams_in`. Everything that must outlive this process stands
in the attempt's directory: the index says what came, the job's file what it is done with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from hatoba.artifacts.manifest import FILE
from hatoba.streams_in import items_file, stream_index, taken_file
from hatoba.v1 import artifact_pb2, job_pb2
from hatoba_worker import tinyfiles
from hatoba_worker.attempts import Attempt
from hatoba_worker.failures import AttemptFailed, input_changed, staging_failed
from hatoba_worker.transfers import InputChanged, TransferFailed, Transfers

log = structlog.get_logger(__name__)

WINDOW_ITEMS = 64
WINDOW_BYTES = 256 << 20
BATCH_ITEMS = 32
BATCH_BYTES = 32 << 20
LOOK_SECONDS = 0.01
"""How often it is looked whether the job is done with something, while there is no room."""
_READ_ITEMS = 256
_OPEN = 0o755
"""Also for a container, whose user is another; nobody else comes as far as here."""

Item = Mapping[str, Any]
Sleep = Callable[[float], Awaitable[None]]


class Piece(NamedTuple):
    """An item, and the entry of its file if it has one."""

    item: Item
    entry: artifact_pb2.ManifestEntry | None

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return self.entry.size if self.entry else 0


def prepare(home: str, told: job_pb2.Input) -> None:
    """Make what the job looks for: an empty directory, and an index with nothing in it. Blocks."""
    directory = Path(home)
    index = stream_index(directory, told.name)
    index.parent.mkdir(mode=_OPEN, exist_ok=True)
    (directory / "inputs" / told.name).mkdir(mode=_OPEN, parents=True, exist_ok=True)
    for path in (index, taken_file(directory, told.name)):
        path.touch(mode=0o644)


class InputStreams:
    """Feeds the running attempts; `sleep` waits while a job has more than enough."""

    def __init__(
        self, transfers: Transfers, tasks: asyncio.TaskGroup, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._transfers = transfers
        self._tasks = tasks
        self._sleep = sleep
        self._running: dict[str, list[asyncio.Task[None]]] = {}
        self._failures: dict[str, AttemptFailed] = {}

    def begin(self, attempt: Attempt) -> None:
        """Bring in what the attempt reads as a stream; go on where an earlier worker stopped."""
        streams = [each for each in attempt.launch.inputs if each.mode == job_pb2.INPUT_MODE_STREAM]
        if streams and attempt.name not in self._running:
            self._running[attempt.name] = [
                self._tasks.create_task(self._feed(attempt, each), name=f"stream {each.name}")
                for each in streams
            ]

    async def end(self, name: str) -> AttemptFailed | None:
        """Stop feeding an attempt; why one of its streams could not go on, if so."""
        running = self._running.pop(name, [])
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return self._failures.pop(name, None)

    async def _feed(self, attempt: Attempt, told: job_pb2.Input) -> None:
        feed = Feed(Path(attempt.home), told, self._transfers, self._sleep)
        try:
            failed = await feed.run()
            if failed is not None:
                self._failures.setdefault(attempt.name, failed)
        except InputChanged as error:
            await self._fail(attempt, feed, input_changed(str(error)))
        except (TransferFailed, OSError, ValueError) as error:
            await self._fail(attempt, feed, staging_failed(f"input {told.name}: {error}"))

    async def _fail(self, attempt: Attempt, feed: Feed, failure: AttemptFailed) -> None:
        log.warning("stream.failed", attempt=attempt.name, error=str(failure))
        self._failures.setdefault(attempt.name, failure)
        with contextlib.suppress(OSError):
            line = {"error": str(failure), "kind": failure.kind}
            await asyncio.to_thread(feed.tell, line)


class Feed:
    """One input of one attempt, from its first item or where it stands to its last."""

    def __init__(self, home: Path, told: job_pb2.Input, transfers: Transfers, sleep: Sleep) -> None:
        self._told = told
        self._transfers = transfers
        self._sleep = sleep
        self._root = home / "inputs" / told.name
        self._index = stream_index(home, told.name)
        self._taken = str(taken_file(home, told.name))
        self._parts = home / "streams" / f".{told.name}.parts"
        self._items = items_file(home, told.name) if told.items.digest else None
        self._written = 0
        self._gone = 0
        self._there: deque[Piece] = deque()
        self._uses: dict[str, int] = {}
        self._bytes = 0

    async def run(self) -> AttemptFailed | None:
        """Bring in all of it; why an earlier worker could not, if so. Raises TransferFailed and
        OSError, and ValueError for items that do not fit their tree.
        """
        last = await asyncio.to_thread(self._resume)
        if "error" in last:
            return AttemptFailed(last["kind"], last["error"])
        if "end" in last:
            return None
        manifest = await self._transfers.manifest(self._told.manifest)
        entries = await asyncio.to_thread(_files_of, manifest)
        del manifest
        async for some in _batches(self._pieces(entries), self._written):
            await self._bring(some)
        await asyncio.to_thread(self.tell, {"end": self._written})
        return None

    # -- where it stands ------------------------------------------------------------------------

    def _resume(self) -> dict[str, Any]:
        """Read what an earlier worker brought in; the last line, when nothing follows on it.
        Blocks.
        """
        shutil.rmtree(self._parts, ignore_errors=True)
        told = list(_whole_lines(self._index))
        if told and ("end" in told[-1] or "error" in told[-1]):
            return told[-1]
        self._written = len(told)
        self._gone = min(tinyfiles.size(self._taken), self._written)
        kept = {line["item"]["path"] for line in told[self._gone :]}
        for line in told[: self._gone]:
            if line["item"]["path"] not in kept:
                self._remove(line["item"]["path"])
        for line in told[self._gone :]:
            entry = artifact_pb2.ManifestEntry(path=line["item"]["path"], size=line["size"])
            self._note(Piece(line["item"], entry if entry.path else None))
        return {}

    def _note(self, piece: Piece) -> None:
        self._there.append(piece)
        self._bytes += piece.size
        if piece.entry:
            path = piece.entry.path
            self._uses[path] = self._uses.get(path, 0) + 1

    # -- what comes -------------------------------------------------------------------------------

    def _pieces(self, entries: dict[str, artifact_pb2.ManifestEntry]) -> Iterator[Piece]:
        """All items in order. Raises ValueError for one whose file the tree does not have."""
        if self._items is None:
            for path, entry in entries.items():
                yield Piece({"id": path, "path": path, "attributes": {}, "media_type": ""}, entry)
            return
        with open(self._items, "rb") as lines:
            for line in lines:
                if line.strip():
                    yield _piece(json.loads(line), entries)

    async def _bring(self, rest: Sequence[Piece]) -> None:
        while rest:
            batch = _first_of(rest)
            await self._room(batch)
            await self._fetch([piece for piece in batch if piece.entry])
            await asyncio.to_thread(self._publish, batch)
            rest = rest[len(batch) :]

    async def _room(self, batch: Sequence[Piece]) -> None:
        """Wait until the job is done with so much that this may come."""
        size = sum(piece.size for piece in batch)
        while self._there:
            await asyncio.to_thread(self._clear)
            fits = len(self._there) + len(batch) <= WINDOW_ITEMS
            if fits and self._bytes + size <= WINDOW_BYTES:
                return
            if self._there:
                await self._sleep(LOOK_SECONDS)

    async def _fetch(self, batch: Sequence[Piece]) -> None:
        missing = {
            piece.entry.path: piece.entry
            for piece in batch
            if piece.entry and not self._uses.get(piece.entry.path)
        }
        if missing:
            some = artifact_pb2.Manifest(entries=[missing[path] for path in sorted(missing)])
            await self._transfers.files(self._told.manifest, some, self._parts)

    def _publish(self, batch: Sequence[Piece]) -> None:
        """Give files their names, then say that they are there. Blocks."""
        for piece in batch:
            if piece.entry and not self._uses.get(piece.entry.path):
                path = self._root / piece.entry.path
                path.parent.mkdir(mode=_OPEN, parents=True, exist_ok=True)
                part = self._parts / piece.entry.path
                part.chmod(part.stat().st_mode & 0o777 | 0o444)
                os.replace(part, path)
            self._note(piece)
        shutil.rmtree(self._parts, ignore_errors=True)
        self.tell(*[{"item": piece.item, "size": piece.size} for piece in batch])
        self._written += len(batch)

    def tell(self, *lines: Mapping[str, Any]) -> None:
        """Add lines to the index. Blocks."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with open(self._index, "ab") as index:
            index.write(text.encode())

    # -- what goes --------------------------------------------------------------------------------

    def _clear(self) -> None:
        """Remove the files that the job is done with. Blocks."""
        done = tinyfiles.size(self._taken)
        while self._there and self._gone < done:
            piece = self._there.popleft()
            self._gone += 1
            self._bytes -= piece.size
            if piece.entry:
                self._release(piece.entry.path)

    def _release(self, path: str) -> None:
        self._uses[path] -= 1
        if not self._uses[path]:
            del self._uses[path]
            self._remove(path)

    def _remove(self, path: str) -> None:
        if path:
            with contextlib.suppress(OSError):
                os.unlink(self._root / path)


def _files_of(manifest: artifact_pb2.Manifest) -> dict[str, artifact_pb2.ManifestEntry]:
    return {entry.path: entry for entry in manifest.entries if entry.type == FILE}


def _piece(line: dict[str, Any], entries: Mapping[str, artifact_pb2.ManifestEntry]) -> Piece:
    item = {"path": "", "attributes": {}, "media_type": "", **line}
    if not item["path"]:
        return Piece(item, None)
    entry = entries.get(item["path"])
    if entry is None:
        raise ValueError(f"item {item['id']!r} names {item['path']!r}, which the tree lacks")
    return Piece(item, entry)


async def _batches(pieces: Iterator[Piece], skip: int) -> AsyncIterator[list[Piece]]:
    await asyncio.to_thread(lambda: deque(islice(pieces, skip), maxlen=0))
    while some := await asyncio.to_thread(lambda: list(islice(pieces, _READ_ITEMS))):
        yield some


def _first_of(rest: Sequence[Piece]) -> list[Piece]:
    """As many as one call fetches; at least one."""
    batch: list[Piece] = []
    size = 0
    for piece in rest:
        size += piece.size
        if batch and (len(batch) == BATCH_ITEMS or size > BATCH_BYTES):
            break
        batch.append(piece)
    return batch


def _whole_lines(index: Path) -> Iterator[dict[str, Any]]:
    """What the index says; a line that was not finished is taken away."""
    end = 0
    with open(index, "r+b") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                lines.truncate(end)
                return
            end += len(line)
            yield json.loads(line)
