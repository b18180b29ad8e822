"""Starting a process whose limits are in force before its first instruction."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import subprocess
from collections.abc import Callable, Mapping, Sequence

from hatoba_worker.keeper.cgroups import MemoryGroup, MemoryGroups
from hatoba_worker.keeper.note import note

NOT_FOUND = "not_found"
NOT_EXECUTABLE = "not_executable"
CWD_MISSING = "cwd_missing"
TOMBSTONE = "tombstone"
OTHER = "other"

# RLIMIT_DATA counts address space, also what is never touched. It stands above the limit, as a
# net under the memory watch, and never so low that the keeper itself could not allocate.
_DATA_HEADROOM = 1.25
_SMALLEST_DATA = 64 << 20

SoftLimits = Mapping[int, int]


class LaunchError(Exception):
    """Nothing was started; `number` is the errno, `kind` one of this module's words."""

    def __init__(self, number: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.kind = kind


def data_limit(memory_bytes: int) -> int:
    """Return the RLIMIT_DATA that goes with a memory limit where there is no control group."""
    return max(int(memory_bytes * _DATA_HEADROOM), _SMALLEST_DATA)


def launch(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    logs: tuple[str, str],
    soft: SoftLimits,
) -> int:
    """Start `argv` in a session of its own and return its pid; raises LaunchError.

    `logs` are the paths of stdout and stderr, made 0600 and opened for appending. `soft` limits
    hold from the first instruction; they become hard ones before this returns.
    """
    if not argv:
        raise LaunchError(errno.EINVAL, OTHER, "the command is empty")
    handles: list[int] = []
    try:
        for path in logs:
            handles.append(_log(path))  # noqa: PERF401 - the first is closed if the second fails
        pid = _under(soft, lambda: _popen(argv, env, cwd, *handles))
    except (ValueError, TypeError, OverflowError) as error:
        raise LaunchError(errno.EINVAL, OTHER, str(error)) from error
    except MemoryError as error:
        raise LaunchError(errno.ENOMEM, OTHER, "out of memory") from error
    except OSError as error:
        raise _explained(error, argv, cwd) from error
    finally:
        for handle in handles:
            os.close(handle)
    _harden(pid, soft)
    return pid


def inside(group: MemoryGroup | None, groups: MemoryGroups | None, start: Callable[[], int]) -> int:
    """What `start` returns, called while we stand in `group`, so that a child is born in it.

    Raises LaunchError.
    """
    if group is None or groups is None:
        return start()
    try:
        group.enter()
    except OSError as error:
        raise LaunchError(error.errno or 0, OTHER, f"control group: {error}") from error
    try:
        return start()
    finally:
        try:
            groups.leave()
        except OSError as error:
            # The child is there already, and must be accounted for all the same.
            note(f"stuck in {group.path}: {error}")


def _popen(argv: Sequence[str], env: Mapping[str, str], cwd: str, stdout: int, stderr: int) -> int:
    child = subprocess.Popen(
        argv,
        stdin=_nothing(),
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        start_new_session=True,
        # All of ours are close-on-exec; looking for others costs a fifth of a spawn.
        close_fds=False,
    )
    # The family reaps it; a Popen that thinks its child alive would wait for it at some later one.
    child.returncode = 0
    return child.pid


@functools.cache
def _nothing() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LaunchError(error.errno or 0, OTHER, f"log file: {error}") from error


def _under(soft: SoftLimits, start: Callable[[], int]) -> int:
    """What `start` returns, called while these limits are ours."""
    before = {which: resource.getrlimit(which) for which in soft}
    try:
        for which, value in soft.items():
            resource.setrlimit(which, (_within(value, before[which][1]), before[which][1]))
        return start()
    finally:
        for which, limits in before.items():
            resource.setrlimit(which, limits)


def _harden(pid: int, soft: SoftLimits) -> None:
    for which, value in soft.items():
        with contextlib.suppress(OSError, ValueError):
            current, hard = resource.prlimit(pid, which)
            value = _within(value, hard)
            resource.prlimit(pid, which, (min(current, value), value))


def _within(value: int, hard: int) -> int:
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _explained(error: OSError, argv: Sequence[str], cwd: str) -> LaunchError:
    number = error.errno or 0
    if not os.path.isdir(cwd):
        return LaunchError(number, CWD_MISSING, f"no directory {cwd}")
    program = argv[0]
    if number in (errno.ENOENT, errno.ENOTDIR):
        if "/" in program and os.path.exists(os.path.join(cwd, program)):
            return LaunchError(number, NOT_FOUND, f"{program}: its interpreter does not exist")
        return LaunchError(number, NOT_FOUND, f"{program}: no such program")
    if number in (errno.EACCES, errno.ENOEXEC, errno.EISDIR):
        return LaunchError(number, NOT_EXECUTABLE, f"{program}: {os.strerror(number)}")
    return LaunchError(number, OTHER, f"{program}: {os.strerror(number)}")
