"""What is configured of an instance: the queues it submits to, and what its jobs are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hatoba_plugins.aws import AwsOptions
from hatoba_plugins.checks import out_of_range
from hatoba_plugins.values import Problem

RUNNERS = ("image", "none")


@dataclass(frozen=True, slots=True)
class Queue:
    """A job queue, shown to the planner as a pool of the same `name`."""

    name: str
    queue: str
    """Its name or ARN at AWS."""
    spot: bool = True
    gpus: int = 0
    """GPUs of its largest instance."""
    cpus: float = 0.0
    """All its vCPUs; 0: as many as its compute environments may have."""
    memory: int = 0
    """Bytes of its largest instance; 0: not known, so nothing is too large."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchOptions(AwsOptions):
    """One account and region, and in it the queues that jobs may go to."""

    queues: dict[str, Any] = field(default_factory=dict)
    """By the name of the pool that the planner sees: a table with `queue`, the name or ARN of a job
    queue, and, where they differ, `spot` (true), `gpus` and `memory` of its largest instance, all
    its `cpus`, `labels`."""
    image: str = ""
    """For jobs that name none."""
    runner: str = "image"
    """`image`: our runner is in every image. `none`: it is not; jobs are then not fenced, bring
    nothing in or out, and their logs are read from CloudWatch."""
    job_role: str = ""
    """ARN of the role that the user's code has."""
    execution_role: str = ""
    """ARN of the role that reads secrets for containers."""
    secrets_prefix: str = ""
    """What goes before a secret's name: `/hatoba/` of Parameter Store, or an ARN's beginning."""
    secrets: list[str] = field(default_factory=list)
    """Names of the secrets that are there."""
    vcpus: float = 1.0
    """For jobs that state no cores."""
    memory_mib: int = 2048
    """For jobs that state no memory."""
    term_seconds: int = 30
    """What instances leave a container between SIGTERM and SIGKILL: ECS_CONTAINER_STOP_TIMEOUT."""
    on_demand_after: int = 2
    """Losses of spot capacity after which a job that only prefers it goes to a queue without."""
    sweep_every: float = 10.0
    """Seconds between two looks at everything that is active."""
    settles_after: float = 60.0
    """Seconds after which a submit that cannot be found did not happen."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        known = super(BatchOptions, cls).check(options)
        if known:
            return known
        runner = options.get("runner", "image")
        if options.get("secrets") and not options.get("secrets_prefix"):
            return [Problem("secrets_prefix", "say where the `secrets` are, for example /hatoba/")]
        return [
            *_queue_problems(options.get("queues", {})),
            *out_of_range(options, "vcpus", 0.25, 4096),
            *out_of_range(options, "memory_mib", 4, 2**27),
            *out_of_range(options, "term_seconds", 2, 3_600),
            *out_of_range(options, "on_demand_after", 1, 1_000),
            *out_of_range(options, "sweep_every", 0.1, 3_600),
            *out_of_range(options, "settles_after", 0.0, 3_600),
            *([] if runner in RUNNERS else [Problem("runner", _none_of(runner, RUNNERS))]),
        ]

    def pools(self) -> tuple[Queue, ...]:
        """The queues, by name. ValueError for what `check` would have told."""
        return tuple(_queue(name, told) for name, told in sorted(self.queues.items()))


_TYPES: dict[str, tuple[type, ...]] = {
    "queue": (str,),
    "spot": (bool,),
    "gpus": (int,),
    "cpus": (int, float),
    "memory": (int,),
    "labels": (dict,),
}


def _queue_problems(queues: object) -> list[Problem]:
    if not isinstance(queues, dict) or not queues:
        return [Problem("queues", "name at least one: [backends.NAME.options.queues.spot]")]
    problems = []
    for name, told in queues.items():
        try:
            _queue(str(name), told)
        except ValueError as error:
            problems.append(Problem(f"queues.{name}", str(error)))
    return problems


def _queue(name: str, told: object) -> Queue:
    if not isinstance(told, dict):
        raise ValueError("must be a table with `queue`")
    for key, value in told.items():
        _require(key, value)
    if not told.get("queue"):
        raise ValueError("`queue` is missing: the name or ARN of a job queue")
    if any(told.get(key, 0) < 0 for key in ("gpus", "cpus", "memory")):
        raise ValueError("amounts are no less than 0")
    return Queue(name, **told)


def _require(key: object, value: object) -> None:
    if key not in _TYPES:
        raise ValueError(f"unknown {key!r}; known are {', '.join(sorted(_TYPES))}")
    wanted = _TYPES[str(key)]
    # True is an int to Python, and never what somebody meant by one.
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ValueError(f"`{key}` must be {wanted[0].__name__}, not {type(value).__name__}")


def _none_of(value: object, known: tuple[str, ...]) -> str:
    return f"{value!r} is none of {', '.join(known)}"
