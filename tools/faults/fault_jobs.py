"""The jobs of a load: what each does, and which ends are right for it."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fault_oracle import Ask

from hatoba.v1 import job_pb2

SUCCEEDED = frozenset({"SUCCEEDED"})
FAILED = frozenset({"FAILED 3"})
GANG_TIMEOUT = 10.0
"""Seconds for a gang to have claimed: what a kill held up begins anew."""
Options = dict[str, float | bool | str]


@dataclass(frozen=True, slots=True)
class Wish:
    """A job of the load: which ends are right, and whether somebody will cancel it."""

    ask: Ask
    spec: job_pb2.JobSpec
    cancel_after: float | None = None


class Workload:
    """Gives job number N of a seed, always the same one."""

    def __init__(self, backend: str, seed: int, work: Path) -> None:
        self.backend = backend
        self._seed = seed
        self._ledger = work / "ledger"
        self._locks = work / "locks"
        self._locks.mkdir()
        self._witness = witness(work) if backend == "hosts" else []

    def wish(self, number: int) -> Wish:
        """Mostly one that succeeds; some fail, leave children behind, or are cancelled."""
        dice = random.Random(f"{self._seed}-{number}")
        fails = dice.random() < 0.05
        milliseconds = int(dice.choice([0, dice.uniform(0, 200), dice.uniform(0, 1500)]))
        spec = self._spec(milliseconds, 3 if fails else 0)
        if dice.random() < 0.05:
            self._make_odd(spec, dice)
        tasks, ends = 1, FAILED if fails else SUCCEEDED
        if not fails:
            tasks = self._multiply(spec, dice)
        if dice.random() < 0.03:
            spec.max_queue_time.FromMilliseconds(round(dice.uniform(50, 1500)))
            ends |= {"TIMED_OUT"}
        cancelled = dice.random() < 0.03
        if cancelled:
            ends |= {"CANCELLED"}
        after = dice.uniform(0, 1.0) if cancelled else None
        return Wish(Ask(number, ends, tasks), spec, after)

    def plain(self, number: int, milliseconds: int = 0, *ends: str) -> Wish:
        """One that succeeds after so long, or ends in one of these other ways."""
        return Wish(Ask(number, SUCCEEDED | set(ends)), self._spec(milliseconds, 0))

    def gang(self, number: int, size: int, seconds: float, *ends: str) -> Wish:
        """A gang that must have claimed within so many seconds."""
        spec = self._spec(50, 0)
        self._make_gang(spec, size, seconds)
        return Wish(Ask(number, SUCCEEDED | set(ends), size), spec)

    def _spec(self, milliseconds: int, code: int) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="fault", backend=self.backend)
        self._fill(spec, milliseconds, code)
        spec.retries.user = 0
        spec.retries.infrastructure = 1000
        spec.retries.preemption = 1000
        spec.retries.backoff.FromMilliseconds(20)
        spec.retries.max_backoff.FromMilliseconds(200)
        spec.stop_grace.FromMilliseconds(500)
        return spec

    def _fill(self, spec: job_pb2.JobSpec, milliseconds: int, code: int) -> None:
        if self.backend == "hosts":
            files = [str(self._ledger), str(self._locks)]
            spec.command.extend([*self._witness, *files, str(milliseconds), str(code)])
            return
        spec.command.append("true")
        life = "delay" if self.backend == "null" else "run_for"
        self.script(spec, {life: milliseconds / 1000, "exit_code": code})

    def script(self, spec: job_pb2.JobSpec, options: Options) -> None:
        """What a backend that only plays it is to play, beside what it is told already."""
        told = spec.backend_options.fields[self.backend].struct_value
        told.update(options)

    def _make_odd(self, spec: job_pb2.JobSpec, dice: random.Random) -> None:
        """It leaves a child behind, or its launch or its release goes wrong."""
        if self.backend == "hosts":
            spec.command.append("hide")
        elif self.backend == "mock":
            how: list[Options] = [
                {"launch_fault": "reply_lost"},
                {"launch_fault": "reply_doubled"},
                {"release_not_yet": 2},
            ]
            self.script(spec, dice.choice(how))

    def _multiply(self, spec: job_pb2.JobSpec, dice: random.Random) -> int:
        """Some are arrays, some are gangs; how many tasks it has."""
        kind = dice.random()
        size = dice.randint(2, 4)
        if kind < 0.03:
            spec.array.size = size
            spec.array.max_parallel = dice.randint(0, 2)
            return size
        if kind < 0.05 and self.backend == "hosts":
            self._make_gang(spec, size, GANG_TIMEOUT)
            return size
        return 1

    def _make_gang(self, spec: job_pb2.JobSpec, size: int, seconds: float) -> None:
        spec.replicas = size
        spec.gang.policy = job_pb2.GANG_POLICY_RESTART
        spec.gang.start_timeout.FromMilliseconds(round(seconds * 1000))


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
