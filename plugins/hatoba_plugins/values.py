"""What travels over the seam between core and backend: immutable values.

Times are seconds since 1970 on the core's clock; grace and waits are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, NamedTuple, get_origin, get_type_hints

from hatoba.v1 import common_pb2, device_pb2, job_pb2, worker_pb2
from hatoba_plugins.errors import BackendError


class Phase(IntEnum):
    """How far an attempt is, as its backend sees it; only ever grows."""

    EXISTS = 0
    """It is there; no more is known."""
    WAITING = 1
    """Accepted, no room yet."""
    STARTING = 2
    RUNNING = 3
    ENDED = 4
    """It ended, and `exit` says how."""
    GONE = 5
    """It is proven not to exist, and nobody knows how it ended."""


class ExitKind(Enum):
    """How a command ended."""

    EXITED = "exited"
    SIGNALED = "signaled"
    OUT_OF_MEMORY = "out_of_memory"
    RUN_TIMEOUT = "run_timeout"
    STOPPED = "stopped"
    PREEMPTED = "preempted"
    LOST = "lost"
    IMAGE_MISSING = "image_missing"
    IMAGE_DENIED = "image_denied"
    IMAGE_ARCHITECTURE = "image_architecture"
    IMAGE_UNREACHABLE = "image_unreachable"
    """Its image could not be pulled, which may pass."""
    DEVICE_FAULT = "device_fault"
    """A device of its host failed (a GPU), so that it could not begin."""
    FAILED = "failed"
    """The backend could not run it; `message` says why."""
    NOT_FOUND = "not_found"
    """Its image has no such command."""
    NOT_EXECUTABLE = "not_executable"
    SECRET_MISSING = "secret_missing"
    """The platform has no secret of that name, or may not read it."""


class Exit(NamedTuple):
    """An ending: `code` with EXITED, `signal` with SIGNALED."""

    kind: ExitKind
    code: int = 0
    signal: int = 0
    message: str = ""
    spot: bool = False
    """With PREEMPTED: the platform says that it took spot capacity back."""


class Share(NamedTuple):
    """An amount of what tasks use: cores, bytes, whole GPUs, slots."""

    cpus: float = 0.0
    memory: int = 0
    gpus: int = 0
    slots: int = 0
    named: tuple[tuple[str, int], ...] = ()
    """Countable things of any name, sorted by it."""

    @classmethod
    def of(cls, needs: common_pb2.Resources) -> Share:
        """What a task or replica with these needs takes: a slot when it states none."""
        named = tuple(sorted(needs.named.items())) if needs.named else ()
        stated = cls(needs.cpus, needs.memory_bytes, needs.gpus, 0, named)
        return stated if any(stated) else cls(slots=1)


class Handle(NamedTuple):
    """What a backend needs to find an attempt again: kept by the core, opaque to it.

    `version` lets a newer plug-in read what an older one wrote.
    """

    version: int
    data: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the planner put it: a pool's name (empty: any) and exclusive GPU ids.

    `memory` is in bytes: what the job asks for, or what a retry rule made of it.
    """

    pool: str = ""
    gpus: tuple[str, ...] = ()
    memory: int = 0


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One attempt to launch; the same values each time it is asked for.

    `name` is unique for ever and at most 63 characters of `[a-z0-9-]`. `spec.command` has its
    parameters filled in. `labels` must be put on the external object where there is one.
    """

    name: str
    fence: int
    job: str
    job_uid: str
    index: int
    number: int
    task_count: int
    spec: job_pb2.JobSpec
    placement: Placement
    traceparent: str
    labels: tuple[tuple[str, str], ...] = ()
    gang_size: int = 0
    """Members of its gang, launched in one group, each claim waiting for all; 0: it is none."""
    generation: int = 0
    stop_after: float = 0.0
    """Its runner ends it after so many seconds without the server; 0: never."""
    credential: str = field(default="", repr=False)
    """With it a runner that is no host's may claim this attempt, and nothing else."""
    spot_losses: int = 0
    """How often its task lost spot capacity under earlier attempts."""


