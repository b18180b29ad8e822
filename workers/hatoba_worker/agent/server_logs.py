"""Follows what model servers write, line by line, from where an earlier agent stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from hatoba_worker import tinyfiles
from hatoba_worker.agent import disk
from hatoba_worker.logs import FILES

log = structlog.get_logger(__name__)

STREAMS = ("build", "stdout", "stderr")
PIECE = 64 << 10
"""Bytes of one log that are taken in at a look."""
LAG_MOST = 1 << 20
"""Bytes that a log may be ahead: a server that writes faster is not followed line by line."""
LINE_MOST = 8 << 10
Hear = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Home:
    """Where a deployment's server writes: its name, so that another one begins anew."""

    deployment: str
    path: Path


class ServerLogs:
    """Of all servers. `hear` is given the deployment and a line. Calls block; one at a time."""

    def __init__(self, path: Path, hear: Hear) -> None:
        self._path = path
        self._hear = hear
        self._offsets: dict[str, int] = {}
        self._saved: dict[str, int] = {}

    def load(self) -> None:
        """Go on from where an earlier agent stopped."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            told = json.loads(self._path.read_text(encoding="utf-8"))
            self._offsets = {str(name): int(offset) for name, offset in told.items()}
            self._saved = dict(self._offsets)

    def look(self, homes: Iterable[Home]) -> None:
        """Hear what is new in these, and forget all others."""
        seen: dict[str, int] = {}
        for home in homes:
            for stream in STREAMS:
                path = home.path / FILES[stream]
                key = f"{home.path.name}/{stream}"
                seen[key] = self._follow(home.deployment, path, self._offsets.get(key, 0))
        self._offsets = seen

    def save(self) -> None:
        """Keep how far was heard; what was heard after the last time is heard twice then."""
        if self._offsets == self._saved:
            return
        try:
            disk.replace(self._path, json.dumps(self._offsets).encode())
        except OSError as error:
            log.info("logs.unsaved", error=str(error))
            return
        self._saved = dict(self._offsets)

    def _follow(self, deployment: str, path: Path, offset: int) -> int:
        """Hear what is behind an offset; the offset behind that."""
        size = tinyfiles.size(str(path))
        if size < offset:
            # It was cut off at its beginning.
            offset = 0
        if size - offset > LAG_MOST:
            self._hear(deployment, f"[{size - offset - PIECE:,} bytes are left out here]")
            offset = size - PIECE
        if size == offset:
            return offset
        try:
            data = tinyfiles.read_piece(str(path), offset, PIECE)
        except OSError:
            return offset
        for line in _lines(data):
            offset += len(line)
            if text := line.decode(errors="replace").strip("\0\r\n"):
                self._hear(deployment, text)
        return offset


def _lines(data: bytes) -> Iterator[bytes]:
    """Whole lines with their ends; of one that is not whole what is too long to wait for."""
    while data:
        end = data.find(b"\n", 0, LINE_MOST) + 1
        if not end:
            if len(data) < LINE_MOST:
                return
            end = LINE_MOST
        yield data[:end]
        data = data[end:]
