"""Giving a container's user what it is to read and write in its directory. Blocks.

The directory itself stays ours: a container could else put a link in the place of a file or a
directory that the worker, perhaps root, reads or writes. The directories above it are closed to
everybody else of this machine, whatever stands in it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from hatoba_worker import spool

NOBODY = 65532
"""The user of containers of a worker that is root, where an image names none."""
RUN = "run"
OWN = ("work", "outputs", "checkpoints", "models", RUN)
"""Directories that are the container's to write in."""
OWN_FILES = ("params.json", "serving.json", "example", "certificate.pem", "authority.pem")
SHARED = ("inputs", "items", "restore", "model", "code", "streams")
"""Directories that are only read; files in them may belong to the host's cache."""
_OPEN = 0o755


def user_for(image_user: str) -> str:
    """Who a container runs as; empty: whom its image names.

    A worker that is not root runs all as itself: it could not clear away after another.
    """
    if os.geteuid() != 0:
        return f"{os.geteuid()}:{os.getegid()}"
    return "" if image_user else f"{NOBODY}:{NOBODY}"


def hand_over(home: str, user: str) -> None:
    """Let the container's user have what it needs of a directory; raises OSError."""
    for name in ("models", RUN):
        os.makedirs(f"{home}/{name}", 0o700, exist_ok=True)
    Path(home, spool.FILE).touch(0o600)
    if os.geteuid() != 0:
        return
    uid = int(user.partition(":")[0]) if user else None
    os.chmod(home, _OPEN)
    for name in OWN:
        for path in _all_of(f"{home}/{name}"):
            _give(path, uid)
    for name in SHARED:
        for path in _all_of(f"{home}/{name}"):
            _let_read(path)
    taken = [str(path) for path in Path(home, "streams").glob("*.taken")]
    for path in (*(f"{home}/{name}" for name in OWN_FILES), f"{home}/{spool.FILE}", *taken):
        if os.path.exists(path):
            _give(path, uid)


def _all_of(top: str) -> Iterator[str]:
    """A directory and all in it, but for links; nothing where there is none."""
    if not os.path.isdir(top):
        return
    yield top
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                yield path


def _give(path: str, uid: int | None) -> None:
    if uid is not None:
        os.chown(path, uid, uid, follow_symlinks=False)
        return
    # The number of a user that an image names is the image's secret: everybody may, then.
    mode = os.stat(path).st_mode
    wider = 0o777 if stat.S_ISDIR(mode) else 0o666 | (0o111 if mode & 0o100 else 0)
    os.chmod(path, stat.S_IMODE(mode) | wider)


def _let_read(path: str) -> None:
    """A file that only root may read is replaced by a copy: it may be the cache's."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        os.chmod(path, stat.S_IMODE(mode) | _OPEN)
    elif not mode & stat.S_IROTH:
        fresh = Path(f"{path}.hatoba")
        shutil.copyfile(path, fresh)
        fresh.chmod(stat.S_IMODE(mode) | 0o444 | (0o111 if mode & 0o100 else 0))
        fresh.replace(path)