class GroupKind(Enum):
    """What the members of a launch are to each other."""

    SINGLE = "single"
    GANG = "gang"
    ARRAY = "array"


@dataclass(frozen=True, slots=True)
class LaunchGroup:
    """Attempts to launch in one call. SINGLE members have nothing to do with each other."""

    kind: GroupKind
    members: tuple[LaunchRequest, ...]


@dataclass(frozen=True, slots=True)
class Observation:
    """What the backend sees of one attempt. `exists`: something of it still holds resources."""

    name: str
    phase: Phase
    exists: bool
    exit: Exit | None = None
    host: str = ""
    reachable: bool = True
    """False: it cannot be reached now; says nothing about how it is."""
    runner_gone: bool = False
    """With ENDED: its runner is proven gone as well, so that no commit of it will come."""
    run: str = ""
    """Which of the platform's runs of it this is about, as its runner knows it (`hatoba.runs`)."""
    unfenced: bool = False
    """No runner of ours is in it, though the instance has one: what is seen is all there is."""
    ending: Exit | None = None
    """Of what is being ended from outside: as what that will count. A platform may keep the end of
    a container to itself until the runner beside it has ended too; that runner, which sees that
    nothing runs any more, is told this."""


@dataclass(frozen=True, slots=True)
class Launched:
    """It exists; `phase` when the backend already knows, or all that it sees of it already."""

    name: str
    handle: Handle
    phase: Phase | None = None
    seen: Observation | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing happened for this member, because of `error`."""

    name: str
    error: BackendError


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Perhaps it exists: the core asks `find` until it knows."""

    name: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Ref:
    """An attempt the core speaks of: by handle when it has one, else by name."""

    name: str
    fence: int
    handle: Handle | None
    pool: str = ""
    mark: str = ""
    """Mark (`hatoba.runs`) of the run that holds the claim, where its runner knows its run. Of
    several runs of the name this one is spoken of; where it is surely gone, that is GONE."""


@dataclass(frozen=True, slots=True)
class Found:
    """It exists, or existed and ended."""

    name: str
    handle: Handle
    phase: Phase | None = None


@dataclass(frozen=True, slots=True)
class Absent:
    """It does not exist, and no call under way can still make it exist."""

    name: str


@dataclass(frozen=True, slots=True)
class Unsure:
    """Not known yet; ask again after so many seconds."""

    name: str
    after: float


@dataclass(frozen=True, slots=True)
class Pool:
    """A place with room of its own: a host, a node group, a compute environment."""

    name: str
    total: Share
    gpu_ids: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    accepting: bool = True
    """False: cordoned or not connected; what runs there counts on."""
    embedded: bool = False
    """The submitter's own interpreter is there, or does not matter."""
    secrets: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class CapacitySnapshot:
    """All pools as of now, before what the core itself has placed is subtracted.

    `elastic`: the backend takes more than it has room for and lets it wait.
    """

    pools: tuple[Pool, ...]
    elastic: bool
    as_of: float


@dataclass(frozen=True, slots=True)
class Synced:
    """The watch has told everything that was so when it began."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Something may have been missed (of one pool, or of all): the core observes anew."""

    pool: str = ""


@dataclass(frozen=True, slots=True)
class StopResult:
    """A stop was taken note of; `known` False: nothing of it was there, nor ever will be."""

    name: str
    known: bool


@dataclass(frozen=True, slots=True)
class Released:
    """Nothing of it holds resources any more."""

    name: str


@dataclass(frozen=True, slots=True)
class NotYet:
    """Something still does; ask again after so many seconds."""

    name: str
    after: float


