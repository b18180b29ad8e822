"""Where a round's jobs run: how that is configured, what they write of themselves, what is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fault_oracle import Line, read_lines
from waiting import until
from wire import Wire

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.mock.ledger import Entry, read_ledger
from hatoba_scheduler.domain.naming import attempt_name, parse_attempt

REAP_AFTER = 1.0
"""Seconds after which what nobody wants is ended."""
DESK = {"desk": 1}
"""Of this a host has one, so that who wants it has to wait, or to take it."""
Options = dict[str, float | bool | str]


class Outside:
    """A backend's other side, beyond the reach of the servers that die. Open while a round goes on.

    The ones below differ in what they override; a round asks for nothing else.
    """

    instance = ""
    """Name of the backend in the configuration."""
    hosts = False
    """Whether a worker and its keeper stand beside the server."""
    witnessed = True
    """Whether every attempt writes when it starts and when it ends."""
    pace = 1.0
    """How much longer everything takes than with processes on this machine."""
    at_once = 100
    """Jobs under way, at most."""
    jobs_a_kill = 6
    breath = 15
    """Kills with no end of a job between them, after which one server is left to work."""
    drained = 0.2
    """Share of the cordons that drain: each takes away all that runs."""
    nudge = 3
    """Jobs that lead a server by a point that most jobs come by."""
    backoff = (20, 200)
    """Milliseconds before another attempt: at first, and at most."""
    modules: tuple[str, ...] = ()
    """What its servers import when they open it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.data = work / "data"
        self.environ: Mapping[str, str] = {}
        """What servers have in their environment beside the usual."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def configuration(self) -> str:
        """The server's `hatoba.toml`."""
        return self._backend(self.instance, self.instance)

    def _backend(self, name: str, kind: str, options: str = "") -> str:
        return (
            f'[defaults]\ntrain = "{name}"\n[backends.{name}]\ntype = "{kind}"\n'
            f"reap_after = {REAP_AFTER}\n[backends.{name}.options]\n{options}\n"
        )

    def worker(self) -> dict[str, Any]:
        """The embedded worker's settings."""
        return {"named": DESK}

    async def begin(self, wire: Wire) -> None:
        """Return when the first server can be given jobs."""

    def fill(
        self, spec: job_pb2.JobSpec, milliseconds: int, code: int, dice: random.Random
    ) -> None:
        """Say what an attempt does: to go on for so long, and end with this code."""
        raise NotImplementedError

    def make_odd(self, spec: job_pb2.JobSpec, dice: random.Random) -> None:
        """Have it leave a child behind, or its launch or its release go wrong."""

    def script(self, spec: job_pb2.JobSpec, options: Options) -> None:
        """What a backend that only plays it is to play; nothing where it is real."""

    def plant_orphan(self, dice: random.Random) -> None:
        """Put a run there that is ours and that nobody wants, while no server runs; blocks."""

    def lines(self) -> list[Line]:
        """What attempts wrote; blocks."""
        return read_lines(self.work / "ledger")

    def left(self) -> list[str]:
        """What is still there of all that was launched; blocks."""
        return []

    async def what_is_left(self, patience: float) -> list[str]:
        """The same once nothing is, or patience is over."""
        try:
            await until(lambda: not self.left(), patience)
        except TimeoutError:
            return await asyncio.to_thread(self.left)
        return []


class Processes(Outside):
    """`hosts`: processes on this machine, each a witness."""

    instance = "hosts"
    hosts = True

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self._locks = work / "locks"
        self._locks.mkdir()
        self._witness = witness(work)

    def fill(
        self, spec: job_pb2.JobSpec, milliseconds: int, code: int, dice: random.Random
    ) -> None:
        """See Outside."""
        del dice
        files = [str(self.work / "ledger"), str(self._locks)]
        spec.command.extend([*self._witness, *files, str(milliseconds), str(code)])

    def make_odd(self, spec: job_pb2.JobSpec, dice: random.Random) -> None:
        """See Outside."""
        del dice
        spec.command.append("hide")


class Played(Outside):
    """`null`: nothing runs, it is only said."""

    instance = "null"
    witnessed = False
    life = "delay"

    def fill(
        self, spec: job_pb2.JobSpec, milliseconds: int, code: int, dice: random.Random
    ) -> None:
        """See Outside."""
        del dice
        spec.command.append("true")
        self.script(spec, {self.life: milliseconds / 1000, "exit_code": code})

    def script(self, spec: job_pb2.JobSpec, options: Options) -> None:
        """See Outside."""
        told = spec.backend_options.fields[self.instance].struct_value
        told.update(options)


class Mock(Played):
    """`mock`: a platform that is played, with a ledger of its own."""

    instance = "mock"
    life = "run_for"

    @property
    def _ledger(self) -> Path:
        return self.data / "mock.ledger"

    def configuration(self) -> str:
        """See Outside."""
        return self._backend("mock", "mock", f'ledger = "{self._ledger}"')

    def make_odd(self, spec: job_pb2.JobSpec, dice: random.Random) -> None:
        """See Outside."""
        how: list[Options] = [
            {"launch_fault": "reply_lost"},
            {"launch_fault": "reply_doubled"},
            {"release_not_yet": 2},
        ]
        self.script(spec, dice.choice(how))

    def plant_orphan(self, dice: random.Random) -> None:
        """See Outside."""
        plant_orphan(self._ledger, dice)

    def lines(self) -> list[Line]:
        """See Outside."""
        return mock_lines(read_ledger(self._ledger))

    def left(self) -> list[str]:
        """See Outside."""
        return left_objects(read_ledger(self._ledger))


def witness(work: Path) -> list[str]:
    """The command of the witness: a program compiled once; without a compiler, a script."""
    here = Path(__file__).parent
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return [sys.executable, "-I", "-S", str(here / "witness.py")]
    program = work / "witness"
    static = [compiler, "-O1", "-static", "-o", str(program), str(here / "witness.c")]
    if subprocess.run(static, capture_output=True, check=False).returncode:
        subprocess.run([each for each in static if each != "-static"], check=True)
    return [str(program)]


def mock_lines(entries: list[Entry]) -> list[Line]:
    """The mock's own ledger in the witnesses' words."""
    words = {"start": "start", "end": "end", "delete": "end"}
    return [
        Line(words[entry.event], entry.name, entry.time, 0)
        for entry in entries
        if entry.event in words
    ]


def left_objects(entries: list[Entry]) -> list[str]:
    """What was created on the mock and never released."""
    released = {entry.name for entry in entries if entry.event == "release"}
    return [one.name for one in entries if one.event == "create" and one.name not in released]


def plant_orphan(ledger: Path, dice: random.Random) -> bool:
    """Give the mock, while nobody has its ledger open, a run that is ours and that nobody wants.

    False when nothing was ever launched there, by whose labels it could be made.
    """
    entries = [entry for entry in read_ledger(ledger) if entry.event == "create"]
    known = parse_attempt(entries[-1].name) if entries else None
    if known is None:
        return False
    uid = str(uuid.UUID(int=dice.getrandbits(128), version=4))
    owner = entries[-1].data["owner"]
    assert isinstance(owner, dict)
    line = {
        "event": "create",
        "name": attempt_name(known.epoch, uid, 0, 1),
        "time": time.time(),
        "owner": {**owner, "job_uid": uid, "index": 0, "number": 1},
        "script": {"run_for": 600.0},
        "timeout": 0.0,
        "hidden_until": 0.0,
    }
    os.truncate(ledger, ledger.read_bytes().rfind(b"\n") + 1)
    with ledger.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n")
    return True
