"""The keeper's own log, which must not be able to end it."""

from __future__ import annotations

import contextlib
import os

STDERR = 2


def note(text: str) -> None:
    """Write a line to the log; a disk that is full loses the line and nothing else."""
    with contextlib.suppress(OSError):
        os.write(STDERR, f"keeper: {text}\n".encode(errors="replace"))