@dataclass(frozen=True, slots=True)
class Owned:
    """An external object that carries our labels."""

    name: str
    cluster_id: str
    job_uid: str
    index: int
    number: int
    handle: Handle
    ended: bool
    pool: str = ""
    """Where it is, as in its placement; empty: not known."""
    gpus: tuple[str, ...] = ()
    """GPUs that it was given there, as far as that is known."""
    nonce: str = ""
    """What its runner claimed it with; empty: not known, or not claimed."""


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a log that the backend itself keeps."""

    attempt: str
    stream: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Rate:
    """How often an operation may be called."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this instance can. Asking for what it lacks is refused at submit, with its name."""

    runner: str = "none"
    """Where our runner stands: `host`, `pod`, `image` or `none` (not fenced)."""
    gpus: bool = False
    images: bool = False
    requirements: bool = False
    caller_interpreter: bool = False
    secrets: bool = False
    memory_limit: bool = False
    inputs: bool = False
    native_arrays: bool = False
    gangs: bool = False
    logs: bool = False
    attach: bool = False
    """Its job role is an `AttachBackend` too."""
    pretends: bool = False
    """It only acts as if it ran something: jobs come here only when they name it."""
    deployments: bool = False
    """It has a DeploymentBackend."""
    canary: bool = False
    """Targets may have several revisions with shares of the traffic."""
    replica_logs: bool = False
    """It tells what replicas wrote."""
    find_settles_after: float = 0.0
    """Seconds after which a launch that cannot be found certainly did not happen."""
    limits: tuple[tuple[str, Rate], ...] = ()
    of_jobs: Capabilities | None = None
    """What its jobs can, where that is not what its deployments can."""

    @property
    def for_jobs(self) -> Capabilities:
        """What its jobs can."""
        return self.of_jobs or self


@dataclass(frozen=True, slots=True)
class RevisionTarget:
    """So many replicas of one revision, with a share of the traffic in percent.

    `template` is what each of its replicas is made from; `name` and `gpus` in it are empty.
    """

    revision: int
    replicas: int
    weight: int
    template: worker_pb2.ReplicaSpec
    credential: str = field(default="", repr=False)
    """With it a replica that is no host's may read this revision's files, and nothing else."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a deployment shall be. Generations only grow, also for a change of weight or scale and
    for a roll-back. Replicas of revisions that it does not name are to be replaced, never more than
    `max_unavailable` below the wanted number of ready ones and `max_surge` above it in all.
    """

    deployment: str
    """Resource name."""
    uid: str
    """32 hex digits; part of every external name."""
    generation: int
    revisions: tuple[RevisionTarget, ...]
    max_unavailable: int = 0
    max_surge: int = 1

    @property
    def wanted(self) -> int:
        """Replicas of all revisions together."""
        return sum(one.replicas for one in self.revisions)


class ReplicaPhase(Enum):
    """Where a replica stands."""

    PENDING = "pending"
    """Wanted; not heard of yet."""
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    """Ended, or not ready any more; it is started again by itself."""
    DRAINING = "draining"
    """Retired: it finishes what it has."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as its backend sees it. `cause` tells why it is UNHEALTHY, or how it ended last,
    with its last log lines.
    """

    name: str
    revision: int
    phase: ReplicaPhase
    host: str = ""
    address: str = ""
    """`HOST:PORT` where it answers, with READY."""
    restarts: int = 0
    since: float = 0.0
    cause: common_pb2.Cause | None = None
    server_name: str = ""
    """Name in the certificate that it shows there; empty: it answers in plain text."""
    evicted: bool = False
    """What it runs on is to be emptied: another takes its place, then it leaves."""
    gpus: tuple[str, ...] = ()
    """Ids of the GPUs that are its own, where its backend knows them."""


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """All that a backend has of one deployment now, each time whole.

    `generation` is the newest target it works on. `leaving` names replicas that it would end: they
    may still be ready, and it waits until the core retires them. `routed_by` is `us` or `native`.
    `problem` says why it cannot have what is wanted, for example that no host has room.
    """

    uid: str
    generation: int
    replicas: tuple[ReplicaView, ...]
    leaving: frozenset[str] = frozenset()
    routed_by: str = "us"
    problem: common_pb2.Cause | None = None

    def ready(self, revision: int) -> tuple[ReplicaView, ...]:
        """Ready replicas of a revision that are to stay or have not been let go yet."""
        return tuple(
            one
            for one in self.replicas
            if one.revision == revision and one.phase is ReplicaPhase.READY
        )


