"""What is remembered: immutable records, one per row.

Times are whole microseconds since 1970 (`Micros`), 0 where they have not happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hatoba_scheduler.domain.changing import quick
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.states import (
    STATE_COUNT,
    AttemptState,
    CauseCode,
    Desired,
    GangPolicy,
    JobState,
    Operator,
    Origin,
    Release,
    RetryAction,
    Spot,
    Strategy,
)

if TYPE_CHECKING:
    from hatoba_scheduler.domain.models import ModelVersion

Micros = int
Counts = tuple[int, ...]
"""Tasks per state, indexed by the state's number; `STATE_COUNT` long."""


def no_counts() -> Counts:
    """Counts of nothing."""
    return (0,) * STATE_COUNT


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something ended or waits; `message` is one sentence with its figure."""

    code: CauseCode
    origin: Origin
    message: str
    retryable: bool
    exit_code: int | None = None
    signal: int | None = None
    evidence: tuple[tuple[str, str], ...] = ()
    last_log_lines: tuple[str, ...] = ()


class Resources(NamedTuple):
    """What one task needs or a host has: cores, bytes, whole GPUs, slots, named things by name."""

    cpus: float = 0.0
    memory: int = 0
    gpus: int = 0
    slots: int = 0
    named: tuple[tuple[str, int], ...] = ()
    """Sorted by name; none is 0."""

    @property
    def stated(self) -> bool:
        """True when a share was asked for; a task that states nothing takes a slot instead."""
        return bool(self.cpus or self.memory or self.gpus or self.named)

    def plus(self, other: Resources) -> Resources:
        """Both together."""
        return Resources(
            self.cpus + other.cpus,
            self.memory + other.memory,
            self.gpus + other.gpus,
            self.slots + other.slots,
            _added(self.named, other.named, 1) if other.named else self.named,
        )

    def minus(self, other: Resources) -> Resources:
        """What is left of this without the other, never below nothing."""
        return Resources(
            max(0.0, self.cpus - other.cpus),
            max(0, self.memory - other.memory),
            max(0, self.gpus - other.gpus),
            max(0, self.slots - other.slots),
            _added(self.named, other.named, -1) if other.named else self.named,
        )

    def within(self, other: Resources) -> bool:
        """Whether this is no more than the other."""
        return (
            self.cpus <= other.cpus + 1e-9
            and self.memory <= other.memory
            and self.gpus <= other.gpus
            and self.slots <= other.slots
            and (not self.named or _named_within(self.named, other.named))
        )

    def times(self, count: int) -> Resources:
        """So many of these."""
        named = tuple((name, amount * count) for name, amount in self.named)
        return Resources(
            self.cpus * count, self.memory * count, self.gpus * count, self.slots * count, named
        )


def _added(
    one: tuple[tuple[str, int], ...], other: tuple[tuple[str, int], ...], sign: int
) -> tuple[tuple[str, int], ...]:
    amounts = dict(one)
    for name, amount in other:
        amounts[name] = max(0, amounts.get(name, 0) + sign * amount)
    return tuple(sorted((name, amount) for name, amount in amounts.items() if amount))


def _named_within(one: tuple[tuple[str, int], ...], other: tuple[tuple[str, int], ...]) -> bool:
    have = dict(other)
    return all(amount <= have.get(name, 0) for name, amount in one)


@dataclass(frozen=True, slots=True)
class ManifestRef:
    """A stored file tree: `sha256:` digest, bytes and files in it."""

    digest: str
    total_bytes: int = 0
    files: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete saved state of a task, taken by `attempt` at the user's `step`."""

    step: int
    attempt: int
    manifest: ManifestRef
    metrics: tuple[tuple[str, float], ...] = ()
    create_time: Micros = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Highest use seen of an attempt; GPU use from 0 to 1."""

    cpu_seconds: float = 0.0
    memory_peak_bytes: int = 0
    gpu_peak: float = 0.0
    memory_limit_by: str = ""
    image: str = ""
    """By digest; empty: it ran in none."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task says it is; `total` 0 when it does not know."""

    done: float
    total: float
    message: str
    time: Micros


