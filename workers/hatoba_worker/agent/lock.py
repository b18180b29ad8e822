"""One agent to a data directory. Calls block."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from hatoba_worker.holders import end_holder

FILE = "agent.lock"


class AlreadyRuns(Exception):
    """Another agent has the data directory."""


def hold(data: Path) -> int:
    """Take a directory until the handle is closed. Raises AlreadyRuns, OSError."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(data / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise AlreadyRuns(f"another agent runs on {data}") from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def end(data: Path) -> None:
    """Have the agent of a directory end, if one runs there; returns when it has. Raises OSError."""
    end_holder(data / FILE)


def is_held(data: Path) -> bool:
    """Whether an agent runs on a directory."""
    try:
        handle = os.open(data / FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