@dataclass(frozen=True, slots=True)
class OwnedDeployment:
    """Something of a deployment that carries our labels."""

    uid: str
    cluster_id: str
    generation: int
    handle: Handle


class HealthStatus(Enum):
    """How a backend is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True, slots=True)
class Health:
    """How a backend is, and why, in words."""

    status: HealthStatus
    message: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a specification that this backend cannot do: field path, value, remedy."""

    field: str
    message: str


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """Base of every backend's options. Subclasses are frozen dataclasses with defaults."""

    @classmethod
    def check(cls, options: dict[str, object]) -> list[Problem]:
        """Problems of these options as read from a file; none when they are good.

        Unknown names and values of another type; a subclass adds what else it asks of them.
        """
        types = get_type_hints(cls)
        return [
            Problem(name, problem)
            for name, value in options.items()
            if (problem := _option_problem(name, value, types))
        ]


def _option_problem(name: str, value: object, types: dict[str, Any]) -> str:
    if name not in types:
        return f"unknown option {name!r}; known are {', '.join(sorted(types)) or 'none'}"
    wanted = get_origin(types[name]) or types[name]
    accepted = int | float if wanted is float else wanted
    # True is an int to Python, and never what somebody meant by one.
    if isinstance(value, accepted) and isinstance(value, bool) == (wanted is bool):
        return ""
    return f"must be {wanted.__name__}, not {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class DeviceWish:
    """What is wanted of one device; generations only grow."""

    device: str
    desired: device_pb2.DeviceDesired


@dataclass(frozen=True, slots=True)
class Accepted:
    """It is on its way: the device gets it, or something newer, without being asked for again."""

    device: str


@dataclass(frozen=True, slots=True)
class Superseded:
    """The device was wished something newer before; `generation` is the newest that is known."""

    device: str
    generation: int


@dataclass(frozen=True, slots=True)
class Away:
    """It cannot be reached now, and nothing keeps it for the device: it is to be wished again once
    the device comes."""

    device: str


@dataclass(frozen=True, slots=True)
class RefusedWish:
    """Nothing happened."""

    device: str
    error: BackendError


@dataclass(frozen=True, slots=True)
class DeviceCame:
    """A device is there; what it said of itself, and how it reaches us (`grpc`, `aws-iot`).

    `vouched`: somebody other than the core has made it a device of ours, as who may provision at
    AWS IoT; the core takes it in where it does not know it.
    """

    device: str
    hello: device_pb2.DeviceHello
    transport: str
    vouched: bool = False


@dataclass(frozen=True, slots=True)
class DeviceWent:
    """A device is away. Nothing follows from it: what it runs, it runs."""

    device: str


@dataclass(frozen=True, slots=True)
class DeviceTold:
    """How a device is, whole."""

    device: str
    report: device_pb2.DeviceReport


@dataclass(frozen=True, slots=True)
class DeviceKept:
    """Records that a device kept, in order, of which it has not heard yet that they are stored."""

    device: str
    records: device_pb2.DeviceRecords


WishOutcome = Accepted | Superseded | Away | RefusedWish
DeviceNews = DeviceCame | DeviceWent | DeviceTold | Synced | Gap
DeploymentItem = ReplicaSet | Synced | Gap
WatchItem = Observation | CapacitySnapshot | Synced | Gap
LaunchOutcome = Launched | Refused | Ambiguous
FindOutcome = Found | Absent | Unsure
ReleaseOutcome = Released | NotYet
