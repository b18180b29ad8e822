"""Secrets of this host: files of the data directory, or variables of the worker."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from hatoba.v1 import job_pb2
from hatoba_worker.failures import secret_missing

PREFIX = "HATOBA_SECRET_"
MOST_BYTES = 128 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Secrets:
    """Resolves references. The values go into the environment of the job, and nowhere else."""

    def __init__(self, data: Path, environ: Mapping[str, str]) -> None:
        self._directory = data / "secrets"
        self._environ = environ

    def names(self) -> list[str]:
        """What can be resolved here; a variable's name in capitals and in small letters. Blocks."""
        found = {name for name in _listed(self._directory) if _NAME.fullmatch(name)}
        for name in self._environ:
            if name.startswith(PREFIX) and name != PREFIX:
                found |= {name.removeprefix(PREFIX), name.removeprefix(PREFIX).lower()}
        return sorted(found)[:1000]

    def resolve(self, refs: list[job_pb2.SecretRef]) -> dict[str, str]:
        """Values by environment variable; raises AttemptFailed (SECRET_MISSING). Blocks."""
        return {ref.env or variable(ref.name): self.value(ref.name) for ref in refs}

    def value(self, name: str) -> str:
        """One secret; raises AttemptFailed (SECRET_MISSING). Blocks."""
        if not _NAME.fullmatch(name):
            raise secret_missing(f"{name!r} is no name of a secret")
        path = self._directory / name
        try:
            value: str | None = _read(path)
        except FileNotFoundError:
            value = self._environ.get(PREFIX + variable(name))
        except (OSError, UnicodeDecodeError) as error:
            raise secret_missing(f"secret {name} cannot be read: {error}") from error
        if value is None:
            raise secret_missing(
                f"no secret {name} on this host; put it into {path} (mode 0600)"
                f" or give the worker {PREFIX}{variable(name)}"
            )
        return value


def variable(name: str) -> str:
    """The environment variable of a secret that names none: capitals, `-` and `.` as `_`."""
    return re.sub(r"[.-]", "_", name).upper()


def _read(path: Path) -> str:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(handle, encoding="utf-8") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_mode & _OTHERS:
            raise PermissionError(f"{path} may be opened by others; run `chmod 600 {path}`")
        return file.read(MOST_BYTES).removesuffix("\n")


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
