"""Keys of the data directory from which runners' credentials derive.

A credential is made again from the same values for as long as what it is for lives, so each key has
a time from which on it is used, and what began before goes on with the one of its own time.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hatoba_scheduler.auth.files import InsecureFile, read_secret, write_secret
from hatoba_scheduler.domain.records import Micros

FILE = "runner.keys"
LIFE: Micros = 90 * 24 * 3_600 * 1_000_000
"""Age after which a newer key is made."""
_SECRET_BYTES = 32


class Key(NamedTuple):
    """One key: used for what began at `since` or later, until there is a newer one."""

    id: str
    since: Micros
    secret: bytes

    def __repr__(self) -> str:
        return f"Key({self.id}, since={self.since})"


class RunnerKeys:
    """All keys, oldest first; never none."""

    def __init__(self, path: Path, keys: Sequence[Key]) -> None:
        self._path = path
        self._keys = list(keys)

    @classmethod
    def open(cls, directory: Path, now: Micros) -> RunnerKeys:
        """Read the keys, or make the first; blocks for some milliseconds.

        InsecureFile when others may read them, or when they cannot be read as ours.
        """
        path = directory / FILE
        try:
            text = read_secret(path)
        except FileNotFoundError:
            keys = cls(path, ())
            keys._add(now)
            return keys
        return cls(path, _parsed(path, text))

    @property
    def newest(self) -> Key:
        """The key of today."""
        return self._keys[-1]

    def of(self, began: Micros) -> Key:
        """The key of what began then."""
        fitting = [key for key in self._keys if key.since <= began]
        return fitting[-1] if fitting else self._keys[0]

    def get(self, identity: str) -> Key | None:
        """The key of this id."""
        return next((key for key in self._keys if key.id == identity), None)

    def rotate(self, now: Micros, oldest_needed: Micros) -> bool:
        """Make a newer key when the newest is old; let go of those that nothing needs any more.

        `oldest_needed`: when the oldest thing began that may still ask. Blocks for some
        milliseconds; False: nothing was to be done.
        """
        pairs = zip(self._keys, self._keys[1:], strict=False)
        kept = [key for key, newer in pairs if newer.since > oldest_needed]
        old = now - self.newest.since > LIFE
        if not old and len(kept) + 1 == len(self._keys):
            return False
        self._keys = [*kept, self.newest]
        if old:
            self._add(now)
        else:
            self._write()
        return True

    def _add(self, now: Micros) -> None:
        self._keys.append(Key(secrets.token_hex(4), now, secrets.token_bytes(_SECRET_BYTES)))
        self._write()

    def _write(self) -> None:
        rows = [{"id": k.id, "since": k.since, "secret": k.secret.hex()} for k in self._keys]
        write_secret(self._path, json.dumps(rows).encode() + b"\n")


def _parsed(path: Path, text: bytes) -> list[Key]:
    try:
        rows: list[dict[str, Any]] = json.loads(text)
        keys = [Key(row["id"], int(row["since"]), bytes.fromhex(row["secret"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise InsecureFile(
            f"{path} cannot be read; restore it, or remove it: every runner elsewhere is then "
            "refused, and its attempt ends"
        ) from error
    if not keys:
        raise InsecureFile(f"{path} holds no key; restore it, or remove it")
    return sorted(keys, key=lambda key: key.since)