class RetryMutation(NamedTuple):
    """What a rule changes for the next attempt; zero values change nothing."""

    memory_factor: float = 0.0
    memory_max: int = 0
    other_host: bool = False
    on_demand_after: int = 0


class RetryRule(NamedTuple):
    """Speaks of endings for which all its conditions hold; an empty condition holds always."""

    causes: tuple[CauseCode, ...] = ()
    origins: tuple[Origin, ...] = ()
    exit_codes: tuple[int, ...] = ()
    action: RetryAction = RetryAction.RETRY
    limit: int | None = None
    mutate: RetryMutation = RetryMutation()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries per origin and the back-off between them, in seconds; rules go before budgets."""

    user: int = 0
    infrastructure: int = 3
    preemption: int = 10
    backoff: float = 1.0
    max_backoff: float = 60.0
    rules: tuple[RetryRule, ...] = ()


class LabelRequirement(NamedTuple):
    """What a host's label must be."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()


class Placement(NamedTuple):
    """Where tasks may go; the selectors `KEY=VALUE` are labels of jobs, as pairs."""

    require: tuple[LabelRequirement, ...] = ()
    prefer: tuple[LabelRequirement, ...] = ()
    strategy: Strategy = Strategy.SPREAD
    apart_from: tuple[tuple[str, str], ...] = ()
    near: tuple[tuple[str, str], ...] = ()
    apart: bool = False


ANYWHERE = Placement()


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed about a job at its submit beyond the ordinary; seconds, 0 for none.

    A gang's members are its tasks: `Job.size` is their number.
    """

    gang: bool = False
    gang_policy: GangPolicy = GangPolicy.FAIL
    gang_timeout: float = 600.0
    """Seconds within which all members must have claimed."""
    placement: Placement = ANYWHERE
    start_after: Micros = 0
    deadline: Micros = 0
    max_queue_time: float = 0.0
    timeout: float = 0.0
    """Longest run of one attempt."""
    stop_after: float = 0.0
    lost_after: float = 0.0
    never_preempt: bool = False
    max_preemptions: int = 10
    preempt_grace: float = -1.0
    """Time to save a checkpoint before the stop; below 0: the job's stop grace."""
    spot: Spot = Spot.ALLOW
    backends: tuple[str, ...] = ()
    """Backends it may run on, cheapest first, when the user named none and several can run it."""
    inherited: Ranges = Ranges()
    """Of a rerun of failed tasks: those that count as they ended in the job it repeats."""
    devices: tuple[str, ...] = ()
    """By task: the device on which alone it runs. Empty: it is a job for no devices."""


PLAIN = Terms()


@dataclass(frozen=True, slots=True)
class Adapted:
    """What retries have changed for a task's next attempt, and what they counted."""

    memory: int = 0
    """Bytes it asks for now; 0: what the job says."""
    avoid: tuple[str, ...] = ()
    """Hosts it avoids while there are others."""
    on_demand: bool = False
    spot_losses: int = 0
    rule_uses: tuple[int, ...] = ()
    """Retries by each rule of the policy, in its order; shorter means none by the rest."""
    preempted: int = 0
    """How often others took its place, in its whole life."""


AS_ASKED = Adapted()


