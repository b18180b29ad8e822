"""What the containers of a pod share: an attempt's directory, at the same place for all."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import hatoba
from hatoba_worker import spool, tinyfiles
from hatoba_worker.attempts import Book
from hatoba_worker.staging import PARAMS, RESTORE

ATTEMPT = "attempt"
LIBRARY = "lib"
LATEST = "latest"
STAGED = "staged"
READY = "ready"
_EVERYBODY = 0o777
_READ, _WRITE, _RUN = 0o444, 0o666, 0o111


class PodBook(Book):
    """A book whose one attempt is at home where every container of the pod expects it."""

    def __init__(self, private: Path, shared: Path, boot: str, nonces: Callable[[], str]) -> None:
        super().__init__(private, boot, nonces)
        self._home = f"{shared}/{ATTEMPT}"

    def home_of(self, name: str) -> str:
        """The directory of the pod's attempt."""
        return self._home


def is_staged(private: Path) -> bool:
    """Whether an init container has ended well here. Blocks."""
    return (private / STAGED).exists()


def mark_ready(private: Path) -> None:
    """The sidecar hears signals: the user's container may begin, and end. Blocks."""
    tinyfiles.write(str(private / READY), b"")


def mark_staged(private: Path) -> None:
    """From now on the user's code may have run. Blocks."""
    tinyfiles.write(str(private / STAGED), b"")


def complete(shared: Path, restored: int | None) -> None:
    """Add what a command finds by variables that are the same for every attempt, and let every
    user of the pod read and write. `restored`: the step to begin from. Blocks; raises OSError.
    """
    home = shared / ATTEMPT
    (home / "inputs").mkdir(exist_ok=True)
    for name, content in ((PARAMS, "{}"), (spool.FILE, "")):
        if not (home / name).exists():
            (home / name).write_text(content, encoding="utf-8")
    if restored is not None:
        (home / RESTORE / LATEST).symlink_to(f"step-{restored}")
    _copy_library(shared / LIBRARY)
    open_to_all(home)


def _copy_library(library: Path) -> None:
    """`hatoba` itself: in the user's container our own interpreter's packages are not there."""
    package = Path(hatoba.__file__).parent
    shutil.rmtree(library, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, library / package.name, ignore=ignored)
    open_to_all(library)


def open_to_all(root: Path) -> None:
    """Give everybody what we may do; files that the cache shares stay read-only. Blocks."""
    for directory, _, files in os.walk(root):
        os.chmod(directory, _EVERYBODY)
        for name in files:
            path = f"{directory}/{name}"
            with contextlib.suppress(PermissionError):
                _open_file(path)


def _open_file(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        return
    mode = stat.S_IMODE(found.st_mode)
    shared = found.st_nlink > 1
    os.chmod(path, mode | (_READ if shared else _WRITE) | (_RUN if mode & stat.S_IXUSR else 0))
