"""The last lines of a log, for people."""

from __future__ import annotations

from hatoba_worker import tinyfiles

MOST_LINES = 20
MOST_CHARACTERS = 512
_TAIL = 16 * 1024


def last_lines(path: str) -> list[str]:
    """The last 20 lines of a file, each cut to 512 characters; empty when there is none."""
    start = max(0, tinyfiles.size(path) - _TAIL)
    try:
        data = tinyfiles.read_piece(path, start, _TAIL)
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    if start and len(lines) > 1:
        lines = lines[1:]
    return [line.replace("\0", "")[:MOST_CHARACTERS] for line in lines[-MOST_LINES:]]
