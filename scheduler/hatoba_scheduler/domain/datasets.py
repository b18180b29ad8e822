"""Datasets and code: records, what an item is, filters over items, and how versions differ."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, NamedTuple

from hatoba_scheduler.domain.filters import FilterError, comparisons
from hatoba_scheduler.domain.records import ManifestRef, Micros
from hatoba_scheduler.domain.references import BadReference, parse, version_name

ITEMS_FILE = "items.jsonl"
MOST_LINE = 64 * 1024
MOST_LABELS = 100
"""Labels of a version that are counted in its record: the most frequent."""
_MOST_DEPTH = 20
_KEYS = ("id", "path", "attributes", "media_type")
_LENGTHS = {"id": 1024, "path": 4096, "media_type": 128}

Pairs = tuple[tuple[str, str], ...]
Tallies = tuple[tuple[str, int], ...]
_dump: Callable[[object], str] = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False
).encode


# -- records -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A dataset; `latest` is its newest version that is kept, 0 when it only has a head."""

    project: str
    name: str
    latest: int
    versions: int
    head_items: int
    head_bytes: int
    create_time: Micros
    created_by: str
    update_time: Micros


@dataclass(frozen=True, slots=True)
class Origins:
    """Where a version came from: a word for people, and resource names."""

    source: str = ""
    job: str = ""
    model_version: str = ""
    made_from: tuple[str, ...] = ()
    captured_from: tuple[str, ...] = ()
    """Deployments whose requests are among its new items; kept as links only."""


@dataclass(frozen=True, slots=True)
class NewDatasetVersion:
    """A version to be numbered. `items` None: an item for every file, without attributes.

    With `expected` it is only made when that is the newest version's number (0: none is kept).
    """

    project: str
    dataset: str
    manifest: ManifestRef
    items: ManifestRef | None
    item_count: int
    create_time: Micros
    created_by: str
    splits: Tallies = ()
    item_labels: Tallies = ()
    message: str = ""
    by_reference: bool = False
    labels: Pairs = ()
    origins: Origins = Origins()
    expected: int | None = None

    def described(self, message: str, labels: Pairs, origins: Origins) -> NewDatasetVersion:
        """This one with a few words, labels and where it came from."""
        return replace(self, message=message, labels=labels, origins=origins)

    def over(self, latest: int) -> NewDatasetVersion:
        """This one, only to be made when `latest` is the newest."""
        return replace(self, expected=latest)


@dataclass(frozen=True, slots=True)
class DatasetVersionRecord:
    """One version; it never changes."""

    project: str
    dataset: str
    version: int
    manifest: ManifestRef
    items: ManifestRef | None
    item_count: int
    create_time: Micros
    created_by: str
    splits: Tallies = ()
    item_labels: Tallies = ()
    message: str = ""
    by_reference: bool = False
    labels: Pairs = ()
    origins: Origins = Origins()

    @property
    def resource(self) -> str:
        """`projects/P/datasets/D/versions/3`."""
        return version_name("datasets", self.project, self.dataset, self.version)


@dataclass(frozen=True, slots=True)
class HeadItem:
    """An item of a head. `attributes` is JSON text; `manifest` names the tree that holds its file
    as `sha256` (hex); both are empty without one. `batch` and `position` are where it stands.
    """

    id: str
    path: str
    attributes: str
    media_type: str
    sha256: str = ""
    size: int = 0
    manifest: str = ""
    batch: int = 0
    position: int = 0

    def stored_in(self, manifest: str) -> HeadItem:
        """The item once its file is kept by this tree."""
        return replace(self, manifest=manifest)


