"""Processes that join a running attempt, as somebody's shell does, and end with it."""

from __future__ import annotations

import errno
import os
import resource
import sys
from pathlib import Path

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.attempts import Attempt
from hatoba_worker.keeper.cgroups import MemoryGroups
from hatoba_worker.keeper.family import KEEPER_MARK, MARK, Family
from hatoba_worker.keeper.frames import Json
from hatoba_worker.keeper.launch import OTHER, LaunchError, inside, launch

_NOWHERE = (os.devnull, os.devnull)
_BECOMES = str(Path(__file__).with_name("joined.py"))


class Joiners:
    """Starts processes of an attempt beside its main one, and tells their ends."""

    def __init__(self, family: Family, key: str) -> None:
        self._family = family
        self._key = key
        self._joined: dict[int, Json] = {}

    def start(self, attempt: Attempt, command: Json, groups: MemoryGroups | None) -> Json:
        """Start what `command` says in the attempt's environment, group and limits.

        `directory` holds the socket `s` that gives it its handles, see `joined`; `cwd` is where it
        runs. Raises LaunchError.
        """
        name, directory = str(command["join"]), str(command["directory"])
        argv = [sys.executable, "-I", "-S", _BECOMES, str(command["cwd"]), *command["argv"]]
        env = self._environment(attempt) | command["env"]
        soft = _limits(attempt.pid)
        procfs.wear_tag(attempt.tag)
        pid = inside(attempt.group, groups, lambda: launch(argv, env, directory, _NOWHERE, soft))
        self._family.join(attempt, pid)
        self._joined[pid] = {"attempt": attempt.name, "join": name}
        known = procfs.stat(pid)
        return {"ok": True, "pid": pid, "start_ticks": known.start if known else 0}

    def _environment(self, attempt: Attempt) -> dict[str, str]:
        """What its main process was started with: only the kernel keeps it, for it has secrets."""
        found = procfs.environment(attempt.pid)
        if not found:
            raise LaunchError(errno.ESRCH, OTHER, "its main process is ending")
        return found | {MARK: attempt.name, KEEPER_MARK: self._key}

    def ended(self, pid: int, status: int) -> Json | None:
        """The event of a child's end; None for one that joined nobody."""
        told = self._joined.pop(pid, None)
        if told is None:
            return None
        code = os.waitstatus_to_exitcode(status)
        return {"event": "joined_ended", **told, "exit_code": max(0, code), "signal": max(0, -code)}


def _limits(pid: int) -> dict[int, int]:
    """The soft limits of a process, as far as the keeper sets any."""
    which = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_DATA)
    try:
        return {each: resource.prlimit(pid, each)[0] for each in which}
    except OSError as error:
        raise LaunchError(error.errno or 0, OTHER, "its main process is ending") from error
