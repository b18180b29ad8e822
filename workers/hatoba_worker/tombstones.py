"""Names and outcomes of attempts that are over, so that a late or doubled launch is refused."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hatoba_worker import tinyfiles

MOST = 50_000
KEPT_SECONDS = 7 * 86_400.0
_WORDS = 3
"""Name, outcome and time; what was committed comes after them."""


class Tombstones:
    """Two generations of at most 25,000 names each, appended to files of the data directory.

    When the newer is full, or 7 days old, the older is dropped: a name is kept 7 days, or for as
    long as it is among the last 25,000.
    """

    def __init__(
        self, data: Path, clock: Callable[[], float] = time.time, most: int = MOST
    ) -> None:
        self._paths = (data / "ended.jsonl", data / "ended.old.jsonl")
        self._clock = clock
        self._most = most // 2
        self._new: dict[str, str] = {}
        self._old: dict[str, str] = {}
        self._begun = 0.0
        self._pending = b""

    def load(self) -> None:
        """Read what is on disk; torn lines are left out."""
        self._begun, self._new = _read(self._paths[0])
        _, self._old = _read(self._paths[1])

    def __contains__(self, name: str) -> bool:
        return name in self._new or name in self._old

    def get(self, name: str) -> str | None:
        """The outcome kept for a name, or None when the name is not known."""
        return self._new.get(name, self._old.get(name))

    def add(self, name: str, outcome: str, commit: bytes = b"") -> None:
        """Remember a name, on disk also what was committed; after the next `flush` it is there."""
        now = self._clock()
        self._begun = self._begun or now
        self._new[name] = outcome
        words = [name, outcome, round(now)]
        if commit:
            words.append(base64.b64encode(commit).decode())
        line = json.dumps(words, separators=(",", ":"))
        self._pending += line.encode() + b"\n"

    def commits(self) -> Iterator[bytes]:
        """What was committed for each name that has something; read from the disk."""
        for path in reversed(self._paths):
            for words in _lines(path):
                if len(words) > _WORDS:
                    yield base64.b64decode(words[_WORDS])

    def flush(self) -> None:
        """Write what is new; raises OSError and keeps it for the next time."""
        if not self._pending:
            return
        tinyfiles.append(str(self._paths[0]), self._pending)
        self._pending = b""
        if len(self._new) >= self._most or self._clock() - self._begun > KEPT_SECONDS:
            os.replace(self._paths[0], self._paths[1])
            self._old, self._new, self._begun = self._new, {}, 0.0


def _read(path: Path) -> tuple[float, dict[str, str]]:
    begun = 0.0
    found: dict[str, str] = {}
    for name, outcome, when, *_ in _lines(path):
        begun = begun or float(when)
        found[str(name)] = str(outcome)
    return begun, found


def _lines(path: Path) -> Iterator[list[Any]]:
    """The words of each whole line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.splitlines():
        try:
            words = json.loads(line)
        except ValueError:
            continue
        if isinstance(words, list) and len(words) >= _WORDS:
            yield words
