"""Keeping the worker and the router running."""

from __future__ import annotations

import os
import signal
import time

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.backoff import Backoff
from hatoba_worker.keeper.book import Book
from hatoba_worker.keeper.endings import Endings
from hatoba_worker.keeper.family import Family, Owner
from hatoba_worker.keeper.frames import Json
from hatoba_worker.keeper.launch import LaunchError, launch
from hatoba_worker.keeper.note import note
from hatoba_worker.keeper.timers import Timer, Timers

GRACE = 5.0


class Supervised(Owner):
    """A process that is started again whenever it ends; it is no attempt and has no limits."""

    def __init__(self, config: Json) -> None:
        super().__init__(config["name"])
        self.config = config
        self.backoff = Backoff()
        self.wanted = True
        self.restarting = False
        self.present = False
        self.restarts = 0
        self.started = 0.0
        self.started_at = 0.0
        self.delay = 0.0
        self.timer: Timer | None = None
        self.last: str | None = None

    def view(self) -> Json:
        """Return what `list` tells about it."""
        return {
            "name": self.name,
            "pid": self.pid if self.running else None,
            "started_at": self.started_at,
            "restarts": self.restarts,
            "last_end": self.last,
        }


class Supervisor:
    """Starts the supervised processes, and starts them again, with back-off, when they end."""

    def __init__(self, family: Family, endings: Endings, timers: Timers, book: Book) -> None:
        self._family = family
        self._endings = endings
        self._timers = timers
        self._book = book
        self.processes: dict[str, Supervised] = {}

    def supervise(self, config: Json) -> Json:
        """Start a process and keep it running.

        A name that is known keeps its process; its new settings hold from the next start.
        """
        known = self.processes.get(config["name"])
        if known is None:
            self._add(Supervised(config))
        else:
            known.config = config
            known.wanted = True
        self._remember(self.processes[config["name"]])
        return {"ok": True}

    def restart(self, name: str) -> Json:
        """End the process (5 s grace) and start it at once, without back-off."""
        process = self.processes.get(name)
        if process is None:
            return {"error": "unknown", "message": f"no supervised process {name}"}
        process.delay = 0.0
        if process.present:
            process.restarting = True
            self._endings.ask(process, signal.SIGTERM, GRACE)
        else:
            self._start(process)
        return {"ok": True}

    def unsupervise(self, name: str, grace: float = GRACE) -> Json:
        """End the process and do not start it again."""
        process = self.processes.get(name)
        self._book.unsupervise(name)
        if process is not None:
            self.stop(process, grace)
        return {"ok": True}

    def stop(self, process: Supervised, grace: float) -> None:
        """End the process, but remember that it is supervised: the next keeper starts it."""
        process.wanted = False
        if process.present:
            self._endings.ask(process, signal.SIGTERM, grace)
        else:
            self._remove(process)

    def ended(self, process: Supervised, status: int) -> None:
        """The main process ended; what it left behind must not meet its successor."""
        code = os.waitstatus_to_exitcode(status)
        process.last = f"exit code {code}" if code >= 0 else f"signal {-code}"
        lived = self._timers.clock() - process.started
        process.delay = 0.0 if process.restarting else process.backoff.after(lived)
        process.restarting = False
        if process.wanted:
            note(
                f"{process.name} ended ({process.last}) after {lived:.1f} s; "
                f"again in {process.delay:.2f} s"
            )

    def gone(self, process: Supervised) -> None:
        """Nothing is left of it: start it again, or let it be."""
        process.present = False
        if process.wanted:
            process.timer = self._timers.after(process.delay, lambda: self._start(process))
        else:
            self._remove(process)

    def _add(self, process: Supervised) -> None:
        self.processes[process.name] = process
        self._start(process)

    def _remove(self, process: Supervised) -> None:
        if process.timer:
            process.timer.cancel()
        self.processes.pop(process.name, None)

    def _start(self, process: Supervised) -> None:
        if process.timer:
            process.timer.cancel()
        if process.present or not process.wanted:
            return
        config = process.config
        process.tag = procfs.new_tag()
        procfs.wear_tag(process.tag)
        try:
            logs = (config["log"], config["log"])
            process.pid = launch(config["argv"], config["env"], config["cwd"], logs, {})
        except LaunchError as error:
            process.last = str(error)
            delay = process.backoff.after(0.0)
            process.timer = self._timers.after(delay, lambda: self._start(process))
            return
        finally:
            procfs.wear_tag(None)
        self._started(process)

    def _started(self, process: Supervised) -> None:
        known = procfs.stat(process.pid)
        process.start = known.start if known else 0
        process.restarts += process.started > 0
        process.started = self._timers.clock()
        process.started_at = time.time()
        process.present = True
        self._family.add(process)
        self._remember(process)

    def _remember(self, process: Supervised) -> None:
        self._book.supervise(
            {
                **process.config,
                "pid": process.pid,
                "start_ticks": process.start,
                "tag": process.tag,
            }
        )
