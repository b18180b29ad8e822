"""Which files of a working directory stay behind: by .gitignore, .hatobaignore and ours."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from pathspec import GitIgnoreSpec

IGNORE_FILES: Final = (".gitignore", ".hatobaignore")
ALWAYS: Final = frozenset({".git", ".venv", "__pycache__"})
# A directory that holds one of these is the data directory of a server or worker.
DATA_MARKS: Final = frozenset({"admin.token", "keeper.lock"})
# What every virtual environment holds, whatever its name.
ENVIRONMENT_MARK: Final = "pyvenv.cfg"
MAX_RULES_BYTES = 1024 * 1024


class _Level(NamedTuple):
    """The rules of one directory; `base` is its path with a slash at the end."""

    base: str
    spec: GitIgnoreSpec


class IgnoreRules:
    """The rules in force in one directory; of those that speak, the innermost decides."""

    def __init__(self, levels: tuple[_Level, ...] = ()) -> None:
        self._levels = levels

    @classmethod
    def above(cls, root: str) -> IgnoreRules:
        """What the git repository around `root` sets for it, `root`'s own rules not included.

        Nothing when it ignores `root` itself: who packs an ignored directory means what is in it.
        """
        rules = cls()
        for directory in _repository_down_to(root):
            rules = rules.inside(directory)
            if rules.ignores(_next_part(directory, root), is_directory=True):
                return cls()
        return rules

    def inside(self, directory: str) -> IgnoreRules:
        """These rules and those that `directory` adds."""
        spec = _read_spec(directory)
        if spec is None:
            return self
        base = directory if directory.endswith("/") else f"{directory}/"
        return IgnoreRules((*self._levels, _Level(base, spec)))

    def ignores(self, path: str, *, is_directory: bool) -> bool:
        """Whether the entry at this absolute path is left out."""
        slash = "/" if is_directory else ""
        for level in reversed(self._levels):
            verdict = level.spec.check_file(path[len(level.base) :] + slash).include
            if verdict is not None:
                return verdict
        return False


def is_data_directory(names: set[str]) -> bool:
    """Whether a directory with these entries belongs to a server or a worker."""
    return not DATA_MARKS.isdisjoint(names)


def _repository_down_to(root: str) -> list[str]:
    """Directories from the top of the repository around `root` to the one above it."""
    above = []
    directory = root
    while not os.path.lexists(os.path.join(directory, ".git")):
        parent = os.path.dirname(directory)
        if parent == directory:
            return []
        above.append(parent)
        directory = parent
    return above[::-1]


def _next_part(directory: str, below: str) -> str:
    base = directory.rstrip("/")
    return f"{base}/{below[len(base) + 1 :].partition('/')[0]}"


def _read_spec(directory: str) -> GitIgnoreSpec | None:
    lines = [line for name in IGNORE_FILES for line in _lines(os.path.join(directory, name))]
    if not lines:
        return None
    try:
        return GitIgnoreSpec.from_lines(lines)
    except ValueError:
        return GitIgnoreSpec.from_lines(filter(_is_pattern, lines))


def _lines(path: str) -> list[str]:
    try:
        if not os.path.isfile(path):
            return []
        with open(path, encoding="utf-8-sig", errors="replace", newline="\n") as file:
            return [line.removesuffix("\r") for line in file.read(MAX_RULES_BYTES).split("\n")]
    except OSError:
        return []


def _is_pattern(line: str) -> bool:
    """Whether the line can be understood; git passes over those that cannot."""
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True
