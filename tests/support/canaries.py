"""Secrets that sing when they are found where they should not be."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SESSION = re.compile(rb"hr_s_[0-9a-f]{8}_[a-z0-9-]+_\d+_\d+_[0-9a-f]{64}")
"""What a granted claim is answered: no platform, no file and no user ever has it."""


def plain(text: str) -> Iterator[bytes]:
    """How a text may be written down: as it is, in hex, in base64 at each of three places."""
    raw = text.encode()
    yield raw
    yield raw.hex().encode()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw)
        # The first and the last characters depend on the neighbours.
        yield encoded[4:-4]


@dataclass(frozen=True)
class Finding:
    """A canary, by the way in which it came in, and where it was found."""

    way: str
    place: str


@dataclass
class Canaries:
    """Those that were planted, by way, and the homes in which each may be."""

    planted: dict[str, str] = field(default_factory=dict)
    homes: dict[str, set[str]] = field(default_factory=dict)
    found: set[Finding] = field(default_factory=set)
    mark: bytes = b""
    """Something that is no secret, and has to be found where it is looked for."""
    seen: set[str] = field(default_factory=set)
    """Kinds of places in which the mark was found."""

    def plant(self, way: str, *homes: Path) -> str:
        """A new secret, which may be in these files."""
        return self.know(way, f"cn{secrets.token_hex(15)}", *homes)

    def know(self, way: str, text: str, *homes: Path) -> str:
        """One that somebody else made."""
        assert way not in self.planted
        self.planted[way] = text
        self.homes[way] = {str(home) for home in homes}
        return text

    def look(self, kind: str, place: str, content: bytes, allowed: Iterable[str] = ()) -> None:
        """Search a place; `allowed` names ways whose canaries belong there."""
        if self.mark and self.mark in content:
            self.seen.add(kind)
        for way in heard(self.planted, content) - set(allowed):
            if place not in self.homes[way]:
                self.found.add(Finding(way, f"{kind}: {place}"))
        if SESSION.search(content):
            self.found.add(Finding("session of a runner", f"{kind}: {place}"))

    def look_into(self, kind: str, directory: Path) -> None:
        """Search every file below a directory."""
        for path in sorted(directory.rglob("*")):
            try:
                if path.is_file() and not path.is_symlink():
                    self.look(kind, str(path), path.read_bytes())
            except (FileNotFoundError, ProcessLookupError):
                continue  # it was there when the directory was read


def heard(planted: Mapping[str, str], content: bytes) -> set[str]:
    """Ways whose canary is in this content, in whatever writing."""
    return {way for way, text in planted.items() if any(one in content for one in plain(text))}
