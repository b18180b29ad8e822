"""What can go wrong with a file tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hatoba.errors import HatobaError

IGNORE_REMEDY = "remove it, or name it in .hatobaignore"


class Problem(NamedTuple):
    """A rule that a manifest breaks: where (`entries[3].path`), what must hold, what is there."""

    field: str
    rule: str
    value: str = ""


class TreeRefused(HatobaError):
    """A directory cannot be packed; `path` is the entry at fault, below the directory."""

    def __init__(self, path: str, why: str, *, remedy: str = IGNORE_REMEDY) -> None:
        super().__init__(f"{path}: {why}", remedy=remedy)
        self.path = path


class TreeChanged(HatobaError):
    """A file changed between the moment it was packed and the moment it was sent."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} changed while it was being sent",
            remedy="try again once nothing writes to it, or name it in .hatobaignore",
        )
        self.path = path


class BadManifest(HatobaError):
    """A manifest breaks the rules and is not unpacked; `problems` says where."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"the manifest is refused: {first.field}: {first.rule}{more}")
        self.problems = tuple(problems)


class DigestMismatch(HatobaError):
    """Bytes that came are not those that were asked for; nothing of them was kept."""


class ObjectChanged(HatobaError):
    """A file that stays in a bucket is not the one that was recorded, or is gone."""

    def __init__(self, path: str, uri: str, etag: str, found: str) -> None:
        super().__init__(
            f"{path}: {uri} changed since it was recorded: entity tag {etag}, now {found}",
            remedy="import the bucket again: that makes a version of what is there now",
        )
        self.path = path
        self.uri = uri


class UnpackFailed(HatobaError):
    """A tree could not be written; `path` is where. Nothing of it is left behind."""

    def __init__(self, path: str, why: str, *, remedy: str = "") -> None:
        super().__init__(f"{path}: {why}", remedy=remedy)
        self.path = path
