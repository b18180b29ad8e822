"""Looks through a directory: what would be packed, how big it is, what was passed over and why.

Nothing is read but names and sizes, so that a warning about the size comes before the work.
"""

from __future__ import annotations

import bisect
import enum
import gc
import itertools
import operator
import os
import stat
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hatoba.artifacts.errors import IGNORE_REMEDY, TreeRefused
from hatoba.artifacts.ignore import ALWAYS, ENVIRONMENT_MARK, IgnoreRules, is_data_directory
from hatoba.artifacts.manifest import (
    DIRECTORY,
    FILE,
    MAX_ENTRIES,
    MAX_MODE,
    MAX_TOTAL_BYTES,
    MIB,
    SYMLINK,
    path_problem,
    target_problem,
)
from hatoba.v1.artifact_pb2 import EntryType

PLAIN_DIRECTORY_MODE = 0o755
LARGE_BYTES = 50 * MIB
LARGEST_SHOWN = 3
# Shorter ones break no limit on names and paths.
_PLAIN = 250


class Selection(enum.Enum):
    """Which entries of a directory are packed."""

    CODE = enum.auto()
    """What .gitignore and .hatobaignore leave, without .git, environments and caches."""
    EVERYTHING = enum.auto()
    """All of it: inputs, outputs and checkpoints."""


class Found(NamedTuple):
    """One entry: its path in the manifest, where it lies, and what it is. `size` is in bytes.

    Times are in nanoseconds since 1970; together with the inode they change when a file does.
    """

    path: str
    source: str
    type: EntryType.ValueType
    mode: int
    size: int = 0
    target: str = ""
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0


class Large(NamedTuple):
    """Something big: a file, or a directory right below the root, and the bytes in it."""

    path: str
    size: int


@dataclass(slots=True)
class Scan:
    """What was found, sorted by path, and in `warnings` what was not taken.

    `began_ns` is when the looking began, in nanoseconds since 1970.
    """

    root: str
    selection: Selection = Selection.CODE
    entries: list[Found] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    total_bytes: int = 0
    began_ns: int = 0

    @property
    def files(self) -> int:
        """How many regular files there are."""
        return sum(entry.type == FILE for entry in self.entries)

    def add(self, file: Path) -> None:
        """Take in a file from elsewhere, right below the root. Blocks."""
        for found in scan_tree(file, Selection.EVERYTHING).entries:
            bisect.insort(self.entries, found, key=_path)
            self.total_bytes += found.size

    def largest(self, count: int = LARGEST_SHOWN) -> list[Large]:
        """The biggest entries right below the root, each directory with all that is in it."""
        sizes: dict[str, int] = {}
        for entry in self.entries:
            head, slash, _ = entry.path.partition("/")
            sizes[head + slash] = sizes.get(head + slash, 0) + entry.size
        ranked = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        return [Large(path, size) for path, size in ranked[:count]]

    def size_warning(self, above: int = LARGE_BYTES) -> str:
        """One sentence for people when there are more than `above` bytes; empty otherwise."""
        if self.total_bytes <= above:
            return ""
        code = self.selection is Selection.CODE
        remedy = "; name in .hatobaignore what the job does not need" if code else ""
        biggest = ", ".join(f"{large.path} ({_mb(large.size)})" for large in self.largest())
        return (
            f"{self.root} has {_mb(self.total_bytes)} in {self.files:,} files to send; "
            f"the largest: {biggest}{remedy}"
        )


def scan_tree(root: str | Path, selection: Selection = Selection.CODE) -> Scan:
    """Look through a directory (or at a single file). Blocks; reads no contents.

    Raises TreeRefused for what cannot be packed: links that leave the tree, names that are not safe
    everywhere, what may not be read, more than 1,000,000 entries or 1 TiB.
    """
    scan = Scan(os.path.realpath(root), selection, began_ns=time.time_ns())
    scanner = _Scanner(scan)
    with no_collections():
        if os.path.isfile(scan.root):
            scanner.single_file()
        else:
            scanner.directory()
        scan.entries.sort(key=_path)
    _refuse_doubles(scan.entries)
    return scan


_path = operator.attrgetter("path")


