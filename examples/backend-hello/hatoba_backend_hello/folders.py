"""What is on disk of each attempt: a folder of its name with a few small JSON files.

`object.json` what was launched, `keeper.json` who runs it, `exit.json` how it ended, `stop.json`
that it shall end. Each is created whole and once. Everything here blocks and is called in a thread.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatoba_backend_hello.keep import born, create
from hatoba_plugins.values import Exit, ExitKind, Handle, Observation, Owned, Phase

HANDLE_VERSION = 1


@dataclass(frozen=True)
class Folder:
    """One attempt's folder, whether it is there or not."""

    path: Path

    @property
    def name(self) -> str:
        """The attempt's name."""
        return self.path.name

    @property
    def handle(self) -> Handle:
        """All that is needed to find it again."""
        return Handle(HANDLE_VERSION, self.name)

    def wanted(self) -> dict[str, Any] | None:
        """What was launched."""
        return _read(self.path / "object.json")

    def launch(self, wanted: dict[str, Any]) -> bool:
        """Take the name for this launch; False when it is taken already."""
        self.path.mkdir(parents=True, exist_ok=True)
        return create(self.path / "object.json", wanted)

    def stop(self, kill_at: float) -> bool:
        """Note that it shall end, and tell it. False: there is nothing of that name."""
        self.path.mkdir(parents=True, exist_ok=True)
        create(self.path / "stop.json", {"kill_at": kill_at})
        self.signal(signal.SIGTERM)
        return self.wanted() is not None

    def kill_at(self) -> float | None:
        """When its grace is over; None: nobody stopped it."""
        stop = _read(self.path / "stop.json")
        return None if stop is None else float(stop["kill_at"])

    def signal(self, number: signal.Signals) -> None:
        """Signal the keeper and the command, where they live."""
        pid = self.keeper()
        if pid is not None:
            os.killpg(pid, number)

    def keeper(self) -> int | None:
        """Its living keeper's pid. A pid used again by another process does not count."""
        keeper = _read(self.path / "keeper.json")
        try:
            alive = keeper is not None and born(keeper["pid"]) == keeper["born"]
        except OSError:
            return None
        return int(keeper["pid"]) if keeper is not None and alive else None

    def never_kept(self) -> bool:
        """Launched, and no keeper ever came: a crash was faster."""
        return self.wanted() is not None and not (self.path / "keeper.json").exists()

    def observe(self) -> Observation:
        """How it is. A keeper writes the exit before it dies, so its death is looked at first."""
        if self.wanted() is None:
            return Observation(self.name, Phase.GONE, exists=False)
        if self.never_kept():
            return Observation(self.name, Phase.STARTING, exists=True)
        if self.keeper() is not None:
            return Observation(self.name, Phase.RUNNING, exists=True)
        end = self._exit()
        phase = Phase.GONE if end is None else Phase.ENDED
        return Observation(self.name, phase, exists=end is not None, exit=end)

    def _exit(self) -> Exit | None:
        told, stopped = _read(self.path / "exit.json"), self.kill_at() is not None
        if told is None:
            return Exit(ExitKind.STOPPED, message="killed after its grace") if stopped else None
        if "failed" in told:
            return Exit(ExitKind.FAILED, message=told["failed"])
        if "code" in told:
            return Exit(ExitKind.EXITED, code=told["code"])
        if stopped:
            return Exit(ExitKind.STOPPED, signal=told.get("signal", 0))
        return Exit(ExitKind.SIGNALED, signal=told["signal"])

    def owned(self) -> Owned | None:
        """Its labels; None when nothing was launched."""
        wanted = self.wanted()
        if wanted is None:
            return None
        ended = self.observe().phase >= Phase.ENDED
        own = wanted["owner"]
        ids = (own["cluster_id"], own["job_uid"], own["index"], own["number"])
        return Owned(self.name, *ids, self.handle, ended)

    def remove(self) -> bool:
        """Remove it when nothing of it runs; False: something does."""
        if self.observe().phase < Phase.ENDED:
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        return True

    def output(self, stream: str, offset: int, most: int) -> bytes:
        """A piece of what it wrote."""
        try:
            with (self.path / stream).open("rb") as file:
                file.seek(offset)
                return file.read(most)
        except FileNotFoundError:
            return b""


def folders(directory: Path) -> Iterator[Folder]:
    """All that are there."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in sorted(directory.iterdir()):
        yield Folder(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return content
