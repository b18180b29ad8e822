"""Inputs as a job reads them: item by item, also while they still come. Standard library only.

The worker writes, in the attempt's directory, `items/NAME/items.jsonl` for datasets, and for inputs
of mode stream `streams/NAME.jsonl`: a line for each item whose file is there, in order, and a last
one that says that all came, or why not. The job adds a byte to `streams/NAME.taken` for each item
that it is done with; its file then goes, and others come.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

ITEMS_FILE = "items.jsonl"
PAUSE = 0.005
LONGEST_PAUSE = 0.1

Item = dict[str, Any]


class InputFailed(RuntimeError):
    """An input that cannot be brought in, or be read a second time."""


def stream_index(directory: Path, name: str) -> Path:
    """Where the worker says what came."""
    return directory / "streams" / f"{name}.jsonl"


def taken_file(directory: Path, name: str) -> Path:
    """As many bytes as items that the job is done with."""
    return directory / "streams" / f"{name}.taken"


def items_file(directory: Path, name: str) -> Path:
    """What is known of an input's items."""
    return directory / "items" / name / ITEMS_FILE


def items_of(directory: Path | None, inputs: Path, name: str) -> Iterator[Item]:
    """The items of an input that is there, in order: `id`, `path`, `attributes`, `media_type`."""
    known = items_file(directory, name) if directory else None
    if known is not None and known.is_file():
        with open(known, "rb") as lines:
            for line in lines:
                if line.strip():
                    yield _filled(json.loads(line))
        return
    root = inputs / name
    for path in sorted(path.relative_to(root).as_posix() for path in _files(root)):
        yield _filled({"id": path, "path": path})


def streamed(directory: Path | None, inputs: Path, name: str) -> Iterator[tuple[Path | None, Item]]:
    """(path, item) of every item, in order; the path is None where an item has no file.

    Of an input of mode stream, each file may be used until the next item is asked for, and all of
    it comes once: a later call goes on where the last one stopped. Raises InputFailed.
    """
    if directory is None or not stream_index(directory, name).exists():
        for item in items_of(directory, inputs, name):
            yield _placed(inputs, name, item), item
        return
    with open(taken_file(directory, name), "ab", buffering=0) as taken:
        done = os.fstat(taken.fileno()).st_size
        for item in _arriving(stream_index(directory, name), done):
            yield _placed(inputs, name, item), item
            # Before the next one is waited for: it may need the room.
            taken.write(b".")


def _arriving(index: Path, done: int) -> Iterator[Item]:
    """Items as they come, from the one behind the first `done`."""
    count = 0
    with open(index, "rb") as lines:
        while True:
            told = json.loads(_line(lines))
            if "error" in told:
                raise InputFailed(told["error"])
            if "end" in told:
                if done and done >= count:
                    raise InputFailed(
                        f"{index.stem} was read to its end, and comes once: "
                        "submit it with mode cache to read it again"
                    )
                return
            count += 1
            if count > done:
                yield told["item"]


def _line(lines: BinaryIO) -> bytes:
    """The next whole line, waited for."""
    start, pause = lines.tell(), PAUSE
    while not (line := lines.readline()).endswith(b"\n"):
        lines.seek(start)
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return line


def _placed(inputs: Path, name: str, item: Item) -> Path | None:
    return inputs / name / item["path"] if item["path"] else None


def _filled(item: Item) -> Item:
    return {"path": "", "attributes": {}, "media_type": "", **item}


def _files(root: Path) -> Iterator[Path]:
    if not root.is_dir():
        raise InputFailed(f"there is no input {root.name!r} in {root.parent}")
    return (path for path in root.rglob("*") if path.is_file())
