"""A memory limit by control group: v1's memory controller or v2, wherever we may write."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

# The keeper itself stands in the group for the moment of a spawn, and must not be its victim.
SMALLEST_LIMIT = 8 << 20


class MemoryGroup:
    """The control group of one attempt. Version 1 and 2 differ in the names of three files."""

    def __init__(self, path: Path, version: int) -> None:
        self.path = path
        self.version = version

    def create(self, limit: int) -> None:
        """Make the group with a limit in bytes; raises OSError where that is not allowed."""
        self.path.mkdir()
        required, *optional = self.settings(limit).items()
        _put(self.path / required[0], required[1])
        for name, value in optional:
            _put_if_there(self.path / name, value)

    def settings(self, limit: int) -> dict[str, int]:
        """Return the files that hold the limit, the indispensable one first."""
        limit = max(limit, SMALLEST_LIMIT)
        if self.version == 2:
            return {"memory.max": limit, "memory.swap.max": 0}
        return {"memory.limit_in_bytes": limit, "memory.memsw.limit_in_bytes": limit}

    def enter(self) -> None:
        """Move the calling process, and so its next children, into the group."""
        _put(self.path / "cgroup.procs", 0)

    def members(self) -> list[int]:
        """Return the pids inside; empty when the group does not exist."""
        try:
            return [int(line) for line in _get(self.path / "cgroup.procs").split()]
        except OSError:
            return []

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed here for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        try:
            lines = _get(self.path / name).splitlines()
        except OSError:
            return 0
        counts = dict(line.split(maxsplit=1) for line in lines if " " in line)
        return int(counts.get("oom_kill", "0"))

    def remove(self) -> bool:
        """Remove the empty group; False when the kernel still holds it."""
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class MemoryGroups(Protocol):
    """Where groups are made: beside the keeper's own, so that limits set on us stay in force."""

    def new(self, name: str) -> MemoryGroup:
        """Return the (not yet created) group of that name."""

    def leave(self) -> None:
        """Take the calling process back to where it lives."""

    def close(self) -> None:
        """Remove what is empty."""


class GroupsV1:
    """Groups below our own in the hierarchy of v1's memory controller."""

    def __init__(self, home: Path, key: str) -> None:
        self._home = home
        self._base = home / f"hatoba-{key}"
        self._base.mkdir(exist_ok=True)

    def new(self, name: str) -> MemoryGroup:
        """Return the (not yet created) group of that name."""
        return MemoryGroup(self._base / name, 1)

    def leave(self) -> None:
        """Take the calling process back to where it lives."""
        _put(self._home / "cgroup.procs", 0)

    def close(self) -> None:
        """Remove what is empty."""
        with contextlib.suppress(OSError):
            self._base.rmdir()


class GroupsV2:
    """Groups of the unified hierarchy; only a group without processes may share out memory,
    so the keeper moves itself to a leaf beside its attempts."""

    def __init__(self, home: Path, key: str) -> None:
        if home.parent.name == f"hatoba-{key}":
            # Our starter was itself born in the leaf of our predecessor.
            home = home.parent.parent
        self._home = home
        self._base = home / f"hatoba-{key}"
        self._leaf = self._base / "keeper"
        self._leaf.mkdir(parents=True, exist_ok=True)
        try:
            self.leave()
            _put(home / "cgroup.subtree_control", "+memory")
            _put(self._base / "cgroup.subtree_control", "+memory")
        except OSError:
            self.close()
            raise

    def new(self, name: str) -> MemoryGroup:
        """Return the (not yet created) group of that name."""
        return MemoryGroup(self._base / name, 2)

    def leave(self) -> None:
        """Take the calling process back to where it lives."""
        _put(self._leaf / "cgroup.procs", 0)

    def close(self) -> None:
        """Remove what is empty, and stand where we stood."""
        with contextlib.suppress(OSError):
            _put(self._home / "cgroup.procs", 0)
            self._leaf.rmdir()
            self._base.rmdir()


def find(key: str, root: Path = Path("/")) -> MemoryGroups | None:
    """Return a place for groups called after `key`, or None where no memory group may be made.

    `root` holds the `proc` directory that is asked.
    """
    for version, home in _homes(root / "proc/self"):
        with contextlib.suppress(OSError):
            return GroupsV1(home, key) if version == 1 else GroupsV2(home, key)
    return None


def may_limit(root: Path = Path("/")) -> bool:
    """Whether a place for groups would be found; makes none. `root` is as for `find`."""
    with contextlib.suppress(OSError):
        return any(os.access(home, os.W_OK) for _, home in _homes(root / "proc/self"))
    return False


def _homes(about_us: Path) -> list[tuple[int, Path]]:
    own = _own_paths(_get(about_us / "cgroup"))
    homes: list[tuple[int, Path]] = []
    for line in _get(about_us / "mountinfo").splitlines():
        mount, _, source = line.partition(" - ")
        fields, (kind, _, options) = mount.split(), source.split()[:3]
        point = Path(fields[4])
        if kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
            homes += [(1, home) for home in _seats(point, fields[3], own["memory"])]
        elif kind == "cgroup2" and "" in own:
            seats = _seats(point, fields[3], own[""])
            homes += [(2, home) for home in seats if _shares_memory(home)]
    return homes


def _own_paths(text: str) -> dict[str, str]:
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _seats(point: Path, mounted: str, own: str) -> list[Path]:
    # In a container the mount may show only our part of the tree, and our path none of it.
    inside = os.path.relpath(own, mounted)
    nested = point if inside.startswith("..") else point / inside
    return [each for each in dict.fromkeys([nested, point]) if (each / "cgroup.procs").exists()]


def _shares_memory(home: Path) -> bool:
    try:
        return "memory" in _get(home / "cgroup.controllers").split()
    except OSError:
        return False


def _get(path: Path) -> str:
    return path.read_text(encoding="ascii")


def _put(path: Path, value: int | str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, str(value).encode())
    finally:
        os.close(handle)


def _put_if_there(path: Path, value: int) -> None:
    with contextlib.suppress(OSError):
        _put(path, value)
