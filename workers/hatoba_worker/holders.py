"""Processes that hold a lock in whose file their id stands. Calls block."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path


def end_holder(path: Path) -> None:
    """Have the process that holds a lock end, if one does; returns when it has. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.kill(int(os.pread(handle, 32, 0)), signal.SIGTERM)
        fcntl.flock(handle, fcntl.LOCK_EX)
    finally:
        os.close(handle)
