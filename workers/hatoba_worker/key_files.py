"""Files of keys and of whom to believe: where they are, and how they are written.

Nothing here needs `cryptography`, which takes 9 MB of a process that makes no keys.
"""

from __future__ import annotations

import os
from pathlib import Path


def directory(data: Path) -> Path:
    """Where a data directory keeps them."""
    return data / "tls"


def write_secret(path: Path, text: str) -> None:
    """A file of mode 0600, whole or not at all, also after a power loss; blocks."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
