"""Directories of attempts: made, and once empty again kept for the next.

Making the four directories of an attempt and the first file in them costs ext4 some 0.7 ms of
processor time, more than all else that is done for a small job. Giving an old one another name
costs a hundredth of that. Its logs stay in it, emptied: ext4 gives away no inode that was freed
within the last minute, and where many were, each new file has to look at all of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Set
from pathlib import Path

from hatoba_worker.failures import staging_failed

DIRECTORIES = ("work", "outputs", "checkpoints")
SPARE = ".spare"
MOST_SPARE = 256
_MODE = 0o700
_LOG_MODE = 0o600
_HOLDS = frozenset(DIRECTORIES)


class Homes:
    """Gives out homes, each with the empty directories `work`, `outputs` and `checkpoints`.

    `logs` are names of files that are appended to: a home may come with some of them, empty.
    """

    def __init__(self, root: Path, logs: Set[str] = frozenset()) -> None:
        self._logs = logs
        self._spare = f"{root}/{SPARE}"
        self._kept: list[str] = []
        self._count = 0

    def prepare(self) -> None:
        """Make the place for spare homes; blocks."""
        Path(self._spare).mkdir(mode=_MODE, parents=True, exist_ok=True)

    def make(self, home: str) -> None:
        """Make a home that does not exist; raises AttemptFailed when there is no room."""
        try:
            if self._kept:
                os.rename(self._kept.pop(), home)
                return
            for path in (home, *(f"{home}/{name}" for name in DIRECTORIES)):
                os.mkdir(path, _MODE)
        except OSError as error:
            raise staging_failed(f"no room for the attempt's directory: {error}") from error

    def take_back(self, home: str, files: Set[str]) -> bool:
        """Remove a home with logs and these files in it; False when it holds more, and is still
        there. Nothing may write to it any more."""
        try:
            found = set(os.listdir(home))
            for name in found & files:
                os.unlink(f"{home}/{name}")
            logs = found & self._logs
            if not _is_as_made(home, found - files - logs):
                return False
            if not all(_emptied(f"{home}/{name}") for name in logs):
                return False
            self._keep(home, logs)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _keep(self, home: str, logs: Set[str]) -> None:
        if len(self._kept) >= MOST_SPARE:
            for name in logs:
                os.unlink(f"{home}/{name}")
            for path in (*(f"{home}/{name}" for name in DIRECTORIES), home):
                os.rmdir(path)
            return
        self._count += 1
        spare = f"{self._spare}/{self._count}"
        os.rename(home, spare)
        self._kept.append(spare)


def _is_as_made(home: str, holds: Set[str]) -> bool:
    """Whether it holds nothing but our empty directories, with the rights we gave them."""
    if holds != _HOLDS or not _is_ours(home):
        return False
    paths = [f"{home}/{name}" for name in DIRECTORIES]
    return all(_is_ours(path) and not os.listdir(path) for path in paths)


def _is_ours(path: str) -> bool:
    status = os.lstat(path)
    return status.st_mode == stat.S_IFDIR | _MODE and status.st_uid == os.geteuid()


def _emptied(path: str) -> bool:
    """Make a log as good as new; False for one that somebody else may still want."""
    status = os.lstat(path)
    ours = status.st_mode == stat.S_IFREG | _LOG_MODE and status.st_uid == os.geteuid()
    if not ours or status.st_nlink != 1:
        return False
    if status.st_size:
        os.truncate(path, 0)
    return True