def captured_from(head: Iterable[HeadItem], project: str) -> tuple[str, ...]:
    """Resource names of the deployments whose requests are among the items of a head."""
    found: dict[str, None] = {}
    for item in head:
        if '"prediction"' not in item.attributes:
            continue
        name = json.loads(item.attributes).get("deployment")
        with contextlib.suppress(BadReference):
            text = name if isinstance(name, str) else ""
            found[parse(text, "deployments", project).parent] = None
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class CodeVersionRecord:
    """A version of code; `version` 0 while it has no number yet."""

    project: str
    code: str
    version: int
    manifest: ManifestRef
    git_remote: str
    git_commit: str
    dirty: bool
    patch: ManifestRef | None
    create_time: Micros
    created_by: str

    @property
    def resource(self) -> str:
        """`projects/P/code/train/versions/3`."""
        return version_name("code", self.project, self.code, self.version)


# -- items ---------------------------------------------------------------------------------------


class Item(NamedTuple):
    """One example: `attributes` are plain JSON values."""

    id: str
    path: str = ""
    attributes: Mapping[str, Any] = {}
    media_type: str = ""


class ItemProblem(ValueError):
    """What of an item is wrong, and what to write instead; `field` is empty for the whole line."""

    def __init__(self, field: str, problem: str, value: object = None) -> None:
        self.field = field
        self.problem = problem
        self.value = value
        super().__init__(f"{field}: {problem}" if field else problem)


def parse_item(line: bytes) -> Item:
    """The item of a line of `items.jsonl`. Raises ItemProblem."""
    if len(line) > MOST_LINE:
        raise ItemProblem("", f"a line has at most {MOST_LINE:,} bytes", f"{len(line):,}")
    try:
        body = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ItemProblem("", "each line must be one JSON object", str(error)) from None
    if not isinstance(body, dict):
        raise ItemProblem("", "each line must be one JSON object", line[:40])
    unknown = body.keys() - set(_KEYS)
    if unknown:
        known = ", ".join(_KEYS)
        raise ItemProblem(min(unknown), f"is no field of an item; known are {known}")
    if b"\\ud" in line or b"\\uD" in line:
        _refuse_halves(body)
    return checked_item(
        body.get("id", ""),
        body.get("path", ""),
        body.get("attributes") or {},
        body.get("media_type", ""),
    )


def checked_item(id: object, path: object, attributes: object, media_type: object) -> Item:
    """An item of these values. Raises ItemProblem."""
    if type(attributes) is not dict:
        raise ItemProblem("attributes", "must be an object", attributes)
    item = Item(_text("id", id), _text("path", path), attributes, _text("media_type", media_type))
    if not item.id:
        raise ItemProblem("id", "must have 1 to 1024 characters")
    for key, value in attributes.items():
        # Texts are what nearly all of them are.
        if type(value) is not str:
            _check_value(f"attributes.{key}", value, 0)
    return item


def _text(name: str, value: object) -> str:
    if type(value) is not str:
        raise ItemProblem(name, "must be text", value)
    if len(value) > _LENGTHS[name]:
        raise ItemProblem(name, f"must have at most {_LENGTHS[name]} characters", value)
    return value


def _check_value(at: str, value: object, depth: int) -> None:
    if value is None or isinstance(value, str | bool):
        return
    if isinstance(value, int | float):
        _check_number(at, value)
        return
    if depth == _MOST_DEPTH:
        raise ItemProblem(at, f"is nested more than {_MOST_DEPTH} deep")
    inner: Iterable[object] = value.values() if isinstance(value, dict) else value  # type: ignore[assignment]
    for each in inner:
        _check_value(at, each, depth + 1)


def _check_number(at: str, value: float) -> None:
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise ItemProblem(at, "must be a finite number", value)


def _refuse_halves(body: object) -> None:
    """Half a surrogate pair is no character: nothing could carry it."""
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ItemProblem("", "holds half a surrogate pair (\\ud800 to \\udfff)") from None


def item_line(item: Item) -> bytes:
    """An item as a line of `items.jsonl`, with its newline."""
    body: dict[str, object] = {"id": item.id}
    if item.path:
        body["path"] = item.path
    if item.attributes:
        body["attributes"] = item.attributes
    if item.media_type:
        body["media_type"] = item.media_type
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def attributes_text(attributes: Mapping[str, Any]) -> str:
    """Attributes as JSON, the same text for the same values."""
    return _dump(attributes)