@contextmanager
def no_collections() -> Iterator[None]:
    """Keep the garbage collector still while a lot is made that holds no cycles.

    It would look through all of it again and again, for a third of the whole time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Scanner:
    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._code = scan.selection is Selection.CODE
        self._prefix = len(scan.root.rstrip("/")) + 1

    def single_file(self) -> None:
        path = self._scan.root
        self._prefix = len(os.path.dirname(path).rstrip("/")) + 1
        self._add_file(self._name(path), path, os.lstat(path))

    def directory(self) -> None:
        root = self._scan.root
        rules = IgnoreRules.above(root) if self._code else IgnoreRules()
        pending = [(root, rules)]
        while pending:
            pending.extend(self._look_into(*pending.pop()))

    def _look_into(self, directory: str, rules: IgnoreRules) -> list[tuple[str, IgnoreRules]]:
        """Take what lies in a directory; returns the directories to look into next."""
        entries = self._list(directory)
        if self._code:
            if self._is_ours(directory, {entry.name for entry in entries}):
                return []
            rules = rules.inside(directory)
            entries = [entry for entry in entries if not _left_out(entry, rules)]
        if directory != self._scan.root:
            self._take_directory(directory, empty=not entries)
        below: list[tuple[str, IgnoreRules]] = []
        prefix = self._plain_prefix(directory)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                below.append((entry.path, rules))
            else:
                self._take(entry, prefix)
        return below

    def _is_ours(self, directory: str, names: set[str]) -> bool:
        """Whether a directory is an environment, or a server's or worker's data."""
        if directory != self._scan.root:
            return ENVIRONMENT_MARK in names or is_data_directory(names)
        if is_data_directory(names):
            why = "is the data directory of a server or worker"
            raise TreeRefused(directory, why, remedy="run from the directory that holds your code")
        return False

    def _list(self, directory: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(directory) as entries:
                return list(entries)
        except OSError as error:
            raise self._refused(directory, _why(error)) from None

    def _plain_prefix(self, directory: str) -> str | None:
        """What paths in a directory begin with; None when each must be looked at whole."""
        inside = directory[self._prefix :]
        if not inside:
            return ""
        if not _is_plain(inside) or path_problem(inside):
            return None
        return f"{inside}/"

    def _take(self, entry: os.DirEntry[str], prefix: str | None) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISREG(status.st_mode):
            name = entry.name
            plain = prefix is not None and _is_plain(name) and len(prefix) + len(name) < _PLAIN
            path = f"{prefix}{name}" if plain else self._name(entry.path)
            self._add_file(path, entry.path, status)
        elif stat.S_ISLNK(status.st_mode):
            target = self._target(entry.path)
            self._add(Found(self._name(entry.path), entry.path, SYMLINK, MAX_MODE, target=target))
        else:
            kind = _kind(status.st_mode)
            self._scan.warnings.append(f"{self._shown(entry.path)} is {kind}; it is passed over")

    def _take_directory(self, directory: str, *, empty: bool) -> None:
        mode = os.lstat(directory).st_mode & MAX_MODE
        if empty or mode != PLAIN_DIRECTORY_MODE:
            self._add(Found(self._name(directory), directory, DIRECTORY, mode))

    def _add_file(self, path: str, source: str, status: os.stat_result) -> None:
        mode, size = status.st_mode & MAX_MODE, status.st_size
        times = (status.st_mtime_ns, status.st_ctime_ns)
        self._add(Found(path, source, FILE, mode, size, "", *times, status.st_ino))
        self._scan.total_bytes += size
        if self._scan.total_bytes > MAX_TOTAL_BYTES:
            why = f"with it there are more than {MAX_TOTAL_BYTES:,} bytes"
            raise self._refused(source, why)

    def _add(self, found: Found) -> None:
        if len(self._scan.entries) == MAX_ENTRIES:
            why = f"with it there are more than {MAX_ENTRIES:,} files"
            raise self._refused(found.source, why)
        self._scan.entries.append(found)

    def _name(self, path: str) -> str:
        """The path below the root as a manifest has it: in normal form C, safe everywhere."""
        name = path[self._prefix :]
        normal = unicodedata.normalize("NFC", name)
        if wrong := path_problem(normal):
            raise self._refused(path, f"its name {wrong}")
        if normal != name:
            self._scan.warnings.append(f"{self._shown(path)} is packed as {normal!r} (form NFC)")
        return normal

    def _shown(self, path: str) -> str:
        """A path for people; bytes that are not UTF-8, and control characters, are escaped."""
        name = path[self._prefix :] or path
        return name if name.isprintable() else ascii(name)[1:-1]

    def _refused(self, path: str, why: str) -> TreeRefused:
        remedy = IGNORE_REMEDY if self._code else "remove it"
        return TreeRefused(self._shown(path), why, remedy=remedy)

    def _target(self, link: str) -> str:
        """Where a link points, relative to its directory and without detours."""
        directory = os.path.dirname(link)
        given = os.path.join(directory, os.readlink(link))
        plain = os.path.normpath(given)
        if os.path.realpath(plain) != os.path.realpath(given):
            # `..` after the name of another link.
            plain = os.path.realpath(given)
        inside = plain == self._scan.root or plain.startswith(self._scan.root.rstrip("/") + "/")
        if not inside:
            why = f"is a symbolic link that leaves the directory, to {os.readlink(link)!r}"
            raise self._refused(link, why)
        target = unicodedata.normalize("NFC", os.path.relpath(plain, directory))
        if wrong := target_problem(self._name(link), target):
            raise self._refused(link, f"is a symbolic link whose target {wrong}")
        return target


def _is_plain(text: str) -> bool:
    """Whether a name needs no closer look: most do not."""
    return text.isascii() and text.isprintable() and "\\" not in text and len(text) < _PLAIN


def _left_out(entry: os.DirEntry[str], rules: IgnoreRules) -> bool:
    is_directory = entry.is_dir(follow_symlinks=False)
    return entry.name in ALWAYS or rules.ignores(entry.path, is_directory=is_directory)


def _refuse_doubles(entries: list[Found]) -> None:
    paths = list(map(_path, entries))
    if len(set(paths)) == len(paths):
        return
    double = next(first for first, second in itertools.pairwise(paths) if first == second)
    raise TreeRefused(double, "is there twice, spelled in two Unicode forms")


def _kind(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a named pipe" if stat.S_ISFIFO(mode) else "a device"


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such directory"
    return f"cannot be read: {error.strerror}"


def _mb(size: int) -> str:
    return f"{size / 1_000_000:,.1f} MB"
