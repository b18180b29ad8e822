"""The keeper itself: the commands of its clients, and what follows when a process ends."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

from hatoba_worker.keeper import cgroups, procfs, recovery
from hatoba_worker.keeper.attempts import (
    BY_CGROUP,
    BY_NOTHING,
    BY_RLIMIT,
    KILLED_BY_US,
    LINGER,
    OOM,
    STOP,
    Attempt,
    failure,
)
from hatoba_worker.keeper.book import Book
from hatoba_worker.keeper.endings import Endings, kill_all
from hatoba_worker.keeper.family import KEEPER_MARK, MARK, Family, Owner, Reaped
from hatoba_worker.keeper.frames import PROTOCOL, Json
from hatoba_worker.keeper.joining import Joiners
from hatoba_worker.keeper.launch import (
    OTHER,
    TOMBSTONE,
    LaunchError,
    data_limit,
    inside,
    launch,
)
from hatoba_worker.keeper.note import note
from hatoba_worker.keeper.serve import Peer, Service
from hatoba_worker.keeper.supervisor import GRACE, Supervised, Supervisor
from hatoba_worker.keeper.timers import Timers
from hatoba_worker.keeper.watch import MemoryWatch

PAGE = 500
LONGEST_NAME = 300
_AGAIN = 0.05
_HUNT_AGAIN = 0.5
_HUNT_AT_START = 2.0


class Keeper:
    """Spawns, watches, ends and remembers the attempts of one data directory."""

    def __init__(self, identity: Json, key: str, book: Book, *, use_groups: bool) -> None:
        self._identity = identity
        self._key = key
        self._book = book
        self._timers = Timers(time.monotonic)
        self._family = Family(key)
        self._endings = Endings(self._family, self._timers, self.look)
        self._supervisor = Supervisor(self._family, self._endings, self._timers, book)
        self._joiners = Joiners(self._family, key)
        self._watch = MemoryWatch(self._family, self._timers, self._over_memory)
        self._leaving: set[Owner] = set()
        self._remnants: set[Owner] = set()
        self._events: list[Json] = []
        self._groups: cgroups.MemoryGroups | None = None
        self._groups_sought = not use_groups
        self._closing = False
        self._asked_to_end = False
        self._stray_hunt = False
        self._commands: dict[str, Callable[[Peer, Json], Json]] = {
            "hello": self._hello,
            "spawn": self._spawn,
            "join": self._join,
            "stop": self._stop,
            "kill": self._kill,
            "list": self._list,
            "forget": self._forget,
            "watch": self._watching,
            "sample": self._sample,
            "supervise": self._supervise,
            "unsupervise": self._unsupervise,
            "restart": self._restart,
            "shutdown": self._shutdown,
        }

    # -- the loop -------------------------------------------------------------------------------

    def recover(self) -> None:
        """End what an earlier keeper left, for up to 2 s; the rest is hunted while we serve."""
        self._remnants |= set(self._book.load())
        for attempt in self._book.attempts.values():
            if attempt.gone and attempt.group:
                attempt.group.remove()
        configs = list(self._book.supervised.values())
        self._remnants |= {_former(config) for config in configs if config["pid"]}
        until = time.monotonic() + _HUNT_AT_START
        self._hunt()
        while self._remnants and time.monotonic() < until:
            time.sleep(0.005)
            self._hunt()
        if self._remnants:
            self._timers.after(_HUNT_AGAIN, self._hunt_on)
        else:
            self._resume()
        self._book.save()

    def run(self, service: Service) -> None:
        """Serve until a shutdown is complete."""
        while not self.finished:
            service.wait(self._timers.wait())
            if self._asked_to_end and not self._closing:
                self._close_down(stop_attempts=True, grace=10.0)
            service.work()
            self.look()
            self._timers.run_due()
            self._save()
            if self._events:
                service.publish(self._events)
                self._events = []
            service.send()

    @property
    def finished(self) -> bool:
        """True when everything that the shutdown is to end has ended."""
        return self._closing and not self._busy() and not self._supervisor.processes

    def close(self) -> None:
        """Remove what the keeper made for itself."""
        if self._groups:
            self._groups.close()

    def ask_to_end(self) -> None:
        """End everything with a grace of 10 s, from a signal handler: at the loop's next turn."""
        self._asked_to_end = True

    def handle(self, peer: Peer, command: Json) -> Json:
        """Answer one command; a malformed one gets an error and changes nothing."""
        try:
            action = self._commands[command["op"]]
        except (KeyError, TypeError):
            return {"error": "bad_request", "message": "unknown op"}
        try:
            return action(peer, command)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return {"error": "bad_request", "message": f"{type(error).__name__}: {error}"}

    def look(self) -> None:
        """Reap who has ended, adopt who was orphaned, and find out who is gone."""
        ended = self._family.reap()
        if not ended and not self._leaving:
            return
        told = (self._joiners.ended(each.pid, each.status) for each in ended)
        self._events += [event for event in told if event]
        mains = [each for each in ended if each.main]
        self._leaving |= {each.owner for each in mains if each.owner}
        for stray in self._family.adopt():
            self._kill_stray(stray)
        for each in mains:
            self._note_end(each)
        gone = {owner for owner in self._leaving if self._family.is_gone(owner)}
        for owner in gone:
            self._bury(owner)
        for each in mains:
            self._tell_end(each, still_there=each.owner not in gone)
        self._tell_gone(gone - {each.owner for each in mains})

    def _save(self) -> None:
        try:
            self._book.save()
        except OSError as error:
            note(f"journal: {error}")
            self._timers.after(1.0, lambda: None)

    # -- ends -----------------------------------------------------------------------------------

    def _note_end(self, ended: Reaped) -> None:
        owner = ended.owner
        if isinstance(owner, Supervised):
            self._supervisor.ended(owner, ended.status)
        elif isinstance(owner, Attempt):
            owner.end(ended.status, ended.usage, time.time())

    def _bury(self, owner: Owner) -> None:
        self._leaving.discard(owner)
        self._endings.done(owner)
        self._family.drop(owner)
        if owner.group:
            self._remove_group(owner.group)
        if isinstance(owner, Supervised):
            self._supervisor.gone(owner)
        elif isinstance(owner, Attempt):
            owner.gone = True

    def _tell_end(self, ended: Reaped, *, still_there: bool) -> None:
        owner = ended.owner
        if isinstance(owner, Attempt):
            self._book.note(owner)
            self._events.append(_exited(owner))
            if still_there:
                self._endings.linger(owner, owner.linger_grace)
        elif owner is not None and still_there:
            self._endings.kill(owner)

    def _tell_gone(self, owners: set[Owner]) -> None:
        for owner in owners:
            if isinstance(owner, Attempt):
                self._book.note(owner)
                self._events.append({"event": "gone", "attempt": owner.name})

    def _kill_stray(self, stray: procfs.Stat) -> None:
        command = procfs.command(stray.pid)
        note(f"killing stray {stray.pid} of no known attempt: {command}")
        self._events.append({"event": "stray", "pid": stray.pid, "command": command})
        if not self._stray_hunt:
            self._stray_hunt = True
            self._timers.after(0.0, self._kill_strays)

    def _kill_strays(self) -> None:
        self.look()
        self._stray_hunt = bool(self._family.strays)
        if self._stray_hunt:
            kill_all(lambda: procfs.descendants(self._family.strays))
            self._timers.after(_AGAIN, self._kill_strays)

    def _remove_group(self, group: cgroups.MemoryGroup) -> None:
        if not group.remove():
            self._timers.after(_AGAIN, lambda: self._remove_group(group))

    def _over_memory(self, attempt: Attempt) -> None:
        attempt.oom = True
        attempt.ending = OOM
        self._endings.kill(attempt)

    # -- what an earlier keeper left ------------------------------------------------------------

    def _hunt(self) -> None:
        found = recovery.survivors(self._remnants, self._key) if self._remnants else {}
        for processes in found.values():
            recovery.kill(processes)
        for owner in self._remnants - set(found):
            self._remnants.discard(owner)
            if owner.group:
                self._remove_group(owner.group)
            if isinstance(owner, Attempt):
                owner.gone = True
                self._tell_gone({owner})

    def _hunt_on(self) -> None:
        self._hunt()
        if self._remnants:
            self._timers.after(_HUNT_AGAIN, self._hunt_on)
        else:
            self._resume()

    def _resume(self) -> None:
        for config in list(self._book.supervised.values()):
            if not self._closing:
                self._supervisor.supervise(config)

    # -- commands -------------------------------------------------------------------------------

    def _hello(self, _peer: Peer, _command: Json) -> Json:
        return {**self._identity, "protocol": PROTOCOL}

    def _spawn(self, _peer: Peer, command: Json) -> Json:
        name = _name(command)
        known = self._book.attempts.get(name)
        if known:
            return known.answer(known=True)
        if name in self._book.tombstones:
            error = LaunchError(errno.ECANCELED, TOMBSTONE, "stopped or forgotten before")
            return failure(name, error)
        if self._closing:
            return failure(name, LaunchError(errno.ESHUTDOWN, OTHER, "the keeper shuts down"))
        attempt = Attempt(name)
        try:
            self._launch(attempt, command)
        except LaunchError as error:
            attempt.fail(error)
        self._book.note(attempt)
        return attempt.answer(known=False)

    def _launch(self, attempt: Attempt, command: Json) -> None:
        limits = command.get("limits") or {}
        argv, cwd, logs = command["argv"], command["cwd"], (command["stdout"], command["stderr"])
        env = {**command["env"], MARK: attempt.name, KEEPER_MARK: self._key}
        attempt.linger_grace = _seconds(command.get("linger_grace", LINGER))
        attempt.started_at = time.time()
        soft = _soft_limits(limits)
        self._limit_memory(attempt, soft, int(limits.get("memory_bytes") or 0))
        procfs.wear_tag(attempt.tag)
        try:
            self._intend(attempt)
            attempt.pid = inside(
                attempt.group, self._groups, lambda: launch(argv, env, cwd, logs, soft)
            )
        except LaunchError:
            if attempt.group:
                self._remove_group(attempt.group)
            raise
        self._begun(attempt)

    def _begun(self, attempt: Attempt) -> None:
        known = procfs.stat(attempt.pid)
        attempt.start = known.start if known else 0
        self._family.add(attempt)
        if attempt.limit_by == BY_RLIMIT:
            self._watch.add(attempt)

    def _intend(self, attempt: Attempt) -> None:
        try:
            self._book.intend(attempt)
        except OSError as error:
            raise LaunchError(error.errno or 0, OTHER, f"journal: {error}") from error

    def _limit_memory(self, attempt: Attempt, soft: dict[int, int], memory_bytes: int) -> None:
        attempt.limit_by = BY_NOTHING
        if memory_bytes <= 0:
            return
        attempt.memory_bytes = memory_bytes
        attempt.group = self._new_group(attempt.tag, memory_bytes)
        attempt.limit_by = BY_CGROUP if attempt.group else BY_RLIMIT
        if not attempt.group:
            soft[resource.RLIMIT_DATA] = data_limit(memory_bytes)

    def _new_group(self, tag: int, memory_bytes: int) -> cgroups.MemoryGroup | None:
        if not self._groups_sought:
            self._groups_sought = True
            self._groups = cgroups.find(self._key)
        if self._groups is None:
            return None
        group = self._groups.new(f"{tag:x}")
        try:
            group.create(memory_bytes)
        except OSError as error:
            note(f"no control group: {error}")
            group.remove()
            return None
        return group

    def _join(self, _peer: Peer, command: Json) -> Json:
        self.look()
        attempt = self._book.attempts.get(_name(command))
        if attempt is None or not attempt.running or attempt.ending:
            return {"error": "not_running", "message": "it does not run, or is to end"}
        try:
            return self._joiners.start(attempt, command, self._groups)
        except LaunchError as error:
            return {"error": error.kind, "message": str(error)}

    def _stop(self, _peer: Peer, command: Json) -> Json:
        number = signal.Signals(command.get("signal", signal.SIGTERM))
        grace = _seconds(command.get("grace", 10.0))
        # What has ended by itself and is not reaped yet keeps its own end.
        self.look()
        attempt = self._book.attempts.get(_name(command))
        if attempt is None:
            self._book.bury(_name(command))
            return {"ok": True, "state": "tombstone"}
        if attempt.over or attempt in self._remnants:
            return {"ok": True, "state": "ended"}
        attempt.ending = attempt.ending or STOP
        self._endings.ask(attempt, number, grace)
        return {"ok": True, "state": "stopping"}

    def _kill(self, _peer: Peer, command: Json) -> Json:
        # What has ended by itself and is not reaped yet keeps its own end.
        self.look()
        attempt = self._book.attempts.get(_name(command))
        if attempt is None:
            self._book.bury(_name(command))
            return {"ok": True, "state": "tombstone"}
        if attempt.over or attempt in self._remnants:
            return {"ok": True, "state": "ended"}
        attempt.ending = KILLED_BY_US
        self._endings.kill(attempt)
        return {"ok": True, "state": "stopping"}

    def _list(self, _peer: Peer, command: Json) -> Json:
        after = int(command.get("after", 0))
        later = [each for each in self._book.attempts.values() if each.serial > after]
        page = later[:PAGE]
        return {
            "attempts": [each.view() for each in page],
            "next": page[-1].serial if len(later) > PAGE else None,
            "supervised": [each.view() for each in self._supervisor.processes.values()],
        }

    def _forget(self, _peer: Peer, command: Json) -> Json:
        name = command["attempt"]
        attempt = self._book.attempts.get(name)
        if attempt and not attempt.over:
            return {"error": "live", "message": f"{name} still has processes"}
        if attempt:
            self._book.bury(name)
        return {"ok": True}

    def _watching(self, peer: Peer, _command: Json) -> Json:
        peer.watching = True
        return {"ok": True}

    def _sample(self, _peer: Peer, command: Json) -> Json:
        names = command.get("attempts")
        if names is None:
            names = [each.name for each in self._book.attempts.values() if not each.gone]
        known = (self._book.attempts.get(name) for name in names)
        return {"samples": [self._measure(each) for each in known if each and not each.gone]}

    def _measure(self, attempt: Attempt) -> Json:
        members = self._family.members(attempt).values()
        return {
            "attempt": attempt.name,
            "cpu_seconds": attempt.spent_seconds + sum(each.cpu_seconds for each in members),
            "rss_bytes": sum(each.rss_bytes for each in members),
            "pids": [each.pid for each in members],
        }

    def _supervise(self, _peer: Peer, command: Json) -> Json:
        if self._closing:
            return {"error": "closing", "message": "the keeper shuts down"}
        config = {key: command[key] for key in ("name", "argv", "env", "cwd", "log")}
        if self._remnants:
            # Its predecessor may still run: it is started once all of those are gone.
            self._book.supervise({**config, "pid": 0, "start_ticks": 0, "tag": 0})
            return {"ok": True}
        return self._supervisor.supervise(config)

    def _unsupervise(self, _peer: Peer, command: Json) -> Json:
        return self._supervisor.unsupervise(command["name"], _seconds(command.get("grace", GRACE)))

    def _restart(self, _peer: Peer, command: Json) -> Json:
        return self._supervisor.restart(command["name"])

    def _shutdown(self, _peer: Peer, command: Json) -> Json:
        stop_attempts = bool(command.get("stop_attempts", False))
        grace = _seconds(command.get("grace", 10.0))
        busy = self._busy()
        if busy and not stop_attempts:
            return {"error": "busy", "message": f"{busy} attempts still have processes"}
        for name in list(self._book.supervised):
            self._book.unsupervise(name)
        self._close_down(stop_attempts=stop_attempts, grace=grace)
        return {"ok": True}

    def _busy(self) -> int:
        return sum(1 for each in self._book.attempts.values() if not each.gone)

    def _close_down(self, *, stop_attempts: bool, grace: float) -> None:
        self._closing = True
        for process in list(self._supervisor.processes.values()):
            self._supervisor.stop(process, grace)
        for attempt in self._book.attempts.values():
            if stop_attempts and not attempt.gone and attempt not in self._remnants:
                attempt.ending = attempt.ending or STOP
                self._endings.ask(attempt, signal.SIGTERM, grace)


def data_key(directory: Path) -> str:
    """Return what tells the keeper of `directory` from all others of this machine."""
    status = os.stat(directory)
    return f"{status.st_dev:x}-{status.st_ino:x}"


def _exited(attempt: Attempt) -> Json:
    view = attempt.view()
    body = {key: view[key] for key in ("attempt", "pid", "started_at", "limit_by", "gone")}
    return {"event": "exited", **body, **(attempt.exit or {})}


def _name(command: Json) -> str:
    name = command["attempt"]
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
        raise ValueError(f"an attempt's name has 1 to {LONGEST_NAME} characters")
    return name


def _seconds(value: float) -> float:
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError(f"{value} is no number of seconds")
    return seconds


def _soft_limits(limits: Json) -> dict[int, int]:
    soft: dict[int, int] = {}
    if limits.get("nofile") is not None:
        soft[resource.RLIMIT_NOFILE] = int(limits["nofile"])
    if limits.get("core") is not None:
        soft[resource.RLIMIT_CORE] = int(limits["core"])
    return soft


def _former(config: Json) -> Owner:
    owner = Owner(config["name"])
    owner.tag = config["tag"]
    owner.pid = config["pid"]
    owner.start = config["start_ticks"]
    return owner
