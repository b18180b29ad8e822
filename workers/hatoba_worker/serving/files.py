"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a small file in one step, with the directories above it; raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_ready_file(path: Path, host: str, port: int, *, tls: bool) -> None:
    """Say where a server listens, whether it speaks TLS there, and its pid."""
    said = {"host": host, "port": port, "tls": tls, "pid": os.getpid()}
    write_atomically(path, json.dumps(said))
