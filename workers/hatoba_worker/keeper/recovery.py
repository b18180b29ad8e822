"""What a dead keeper left running: it is found by its marks, and killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.family import KEEPER_MARK, MARK, Owner


def survivors(owners: Iterable[Owner], key: str) -> dict[Owner, list[procfs.Stat]]:
    """Return the running processes of `owners`, which are no children of ours any more.

    A process belongs to the owner whose tag it wears, whose mark and keeper `key` stand in its
    environment, whose main process it is, in whose control group it stands, or to whom its parent
    belongs. Sessions are no evidence here: their numbers may have been given away since.
    """
    running = {pid: each for pid, each in procfs.everyone().items() if not each.dead}
    running.pop(os.getpid(), None)
    evidence = _Evidence(owners, key)
    whose: dict[int, Owner] = {}
    for pid, each in running.items():
        owner = evidence.owner_of(each)
        if owner is not None:
            whose[pid] = owner
    _inherit(whose, running)
    found: dict[Owner, list[procfs.Stat]] = {}
    for pid, owner in whose.items():
        found.setdefault(owner, []).append(running[pid])
    return found


def kill(processes: Iterable[procfs.Stat]) -> None:
    """Kill these, stopped first so that none of them can fork meanwhile."""
    doomed = list(processes)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for each in doomed:
            procfs.send(each, number)


class _Evidence:
    def __init__(self, owners: Iterable[Owner], key: str) -> None:
        known = list(owners)
        self._key = key
        self._tags = {owner.tag: owner for owner in known}
        self._names = {owner.name: owner for owner in known}
        self._mains = {(owner.pid, owner.start): owner for owner in known}
        self._grouped = {
            pid: owner for owner in known if owner.group for pid in owner.group.members()
        }

    def owner_of(self, process: procfs.Stat) -> Owner | None:
        tag = procfs.tag_of(process.pid)
        return (
            self._tags.get(tag)
            or self._mains.get((process.pid, process.start))
            or self._grouped.get(process.pid)
            or self._marked(process.pid)
        )

    def _marked(self, pid: int) -> Owner | None:
        marks = procfs.environment(pid)
        if marks.get(KEEPER_MARK) != self._key:
            return None
        return self._names.get(marks.get(MARK, ""))


def _inherit(whose: dict[int, Owner], running: Mapping[int, procfs.Stat]) -> None:
    grown = True
    while grown:
        grown = False
        for pid, each in running.items():
            if pid not in whose and each.ppid in whose:
                whose[pid] = whose[each.ppid]
                grown = True
