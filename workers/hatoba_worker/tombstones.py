"""Names and outcomes of attempts that are over, so that a late or doubled launch is refused."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from hatoba_worker import tinyfiles

MOST = 50_000
KEPT_SECONDS = 7 * 86_400.0


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

    def add(self, name: str, outcome: str) -> None:
        """Remember a name; it is on disk after the next `flush`."""
        now = self._clock()
        self._begun = self._begun or now
        self._new[name] = outcome
        line = json.dumps([name, outcome, round(now)], separators=(",", ":"))
        self._pending += line.encode() + b"\n"

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
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return begun, found
    for line in data.splitlines():
        try:
            name, outcome, when = json.loads(line)
        except (ValueError, TypeError):
            continue
        begun = begun or float(when)
        found[str(name)] = str(outcome)
    return begun, found
