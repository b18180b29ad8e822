"""Directories of attempts: made, and once empty again kept for the next.

Making the four directories of an attempt and the first file in them costs ext4 some 0.7 ms of
processor time, more than all else that is done for a small job. Giving an old one another name
costs a hundredth of that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Set
from pathlib import Path

from hatoba_worker.failures import staging_failed

DIRECTORIES = ("work", "outputs", "checkpoints")
SPARE = ".spare"
MOST_SPARE = 256
_MODE = 0o700
_HOLDS = frozenset(DIRECTORIES)


class Homes:
    """Gives out homes, each with the empty directories `work`, `outputs` and `checkpoints`."""

    def __init__(self, root: Path) -> None:
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

    def take_back(self, home: str, files: Iterable[str]) -> bool:
        """Remove a home with these files in it; False when it holds more, and is still there."""
        try:
            found = set(os.listdir(home))
            for name in found.intersection(files):
                os.unlink(f"{home}/{name}")
            if not _is_as_made(home, found.difference(files)):
                return False
            self._keep(home)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _keep(self, home: str) -> None:
        if len(self._kept) >= MOST_SPARE:
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
