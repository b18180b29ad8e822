"""What is configured of one instance: clusters, where tasks run, and who runs them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field

from hatoba_plugins.aws import AwsOptions
from hatoba_plugins.checks import out_of_range
from hatoba_plugins.values import Problem

NETWORKS = ("awsvpc", "bridge")
RUNNERS = ("image", "none")
READINESS = ("ecs", "probe")
EXCHANGES = ("refuse", "stop_first")
ARCHITECTURES = ("", "amd64", "arm64")
LAUNCH_TYPES = ("", "EC2", "FARGATE")
_CLUSTER = re.compile(r"[A-Za-z0-9_-]{1,255}")


@dataclass(frozen=True, slots=True)
class EcsOptions(AwsOptions):
    """CPU and GPU work go to clusters of their own; both exist, nothing is made here."""

    cluster: str = "default"
    """Name of the cluster of what needs no GPU; a pool to the planner."""
    gpu_cluster: str = ""
    """Name of the cluster of what needs GPUs, another pool; without one there are none here."""
    capacity_provider: str = ""
    """Capacity provider in `cluster`; without one the cluster's own default strategy."""
    gpu_capacity_provider: str = ""
    """Capacity provider in `gpu_cluster`."""
    launch_type: str = ""
    """`EC2` or `FARGATE` in place of capacity providers. Fargate has no GPUs and fixed sizes: the
    next larger one is taken."""
    architecture: str = ""
    """`amd64` or `arm64`: of what runs in `cluster`. Without it tasks name none, and Fargate's are
    `amd64`."""
    gpu_architecture: str = ""
    """Of what runs in `gpu_cluster`, likewise."""
    network: str = "awsvpc"
    """`awsvpc`: each task has an address of its own. `bridge`: replicas answer at ports of their
    instance."""
    subnets: list[str] = field(default_factory=list)
    """Of tasks in `awsvpc`."""
    security_groups: list[str] = field(default_factory=list)
    """Of tasks in `awsvpc`."""
    public_address: bool = False
    """Tasks get public addresses, as Fargate in public subnets needs them to pull images."""
    execution_role: str = ""
    """ARN: pulls images, reads secrets, writes logs."""
    task_role: str = ""
    """ARN: what the containers themselves may do."""
    image: str = ""
    """Image of jobs and models that name none."""
    runner: str = "image"
    """`image`: jobs begin with `hatoba-entrypoint`. `none`: for images without it; jobs are then
    not fenced, bring nothing in or out, and their logs are read from `log_group`."""
    secrets_prefix: str = ""
    """ARN in SSM or Secrets Manager that goes before a secret's name in `valueFrom`."""
    secrets: list[str] = field(default_factory=list)
    """Names of the secrets that are there."""
    log_group: str = ""
    """CloudWatch log group, which is there, that containers write to. Logs of replicas, and with
    `runner = "none"` of jobs, are read from it; without one there are none."""
    max_cpus: float = 256.0
    """Most vCPUs that the planner has here at a time, in each cluster; what exceeds the room waits
    on ECS."""
    max_memory: int = 2**40
    """Most bytes of memory, likewise."""
    max_gpus: int = 8
    """Most GPUs, likewise."""
    find_settles_after: float = 10.0
    """Seconds after which a task that cannot be seen was not started."""
    poll_every: float = 2.0
    """Seconds between two looks at what changes; what is settled is looked at five times less."""
    readiness: str = "ecs"
    """`ecs`: by the container's health check (`python3` in the image). `probe`: this server asks
    `/readyz` itself, and has to reach the tasks. What was ready is not any more after three looks
    in a row and three seconds without an answer."""
    gpu_exchange: str = "refuse"
    """Without a free GPU for the new replica: `refuse`, or `stop_first` an old one."""
    progress_deadline: float = 900.0
    """Seconds without progress after which a revision's trouble is told."""
    listener: str = ""
    """ARN of a load balancer's listener: it routes then, and not our router."""
    vpc: str = ""
    """VPC of the listener's target groups."""
    host_suffix: str = ""
    """A deployment answers at the listener under `NAME` + this suffix."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options."""
        known = super(EcsOptions, cls).check(options)
        return known or [
            *_one_of(options, "network", NETWORKS),
            *_one_of(options, "runner", RUNNERS),
            *_one_of(options, "readiness", READINESS),
            *_one_of(options, "gpu_exchange", EXCHANGES),
            *_one_of(options, "launch_type", LAUNCH_TYPES),
            *_one_of(options, "architecture", ARCHITECTURES),
            *_one_of(options, "gpu_architecture", ARCHITECTURES),
            *_clusters(options),
            *_together(options),
            *out_of_range(options, "max_cpus", 0, 1e6),
            *out_of_range(options, "max_memory", 0, 2**60),
            *out_of_range(options, "max_gpus", 0, 1024),
            *out_of_range(options, "find_settles_after", 0.0, 600.0),
            *out_of_range(options, "poll_every", 0.05, 300.0),
            *out_of_range(options, "progress_deadline", 10.0, 86_400.0),
        ]

    def cluster_for(self, gpus: int) -> str:
        """The cluster of what needs so many GPUs."""
        return self.gpu_cluster if gpus and self.gpu_cluster else self.cluster

    def provider_for(self, gpus: int) -> str:
        """Its capacity provider; empty: the cluster's default."""
        return self.gpu_capacity_provider if gpus else self.capacity_provider

    def architecture_for(self, gpus: int) -> str:
        """The one that is named for what needs so many GPUs; empty: none is."""
        return self.gpu_architecture if gpus and self.gpu_cluster else self.architecture

    @property
    def clusters(self) -> tuple[str, ...]:
        """All clusters, each once."""
        return tuple(dict.fromkeys(c for c in (self.cluster, self.gpu_cluster) if c))


def _one_of(options: dict[str, object], name: str, known: Collection[object]) -> list[Problem]:
    value = options.get(name)
    if value is None or value in known:
        return []
    return [Problem(name, f"{value!r} is none of {', '.join(repr(one) for one in known)}")]


def _clusters(options: dict[str, object]) -> list[Problem]:
    return [
        Problem(name, f"{options[name]!r} is no cluster's name; give the name, not the ARN")
        for name in ("cluster", "gpu_cluster")
        if options.get(name) and not _CLUSTER.fullmatch(str(options[name]))
    ]


def _together(options: dict[str, object]) -> list[Problem]:
    problems = []
    fargate = options.get("launch_type") == "FARGATE"
    if options.get("launch_type") and options.get("capacity_provider"):
        problems.append(Problem("launch_type", "leave it out, or leave `capacity_provider` out"))
    if fargate and options.get("gpu_cluster"):
        problems.append(Problem("gpu_cluster", "Fargate has no GPUs; use instances for them"))
    if fargate and options.get("network") == "bridge":
        problems.append(Problem("network", "Fargate knows `awsvpc` alone"))
    if options.get("listener") and options.get("network") == "bridge":
        problems.append(Problem("listener", "its targets are tasks' own addresses: use `awsvpc`"))
    if options.get("listener") and not options.get("vpc"):
        problems.append(Problem("vpc", "a listener's target groups need their VPC"))
    return problems