def plain_text(value: object) -> str | None:
    """A value as filters and counts know it: numbers without `.0`; None for what has parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else None


@dataclass(slots=True)
class Tally:
    """Counts items by split and by label; a list of labels counts for each."""

    items: int = 0
    _splits: Counter[str] = field(default_factory=Counter)
    _labels: Counter[str] = field(default_factory=Counter)

    def add(self, item: Item) -> None:
        """Count one."""
        self.items += 1
        attributes = item.attributes
        if not attributes:
            return
        for text in _texts(attributes.get("split")):
            self._splits[text] += 1
        for text in _texts(attributes.get("label")):
            self._labels[text] += 1

    @property
    def splits(self) -> Tallies:
        """Items per split, the most frequent first."""
        return tuple(self._splits.most_common(MOST_LABELS))

    @property
    def labels(self) -> Tallies:
        """Items per label, the most frequent first."""
        return tuple(self._labels.most_common(MOST_LABELS))


def _texts(value: object) -> Sequence[str]:
    if value is None:
        return ()
    if type(value) is str:
        return (value,)
    if isinstance(value, list):
        return [text for each in value if (text := plain_text(each)) is not None]
    text = plain_text(value)
    return () if text is None else (text,)


# -- filters -------------------------------------------------------------------------------------


class ItemTerm(NamedTuple):
    """One comparison of a field or an attribute with a text."""

    field: str
    wanted: str
    equal: bool

    def holds(self, item: Item) -> bool:
        """Whether the item is meant. Of a list, one equal value is enough."""
        if self.field in ("id", "path", "media_type"):
            found = getattr(item, self.field) == self.wanted
        else:
            found = self.wanted in _texts(item.attributes.get(self.field))
        return found is self.equal


def parse_item_filter(text: str) -> tuple[ItemTerm, ...]:
    """The terms of a filter over items, all of which must hold: `split = test AND label != 3`.

    `id`, `path` and `media_type` are the item's own; any other name is an attribute's, also written
    `attributes.NAME`. Raises FilterError.
    """
    return tuple(
        ItemTerm(name.removeprefix("attributes."), value, operator == "=")
        for name, operator, value in comparisons(text)
    )


# -- differences -----------------------------------------------------------------------------------


class Change(IntEnum):
    """What became of an item between two versions; the numbers are the contract's."""

    ADDED = 1
    REMOVED = 2
    CONTENT = 3
    ATTRIBUTES = 4


class Print(NamedTuple):
    """What an item is compared by: digests of its file and of its attributes."""

    content: bytes
    attributes: bytes


class Differences(NamedTuple):
    """Changed items by id, and how many there are of each kind."""

    changes: list[tuple[str, Change]]
    added: int
    removed: int
    changed: int
    same: int


def differences(before: Mapping[str, Print], after: Mapping[str, Print]) -> Differences:
    """What became of every item."""
    found: list[tuple[str, Change]] = []
    added = removed = changed = 0
    for id, new in after.items():
        old = before.get(id)
        if old is None:
            found.append((id, Change.ADDED))
            added += 1
        elif old != new:
            kind = Change.CONTENT if old.content != new.content else Change.ATTRIBUTES
            found.append((id, kind))
            changed += 1
    for id in before.keys() - after.keys():
        found.append((id, Change.REMOVED))
        removed += 1
    found.sort()
    return Differences(found, added, removed, changed, len(after) - added - changed)


__all__ = [
    "ITEMS_FILE",
    "Change",
    "CodeVersionRecord",
    "DatasetRecord",
    "DatasetVersionRecord",
    "Differences",
    "FilterError",
    "HeadItem",
    "Item",
    "ItemProblem",
    "ItemTerm",
    "NewDatasetVersion",
    "Origins",
    "Print",
    "Tally",
    "attributes_text",
    "checked_item",
    "differences",
    "item_line",
    "parse_item",
    "parse_item_filter",
    "plain_text",
]
