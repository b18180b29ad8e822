"""Whose process is it? The keeper's children, and the attempt each of them belongs to.

The keeper is the child subreaper, so everything that an attempt starts stays below the keeper:
when a process dies, the kernel makes its children the keeper's own *before* the death can be
waited for. Hence, once `wait4` returned the main process, one look at the keeper's own list of
children is exact: whatever is left of the attempt hangs below a child in that list. Sessions,
double forks and cleared environments change nothing in this. No scan of /proc is needed, and
an attempt that left nothing behind (nearly every one) costs a single read.

An adopted child is told apart by, in this order: the tag it wears, the mark in its environment,
its session, the tree as last seen. One that shows none of these is a stray.
"""

from __future__ import annotations

import os
import resource
from typing import NamedTuple

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.cgroups import MemoryGroup

MARK = "HATOBA_ATTEMPT"
KEEPER_MARK = "HATOBA_KEEPER"


class Owner:
    """Somebody processes belong to: an attempt or a supervised process.

    `pid` is that of the main process (0 before it started), `running` whether it still runs.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.tag = procfs.new_tag()
        self.pid = 0
        self.start = 0
        self.running = False
        self.adopted: set[int] = set()
        self.seen: set[tuple[int, int]] = set()
        self.group: MemoryGroup | None = None
        self.spent_seconds = 0.0


class Reaped(NamedTuple):
    """A child that ended, as `wait4` told it."""

    pid: int
    status: int
    usage: resource.struct_rusage
    owner: Owner | None
    main: bool


class Family:
    """All children of the keeper, started or adopted, with their owners."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._mains: dict[int, Owner] = {}
        self._adopted: dict[int, Owner] = {}
        self._owners: dict[int, Owner] = {}
        self.strays: dict[int, procfs.Stat] = {}
        self._children = procfs.OwnChildren()
        self._blind = False

    def add(self, owner: Owner) -> None:
        """Know the owner and its main process, which has just been started."""
        owner.running = True
        self._mains[owner.pid] = owner
        self._owners[owner.tag] = owner

    def join(self, owner: Owner, pid: int) -> None:
        """Know one more process of the owner, which has just been started."""
        owner.adopted.add(pid)
        self._adopted[pid] = owner

    def drop(self, owner: Owner) -> None:
        """Forget an owner of whom no process is left."""
        self._owners.pop(owner.tag, None)

    def reap(self) -> list[Reaped]:
        """Collect every child that has ended, without waiting."""
        ended: list[Reaped] = []
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            ended.append(self._bury(pid, status, usage))

    def adopt(self) -> list[procfs.Stat]:
        """Look who was orphaned to us; return the strays that are new.

        A zombie is taken in too: until it is reaped, children of its own may still be coming.
        """
        strays: list[procfs.Stat] = []
        self._blind = False
        for pid in self._children.read():
            if pid in self._mains or pid in self._adopted or pid in self.strays:
                continue
            known = procfs.stat(pid)
            if known is None:
                # It is there, but no file can be opened now: nobody is gone before we see again.
                self._blind = True
                continue
            owner = self._owner_of(known)
            if owner is None:
                self.strays[pid] = known
                strays.append(known)
            else:
                owner.adopted.add(pid)
                self._adopted[pid] = owner
        return strays

    def members(self, owner: Owner) -> dict[int, procfs.Stat]:
        """Return the running processes of `owner`, and remember them as its tree."""
        roots = set(owner.adopted)
        if owner.running:
            roots.add(owner.pid)
        if owner.group:
            roots.update(owner.group.members())
        found = procfs.descendants(roots)
        owner.seen = {(each.pid, each.start) for each in found.values()}
        return found

    def is_gone(self, owner: Owner) -> bool:
        """Return whether nothing of `owner` is left; exact right after `reap` and `adopt`."""
        if owner.running or owner.adopted or self._blind:
            return False
        if owner.group and owner.group.members():
            return False
        # A stray younger than the owner may have come from it.
        return not any(stray.start >= owner.start for stray in self.strays.values())

    def _bury(self, pid: int, status: int, usage: resource.struct_rusage) -> Reaped:
        self.strays.pop(pid, None)
        main = self._mains.pop(pid, None)
        owner = main or self._adopted.pop(pid, None)
        if owner is not None:
            owner.adopted.discard(pid)
            owner.spent_seconds += usage.ru_utime + usage.ru_stime
        if main is not None:
            main.running = False
        return Reaped(pid, status, usage, owner, main is not None)

    def _owner_of(self, child: procfs.Stat) -> Owner | None:
        owner = self._owners.get(procfs.tag_of(child.pid))
        return owner or self._marked(child) or self._related(child)

    def _marked(self, child: procfs.Stat) -> Owner | None:
        marks = procfs.environment(child.pid)
        if marks.get(KEEPER_MARK) != self._key:
            return None
        name = marks.get(MARK)
        return next((owner for owner in self._owners.values() if owner.name == name), None)

    def _related(self, child: procfs.Stat) -> Owner | None:
        me = (child.pid, child.start)
        for owner in self._owners.values():
            # A session's number is not given away again while the session has a member.
            if child.sid == owner.pid or me in owner.seen:
                return owner
        return None