@quick
@dataclass(frozen=True, slots=True)
class Job:
    """A job's row. `unstarted` tasks have no row of their own and share `unstarted_state`."""

    uid: str
    project: str
    name: str
    """NAME-N; empty until the store has numbered it."""
    queue: str
    backend: str
    priority: int
    size: int
    max_parallel: int
    fail_fast: bool
    resources: Resources
    retries: RetryPolicy
    state: JobState
    desired: Desired
    version: int
    settings_version: int
    """Grows with what UpdateJob changes; the etag is made of it."""
    unstarted: Ranges
    unstarted_state: JobState
    counts: Counts
    hold: bool
    blocked_on: tuple[str, ...]
    """Uids of the jobs it still waits for."""
    created_by: str
    create_time: Micros
    start_time: Micros = 0
    end_time: Micros = 0
    cause: Cause | None = None
    trace_id: str = ""
    span_id: str = ""
    """Parent of its attempts' spans, 16 hex digits."""
    sampled: bool = False
    rerun_of: str = ""
    stop_grace: float = 10.0
    labels: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    embedded_only: bool = False
    """Asks for the caller's interpreter, which only the embedded worker has."""
    outputs: ManifestRef | None = None
    restore: Checkpoint | None = None
    """A checkpoint of another job to begin from."""
    terms: Terms = PLAIN
    blocked_any: tuple[str, ...] = ()
    """Uids of the jobs of which one must succeed and none has."""
    blocked_end: tuple[str, ...] = ()
    """Uids of the jobs that must end, however."""
    generation: int = 0
    """Of a gang: how often it has begun as a whole."""
    dropped: Ranges = Ranges()
    """Tasks that were cancelled alone before they started; they have no row either."""

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Uids of all the jobs that it still waits for, in whatever way."""
        return self.blocked_on + self.blocked_any + self.blocked_end

    def completed(self, name: str) -> Job:
        """This job, with its name, which only the transaction that numbers it knows.

        Completes the job itself: nobody has seen it before its commit.
        """
        object.__setattr__(self, "name", name)
        return self


@quick
@dataclass(frozen=True, slots=True)
class Task:
    """A started task's row."""

    job_uid: str
    index: int
    state: JobState
    version: int
    attempt: int
    not_before: Micros = 0
    user_failures: int = 0
    infrastructure_failures: int = 0
    preemptions: int = 0
    cause: Cause | None = None
    checkpoint: Checkpoint | None = None
    outputs: ManifestRef | None = None
    start_time: Micros = 0
    end_time: Micros = 0
    adapted: Adapted = AS_ASKED


@quick
@dataclass(frozen=True, slots=True)
class Attempt:
    """One placement's row. `name` is its external name, the same wherever it appears."""

    name: str
    job_uid: str
    index: int
    number: int
    fence: int
    backend: str
    host: str
    gpus: tuple[str, ...]
    state: AttemptState
    version: int
    release: Release
    fenced: bool
    span_id: str
    create_time: Micros
    handle: bytes = b""
    nonce: str = ""
    intended: AttemptState | None = None
    """Decided outcome while STOPPING."""
    unknown_since: Micros = 0
    claim_time: Micros = 0
    start_time: Micros = 0
    end_time: Micros = 0
    cause: Cause | None = None
    usage: Usage = Usage()
    checkpoint: Checkpoint | None = None
    outputs: ManifestRef | None = None
    log_sizes: tuple[tuple[str, int], ...] = ()
    reserved: Resources = Resources()
    generation: int = 0
    """Of a gang's member: which generation it belongs to."""
    address: str = ""
    """Of a gang's member: where the others reach it, as it said in its claim."""


