"""What Linux tells about processes: /proc, the subreaper flag, the tag, and safe signals."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TAG_BIT = 1 << 61


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that we use; `start` in clock ticks since boot."""

    pid: int
    state: str
    ppid: int
    sid: int
    cpu_seconds: float
    start: int
    rss_bytes: int

    @property
    def dead(self) -> bool:
        """True for a zombie: it runs no more, and counts as gone."""
        return self.state in "ZX"


def stat(pid: int) -> Stat | None:
    """Return what is known of `pid`, or None when there is no such process."""
    try:
        data = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    # The name stands in brackets and may itself hold brackets and spaces.
    fields = data[data.rindex(b")") + 2 :].split()
    cpu = sum(int(ticks) for ticks in fields[11:15]) / _TICKS
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        ppid=int(fields[1]),
        sid=int(fields[3]),
        cpu_seconds=cpu,
        start=int(fields[19]),
        rss_bytes=int(fields[21]) * _PAGE,
    )


def everyone() -> dict[int, Stat]:
    """Return all processes of this machine by pid."""
    found = (stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {each.pid: each for each in found if each is not None}


def children(pid: int) -> list[int]:
    """Return the children of every thread of `pid`, zombies too; empty when it is gone."""
    if not _has_children_files():
        return [each.pid for each in everyone().values() if each.ppid == pid]
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        try:
            data = _read(f"/proc/{pid}/task/{thread}/children")
        except OSError:
            continue
        found += map(int, data.split())
    return found


class OwnChildren:
    """The list of this process's own children, held open: reading it needs no free handle."""

    def __init__(self) -> None:
        self._handle: int | None = None
        if _has_children_files():
            path = f"/proc/self/task/{os.getpid()}/children"
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> list[int]:
        """Return all children, zombies too.

        Exact for a process of one thread: only its own `wait4` takes a child off the list.
        """
        if self._handle is None:
            return children(os.getpid())
        os.lseek(self._handle, 0, os.SEEK_SET)
        parts: list[bytes] = []
        while part := os.read(self._handle, 65536):
            parts.append(part)
        return [int(pid) for pid in b"".join(parts).split()]


def descendants(roots: Iterable[int]) -> dict[int, Stat]:
    """Return `roots` and all below them that still run, parents before children."""
    found: dict[int, Stat] = {}
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid in found:
            continue
        known = stat(pid)
        if known is None:
            continue
        if not known.dead:
            found[pid] = known
        todo += children(pid)
    return found


def environment(pid: int) -> dict[str, str]:
    """Return the environment `pid` was executed with; empty when it may not be read."""
    try:
        data = _read(f"/proc/{pid}/environ")
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in os.fsdecode(data).split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def command(pid: int) -> str:
    """Return the start of the command line of `pid`, for messages."""
    try:
        return _read(f"/proc/{pid}/cmdline").replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return ""


def proportional_bytes(pids: Iterable[int]) -> int:
    """Return the memory of `pids` with shared pages counted once in total (PSS), in bytes."""
    return sum(_pss(pid) for pid in pids)


def boot_id() -> str:
    """Return the id that the kernel chose at this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def become_subreaper() -> None:
    """Make orphaned descendants children of this process instead of init's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"PR_SET_CHILD_SUBREAPER: {os.strerror(number)}")


# The tag: a number of ours in the soft limit for real-time cpu time, so high that it never
# limits. Unlike the environment it outlives `env -i`, and one system call reads it.


def new_tag() -> int:
    """Return a tag that nobody else on this machine has."""
    return _TAG_BIT | int.from_bytes(os.urandom(7), "big")


def wear_tag(tag: int | None) -> None:
    """Give this process, and so its next child, `tag`; None takes the tag off.

    Does nothing where the system sets a hard limit of its own.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    if hard == resource.RLIM_INFINITY:
        soft = resource.RLIM_INFINITY if tag is None else tag
        resource.setrlimit(resource.RLIMIT_RTTIME, (soft, hard))


def tag_of(pid: int) -> int:
    """Return the tag that `pid` wears, or 0 when it has none or may not be asked."""
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_RTTIME)
    except OSError:
        return 0
    return soft if soft >= _TAG_BIT else 0


def send(target: Stat, number: int) -> None:
    """Send a signal to `target`, and to no later process that got its pid."""
    handle = pidfd(target.pid)
    try:
        current = stat(target.pid)
        if current is None or current.start != target.start:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if handle is None:  # the narrow race stays
                os.kill(target.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
    finally:
        if handle is not None:
            os.close(handle)


def pidfd(pid: int) -> int | None:
    """A handle of a process, readable once it is gone; to be closed.

    None where there is no such process, on an old kernel, and in a sandbox that knows no pidfd.
    """
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


@functools.cache
def _has_children_files() -> bool:
    # CONFIG_PROC_CHILDREN
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def _pss(pid: int) -> int:
    try:
        data = _read(f"/proc/{pid}/smaps_rollup")
    except OSError:
        known = stat(pid)
        return known.rss_bytes if known else 0
    for line in data.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(handle, 65536)
        # A seq_file answers a page at a time, cut at a record: only half a page is surely all.
        if len(data) < 2048:
            return data
        parts = [data]
        while part := os.read(handle, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(handle)
