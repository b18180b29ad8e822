"""Where a testbed keeps its things, what it remembers, and the names that it has on this machine.

Everything of a testbed is below one directory, `~/.cache/hatoba/testbed` unless HATOBA_TESTBED
names another; two directories are two testbeds that do not meet. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Facts = dict[str, Any]


class Unavailable(Exception):
    """This machine cannot have it, for the reason that the message gives; no failure of ours."""


class Broken(Exception):
    """It should have come up, and did not; the message has the end of its log."""


def cache() -> Path:
    """What is built once for all checkouts and testbeds."""
    own = os.environ.get("HATOBA_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hatoba"


def default_directory() -> Path:
    """The directory of the testbed that everybody on this machine shares."""
    return Path(os.environ.get("HATOBA_TESTBED") or cache() / "testbed")


@dataclass(frozen=True)
class Place:
    """One testbed's directory."""

    directory: Path

    @property
    def tag(self) -> str:
        """Eight characters that no other testbed of this machine has; for names outside of it."""
        return hashlib.sha256(str(self.directory.resolve()).encode()).hexdigest()[:8]

    @property
    def run(self) -> Path:
        """Its sockets' folder: short enough for their names, and gone with a reboot."""
        folder = Path("/run") / f"hatoba-{self.tag}"
        folder.mkdir(exist_ok=True)
        return folder

    def make(self, *parts: str) -> Path:
        """A folder below it, made when it is missing."""
        folder = self.directory.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        """The log of one process."""
        return self.make("logs") / f"{name}.log"

    @property
    def state(self) -> State:
        """What is up."""
        return State(self.make() / "state.json")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the testbed's lock: whoever else brings something up or down waits."""
        with open(self.make() / "lock", "w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield


@dataclass(frozen=True)
class State:
    """What is up, by component: addresses, sockets, process ids. Written at each change."""

    path: Path

    def read(self) -> dict[str, Facts]:
        """All components that were brought up and not down."""
        try:
            return dict(json.loads(self.path.read_text())["components"])
        except FileNotFoundError:
            return {}

    def put(self, component: str, facts: Facts | None) -> None:
        """Remember a component's facts, or forget it."""
        known = self.read()
        known.pop(component, None)
        if facts is not None:
            known[component] = facts
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"components": known}, indent=2) + "\n")
        fresh.replace(self.path)