@quick
@dataclass(frozen=True, slots=True)
class Event:
    """One change of state. `seq` is given by the store; `index` None means the job as a whole."""

    job_uid: str
    job_seq: int
    time: Micros
    index: int | None
    attempt: int
    from_state: JobState
    to_state: JobState
    job_from: JobState
    job_to: JobState
    cause: Cause | None
    actor: str
    reason: str
    project: str = ""
    job_name: str = ""
    trace_id: str = ""
    seq: int = 0
    note: str = ""
    """What was decided and why, in one sentence with its figures; empty: the reason says it."""
    queue: str = ""

    def completed(self, seq: int, job_name: str) -> Event:
        """This event, with its position and name, which only the commit that stores it knows.

        Completes the event itself: nobody has seen it before its commit.
        """
        object.__setattr__(self, "seq", seq)
        object.__setattr__(self, "job_name", job_name)
        return self

    @property
    def terminal(self) -> bool:
        """Nothing more can happen to the task or job it is about."""
        return self.to_state.terminal and self.from_state is not self.to_state

    @property
    def job_terminal(self) -> bool:
        """This is the end of the job."""
        return self.job_to.terminal and not self.job_from.terminal


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue's row; zero limits mean none."""

    project: str
    name: str
    version: int
    created_by: str
    create_time: Micros
    weight: float = 1.0
    max_running: int = 0
    max_pending: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    parent: str = ""
    """NAME of the queue above it, in the same project."""
    quota: Resources = Resources()
    """Never more in use by it and those below it; a 0 is no limit."""
    guaranteed: Resources = Resources()
    """Its own, which it takes back from borrowers."""
    no_borrowing: bool = False
    cordoned: bool = False
    cordon_reason: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that runs our worker, as remembered between its streams."""

    name: str
    boot_id: str
    keeper: str
    capacity: Resources
    gpus: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]
    version: str
    embedded: bool
    cordoned: bool = False
    declared_gone: bool = False
    last_seen: Micros = 0
    address: str = ""
    """Where other hosts reach it; empty: its name."""
    draining: bool = False
    cordon_reason: str = ""
    quarantined_until: Micros = 0


@dataclass(frozen=True, slots=True)
class BackendNote:
    """What an operator has said of a backend."""

    name: str
    cordoned: bool
    cordon_reason: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token without its text: only the text's SHA-256 is kept, hex."""

    id: str
    sha256: str
    principal: str
    role: int
    """Number of `hatoba.v1.Role`."""
    create_time: Micros
    expire_time: Micros = 0
    revoked: bool = False
    created_by: str = ""
    deployment: str = ""
    """The one deployment that a token for predictions opens (resource name)."""
    host: str = ""
    """The one host that it speaks for, or that it makes of a machine."""
    used_by: str = ""
    """Of a token that made a host: the SHA-256 of the key that it made it with, hex."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One logged value; of two with the same (task, key, step) the later attempt's counts."""

    job_uid: str
    index: int
    key: str
    step: int
    attempt: int
    value: float
    time: Micros


class TaskWrite(NamedTuple):
    """A task's row as it shall be, over the version it was decided on (0: none)."""

    row: Task
    expected: int


class AttemptWrite(NamedTuple):
    """An attempt's row as it shall be, over the version it was decided on (0: none)."""

    row: Attempt
    expected: int


@quick
@dataclass(frozen=True, slots=True)
class Change:
    """What is decided about one job: rows as they shall be, and the events that tell of it.

    `expected` is the version of the job's row that it was decided on. Where one guard of it does
    not hold nothing of it is written: it is Stale.
    """

    job: Job
    expected: int
    tasks: tuple[TaskWrite, ...] = ()
    attempts: tuple[AttemptWrite, ...] = ()
    events: tuple[Event, ...] = ()
    models: tuple[ModelVersion, ...] = ()
    """Versions that become with it, numbered by the commit."""


def combined(changes: Sequence[Change]) -> Change:
    """Changes of one job, each decided on the outcome of the one before, as one.

    Raises ValueError when one was not decided on the outcome of the one before.
    """
    if len(changes) == 1:
        return changes[0]
    tasks: dict[int, TaskWrite] = {}
    attempts: dict[str, AttemptWrite] = {}
    events: list[Event] = []
    version = changes[0].expected
    for change in changes:
        if change.expected != version:
            raise ValueError(f"decided on version {change.expected}, not on {version}")
        version = change.job.version
        for task, expected in change.tasks:
            known = tasks.get(task.index)
            tasks[task.index] = TaskWrite(task, known.expected if known else expected)
        for attempt, expected in change.attempts:
            before = attempts.get(attempt.name)
            attempts[attempt.name] = AttemptWrite(attempt, before.expected if before else expected)
        events.extend(change.events)
    return Change(
        changes[-1].job,
        changes[0].expected,
        tuple(tasks.values()),
        tuple(attempts.values()),
        tuple(events),
        tuple(model for change in changes for model in change.models),
    )
