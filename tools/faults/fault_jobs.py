"""The jobs of a load: what each does, and which ends are right for it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fault_oracle import Ask
from fault_outside import Outside

from hatoba.v1 import job_pb2

SUCCEEDED = frozenset({"SUCCEEDED"})
FAILED = frozenset({"FAILED 3"})
GANG_TIMEOUT = 10.0
"""Seconds for a gang to have claimed: what a kill held up begins anew."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A job of the load: which ends are right, and whether somebody will cancel it."""

    ask: Ask
    spec: job_pb2.JobSpec
    cancel_after: float | None = None


class Workload:
    """Gives job number N of a seed, always the same one."""

    def __init__(self, outside: Outside, seed: int) -> None:
        self.outside = outside
        self._seed = seed

    def wish(self, number: int) -> Wish:
        """Mostly one that succeeds; some fail, leave children behind, or are cancelled."""
        dice = random.Random(f"{self._seed}-{number}")
        fails = dice.random() < 0.05
        milliseconds = int(dice.choice([0, dice.uniform(0, 200), dice.uniform(0, 1500)]))
        spec = self._spec(milliseconds, 3 if fails else 0, number)
        if dice.random() < 0.05:
            self.outside.make_odd(spec, dice)
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
        return Wish(Ask(number, SUCCEEDED | set(ends)), self._spec(milliseconds, 0, number))

    def gang(self, number: int, size: int, seconds: float, *ends: str) -> Wish:
        """A gang that must have claimed within so many seconds."""
        spec = self._spec(50, 0, number)
        self._make_gang(spec, size, seconds)
        return Wish(Ask(number, SUCCEEDED | set(ends), size), spec)

    def _spec(self, milliseconds: int, code: int, number: int) -> job_pb2.JobSpec:
        spec = job_pb2.JobSpec(name="fault", backend=self.outside.instance)
        self.outside.fill(spec, milliseconds, code, random.Random(f"{self._seed}-how-{number}"))
        spec.retries.user = 0
        spec.retries.infrastructure = 1000
        spec.retries.preemption = 1000
        first, most = self.outside.backoff
        spec.retries.backoff.FromMilliseconds(first)
        spec.retries.max_backoff.FromMilliseconds(most)
        spec.stop_grace.FromMilliseconds(500)
        return spec

    def _multiply(self, spec: job_pb2.JobSpec, dice: random.Random) -> int:
        """Some are arrays, some are gangs; how many tasks it has."""
        kind = dice.random()
        size = dice.randint(2, 4)
        if kind < 0.03:
            spec.array.size = size
            spec.array.max_parallel = dice.randint(0, 2)
            return size
        if kind < 0.05 and self.outside.hosts:
            self._make_gang(spec, size, GANG_TIMEOUT)
            return size
        return 1

    def _make_gang(self, spec: job_pb2.JobSpec, size: int, seconds: float) -> None:
        spec.replicas = size
        spec.gang.policy = job_pb2.GANG_POLICY_RESTART
        spec.gang.start_timeout.FromMilliseconds(round(seconds * 1000))
