"""Batch inference: one shard of many items, in order, into what a dataset can be made of."""

from __future__ import annotations

import base64
import json
import mimetypes
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TextIO

import hatoba
from hatoba import handlers
from hatoba.handlers import Handler, HandlerError, Payload
from hatoba_worker.serving.answering import Outcome, Question, answer, failure
from hatoba_worker.serving.files import write_atomically

FOLDER = "predictions"
ITEMS = "items.jsonl"
SUMMARY = "summary.json"
MOST_FIRST_ERRORS = 5
TOGETHER = 32
MOST_BYTES_TOGETHER = 64 << 20
_KEPT = ("label", "split")

Item = Mapping[str, Any]
# With its input, or why there is none.
Read = tuple[Item, Question | Outcome]


class ShardFailed(Exception):
    """The shard is given up; the message says why."""


@dataclass(frozen=True, slots=True)
class Options:
    """Which items of `data` are answered, and what an item that is not may cost.

    Without `items`, a file of `DatasetItem`s as JSON lines, every file below `data` is one.
    """

    data: Path
    output: Path
    items: Path | None = None
    on_item_error: Literal["fail", "record"] = "fail"
    max_errors: int | None = None
    together: int = TOGETHER


@dataclass(slots=True)
class Summary:
    """What became of a shard: `done` were answered, of `total`."""

    total: int
    done: int = 0
    errors: int = 0
    first_errors: list[dict[str, str]] = field(default_factory=list)

    def add(self, item: Item, outcome: Outcome) -> None:
        """Count one item."""
        if outcome.status == 200:
            self.done += 1
            return
        self.errors += 1
        if len(self.first_errors) < MOST_FIRST_ERRORS:
            self.first_errors.append({"id": str(item["id"]), "error": outcome.error})

    def text(self) -> str:
        """As it is written."""
        found = {
            "total": self.total,
            "done": self.done,
            "errors": self.errors,
            "first_errors": self.first_errors,
        }
        return json.dumps(found, ensure_ascii=False) + "\n"


def batch(name: str, code: Path, model: Path, options: Options) -> int:
    """Answer this task's share of the items; returns the exit code, 1 with a line on stderr."""
    try:
        handler = handlers.load(name, code, model)
        Shard(handler, options, hatoba.current_job()).run()
    except (HandlerError, ShardFailed, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


class Shard:
    """The items that are this task's: a contiguous part, as large as the others' or one larger."""

    def __init__(self, handler: Handler, options: Options, job: hatoba.JobContext) -> None:
        self._handler = handler
        self._options = options
        self._job = job
        total = sum(1 for _ in self._all())
        self._start, self._end = share(total, job.index, job.count)
        self._summary = Summary(self._end - self._start)

    def run(self) -> None:
        """Answer them all; raises ShardFailed and OSError, and leaves nothing then."""
        folder = self._options.output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{ITEMS}.{os.getpid()}"
        try:
            with partial.open("w", encoding="utf-8") as out:
                self._answer_all(out)
            partial.replace(folder / ITEMS)
        finally:
            partial.unlink(missing_ok=True)
        write_atomically(self._options.output / SUMMARY, self._summary.text())

    def _answer_all(self, out: TextIO) -> None:
        every = max(1, self._summary.total // 100)
        told = 0
        for group in self._groups():
            for (item, _), outcome in zip(group, self._answers(group), strict=True):
                self._take(item, outcome)
                out.write(_line(item, outcome))
            answered = self._summary.done + self._summary.errors
            if answered - told >= every:
                told = answered
                self._job.progress(answered, self._summary.total)

    def _groups(self) -> Iterator[list[Read]]:
        """Items with their inputs, as many as are answered at once and as memory has room for."""
        most = self._options.together if self._handler.predict_batch else 1
        group: list[Read] = []
        size = 0
        for item in islice(self._all(), self._start, self._end):
            read = self._input(item)
            group.append((item, read))
            size += len(read.payload.data)
            if len(group) == most or size >= MOST_BYTES_TOGETHER:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _answers(self, group: list[Read]) -> list[Outcome]:
        """One outcome for each item; those whose input cannot be read are not asked."""
        questions = [each for _, each in group if isinstance(each, Question)]
        answers = iter(answer(self._handler, questions))
        return [next(answers) if isinstance(each, Question) else each for _, each in group]

    def _take(self, item: Item, outcome: Outcome) -> None:
        self._summary.add(item, outcome)
        if outcome.status == 200:
            return
        if self._options.on_item_error == "fail":
            raise ShardFailed(f"item {item['id']!r}: {outcome.error}")
        most = self._options.max_errors
        if most is not None and self._summary.errors > most:
            raise ShardFailed(
                f"{self._summary.errors} items failed and {most} may, the last of them "
                f"{item['id']!r}: {outcome.error}"
            )

    def _input(self, item: Item) -> Question | Outcome:
        path = str(item.get("path") or "")
        if not path:
            return _from_attributes(item)
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            return failure(400, "bad_path", f"its path {path!r} leads out of the dataset")
        try:
            data = (self._options.data / path).read_bytes()
        except OSError as error:
            return failure(404, "no_file", f"its file cannot be read: {error}")
        return Question(Payload(data, _media_type(item, path)))

    def _all(self) -> Iterator[Item]:
        if self._options.items is None:
            yield from _files(self._options.data)
            return
        with self._options.items.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _item(line, number)


def share(total: int, index: int, count: int) -> tuple[int, int]:
    """Which of `total` items are task `index`'s of `count`: from, up to."""
    return total * index // count, total * (index + 1) // count


def _item(line: str, number: int) -> Item:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ShardFailed(f"line {number} of the items is not JSON: {error}") from error
    if not isinstance(found, dict) or not found.get("id"):
        raise ShardFailed(f"line {number} of the items is no item: it has no id")
    return found


def _files(root: Path) -> Iterator[Item]:
    paths = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    for path in sorted(paths):
        yield {"id": path, "path": path}


def _from_attributes(item: Item) -> Question | Outcome:
    attributes = item.get("attributes") or {}
    if "input" not in attributes:
        return failure(400, "no_input", "it has neither a file nor an attribute `input`")
    return Question(handlers.payload_of(attributes["input"]))


def _media_type(item: Item, path: str) -> str:
    told = str(item.get("media_type") or item.get("mediaType") or "")
    return told or mimetypes.guess_type(path)[0] or handlers.BYTES


def _line(item: Item, outcome: Outcome) -> str:
    known = item.get("attributes") or {}
    attributes = {key: known[key] for key in _KEPT if key in known}
    if outcome.status == 200:
        attributes["prediction"] = _prediction(outcome.payload)
    else:
        attributes["error"] = outcome.error
    return json.dumps({"id": item["id"], "attributes": attributes}, ensure_ascii=False) + "\n"


def _prediction(payload: Payload) -> Any:
    if handlers.is_json(payload.media_type):
        return handlers.decode(payload)
    if payload.media_type.startswith("text/"):
        return payload.data.decode(errors="replace")
    encoded = base64.b64encode(payload.data).decode("ascii")
    return {"media_type": payload.media_type, "base64": encoded}
