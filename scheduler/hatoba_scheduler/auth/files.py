"""Files that hold a secret: written whole or not at all, readable by their owner alone."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from hatoba_scheduler.auth import tokens
from hatoba_scheduler.auth.authenticator import Authenticator
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.errors import Unauthenticated

TOKEN_FILES: dict[str, Role] = {
    "admin.token": Role.ADMIN,
    "worker.token": Role.WORKER,
    "router.token": Role.ROUTER,
}
"""Token files of the data directory, each for the principal of its name."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_MAX_BYTES = 65_536


class InsecureFile(Exception):
    """A file with a secret that others than its owner may open, or that is no plain file."""


def write_secret(path: Path, content: bytes) -> None:
    """Put `content` into `path` with mode 0600, atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def read_secret(path: Path) -> bytes:
    """The content of `path`; InsecureFile if group or others have any right to it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_open_to_others(path, os.fstat(descriptor).st_mode)
        return os.read(descriptor, _MAX_BYTES)
    finally:
        os.close(descriptor)


def _refuse_open_to_others(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InsecureFile(f"{path} is not a plain file")
    if mode & _OTHERS:
        raise InsecureFile(
            f"{path} may be opened by others (mode {stat.S_IMODE(mode):04o}); "
            f"run `chmod 600 {path}`"
        )


async def ensure_token_files(authenticator: Authenticator, directory: Path) -> None:
    """Make `admin.token`, `worker.token` and `router.token`, keeping those that are still good.

    InsecureFile when one exists that others may read.
    """
    for name, role in TOKEN_FILES.items():
        path = directory / name
        if not await asyncio.to_thread(_still_good, authenticator, path, role):
            _, text = await authenticator.create(path.stem, role, created_by="system")
            await asyncio.to_thread(write_secret, path, text.encode() + b"\n")


def _still_good(authenticator: Authenticator, path: Path, role: Role) -> bool:
    try:
        text = read_secret(path).decode("ascii", "replace").strip()
    except FileNotFoundError:
        return False
    if tokens.token_id(text) is None:
        return False
    try:
        return authenticator.authenticate(f"Bearer {text}").role == role
    except Unauthenticated:
        return False


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
