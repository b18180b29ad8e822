"""The Store protocol: what durable state promises, whichever database keeps it.

`tests/conformance` and `hatoba_scheduler.store.conformance` hold every implementation to it.
Mutating calls return after the commit; what they return is durable. Within one call, and between
calls that overlap, writes are applied in the order in which the calls were made.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

from hatoba_scheduler.domain.changing import quick
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Attempt,
    BackendNote,
    Change,
    Event,
    Host,
    Job,
    MetricPoint,
    Micros,
    Queue,
    Resources,
    Task,
    Terms,
    TokenRecord,
)
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.store.blob_index import BlobIndex
from hatoba_scheduler.store.trouble import Trouble
from hatoba_scheduler.telemetry.timings import Timings

if TYPE_CHECKING:
    from hatoba_scheduler.store.backups import BackupStore
    from hatoba_scheduler.store.datasets import DatasetStore
    from hatoba_scheduler.store.deployments import DeploymentStore
    from hatoba_scheduler.store.devices import DeviceStore
    from hatoba_scheduler.store.models import ModelStore
    from hatoba_scheduler.store.publications import PublicationStore
    from hatoba_scheduler.store.schedules import ScheduleStore
    from hatoba_scheduler.store.webhooks import WebhookStore


class RequestKey(NamedTuple):
    """Scope and hash of an idempotent request; `body_sha256` is of the parsed request."""

    project: str
    method: str
    request_id: str
    body_sha256: bytes


@quick
@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be numbered and stored: `base_name` is NAME of NAME-N, `spec` serialised JobSpec.

    `event` is its first event, with `job_name` still empty.
    """

    job: Job
    base_name: str
    spec: bytes
    event: Event
    request: RequestKey | None = None
    reads: tuple[str, ...] = ()
    """Resource names of what it reads by name, for lineage and for whoever would delete them."""
    publishes: bool = False
    """Its outputs are to become a dataset version: see `store.publications`."""
    like: object = None
    """Of submissions with the same object here, jobs and events differ in uid, create_time (which
    is the event's time too) and trace alone, and all else but `request` is the same."""


@quick
@dataclass(frozen=True, slots=True)
class Submitted:
    """Stored now; the job with its name and the position of its first event."""

    job: Job
    seq: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The request was carried out before; `resource` is what it made or changed (a uid or name)."""

    resource: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The request id was used before with another body; hashes in hex."""

    stored_sha256: str
    given_sha256: str


Met = Duplicate | Mismatch
"""What the key of a request met: then the call changes nothing."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Written; positions of its events, in order."""

    seqs: tuple[int, ...]


class Stale(Enum):
    """A guard did not hold: nothing of the change was written. An ordinary outcome."""

    STALE = auto()


class JobQuery(NamedTuple):
    """A parsed list filter; None means any. `terms` are (column, operator, value)."""

    project: str
    terms: tuple[tuple[str, str, str | int], ...] = ()
    """Columns: state, queue, base_name, name, created_by, backend, active (0/1), label:KEY;
    operators `=`, `!=`."""


@dataclass(frozen=True, slots=True)
class MetricQuery:
    """Which points of a job to read."""

    job_uid: str
    keys: tuple[str, ...] = ()
    index: int | None = None


class LiveState(NamedTuple):
    """All that is not over, for recovery: jobs that have not ended or hold resources, with their
    started tasks and each started task's newest attempt."""

    jobs: list[Job]
    tasks: list[Task]
    attempts: list[Attempt]


class Parked(NamedTuple):
    """Plain waiting jobs, alike in all that those need who plan and count: see `domain.parking`."""

    uids: Sequence[str]
    project: str
    queue: str
    backend: str
    priority: int
    state: JobState
    resources: Resources
    terms: Terms
    secrets: tuple[str, ...]
    embedded_only: bool
    created_by: str

    @property
    def uid(self) -> str:
        """The first of them, which stands for all."""
        return self.uids[0]


class JobCount(NamedTuple):
    """How many jobs of a queue are in a state."""

    project: str
    queue: str
    state: JobState
    jobs: int


class ServerIdentity(NamedTuple):
    """Made with the store: identity of the installation and the epoch of this store."""

    cluster_id: str
    store_epoch: int
    restored: bool = False
    """It came out of a backup, and nobody has adopted yet what backends still run."""


class Store(Protocol):
    """Durable state of one installation."""

    @property
    def identity(self) -> ServerIdentity:
        """Made when the store was made."""
        ...

    @property
    def commit_times(self) -> Timings:
        """How long transactions took of late, from begin to commit."""
        ...

    @property
    def blob_index(self) -> BlobIndex:
        """Leases and marks of stored chunks and manifests."""
        ...

    @property
    def models(self) -> ModelStore:
        """Models, their versions and aliases, and what came from what."""
        ...

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that jobs name: code, inputs, outputs, checkpoints."""
        ...

    @property
    def datasets(self) -> DatasetStore:
        """Datasets, their heads, and code versions."""
        ...

    @property
    def devices(self) -> DeviceStore:
        """The part that keeps devices."""
        ...

    @property
    def deployments(self) -> DeploymentStore:
        """Deployments, what routers were told, and what they told."""
        ...

    @property
    def backups(self) -> BackupStore:
        """Copies of the store, and the store as a whole."""
        ...

    @property
    def schedules(self) -> ScheduleStore:
        """What is submitted by the clock."""
        ...

    @property
    def webhooks(self) -> WebhookStore:
        """Webhooks, and how far they were told."""
        ...

    @property
    def publications(self) -> PublicationStore:
        """Jobs whose outputs become dataset versions."""
        ...

    # -- jobs ---------------------------------------------------------------------------------
    async def submit(self, items: Sequence[Submission]) -> list[Submitted | Duplicate | Mismatch]:
        """Number and store jobs, their first events and request keys, in one transaction.

        Two items of one call with the same request key are one job. An item whose key is known
        changes nothing. Makes the queue `default` of a project that has none. Raises StorageFull,
        StorageFailed: then none of them is stored.
        """
        ...

    async def apply(self, changes: Sequence[Change]) -> list[Applied | Stale]:
        """Write decided changes, each all or nothing, in one transaction.

        Of a job's row it writes what can change: queue, priority, state, desired, versions,
        unstarted, counts, hold, blocked_on, times, cause, outputs; the rest was fixed by submit.
        Model versions are numbered and stored with their change, or not at all. A row whose version
        is the expected one is guarded, not written. Raises StorageFull or StorageFailed when the
        transaction could not be committed and WriteRefused when a row breaks a rule of the schema
        (a final state left, a second attempt under way); then no change of the call is written.
        """
        ...

    async def job(self, uid: str) -> Job | None:
        """One job by uid."""
        ...

    async def job_by_name(self, project: str, name: str) -> Job | None:
        """One job by NAME-N."""
        ...

    async def jobs_by_uid(self, uids: Sequence[str]) -> dict[str, Job]:
        """Those of the jobs that exist."""
        ...

    async def specs(self, uids: Sequence[str]) -> dict[str, bytes]:
        """Serialised specs of those jobs that exist."""
        ...

    async def list_jobs(self, query: JobQuery, after: str, limit: int) -> list[Job]:
        """Newest first, as they were stored, below the job of uid `after` (empty: newest)."""
        ...

    async def count_jobs(self, query: JobQuery) -> dict[JobState, int]:
        """Jobs per state."""
        ...

    async def tasks(self, job_uid: str, after_index: int, limit: int) -> list[Task]:
        """Started tasks by index, above `after_index`."""
        ...

    async def succeeded(self, job_uid: str) -> Ranges:
        """Indices of a job's own tasks that SUCCEEDED."""
        ...

    async def attempts(
        self, job_uid: str, index: int | None, after: tuple[int, int], limit: int
    ) -> list[Attempt]:
        """Attempts by (index, number), above `after`."""
        ...

    async def attempt(self, name: str) -> Attempt | None:
        """One attempt by external name."""
        ...

    async def attempts_by_name(self, names: Sequence[str]) -> dict[str, Attempt]:
        """Those of the attempts that exist, by external name."""
        ...

    async def live(self, plain: int) -> LiveState:
        """All that is not over, of plain waiting jobs only so many; for recovery at start."""
        ...

    def parked(self, skip: int) -> AsyncIterator[Sequence[Parked]]:
        """All plain waiting jobs, many at a time, without the `skip` that `live` would give.

        Of those at a time, all that are alike are one.
        """
        ...

    async def live_job(self, uid: str) -> LiveState:
        """One job as `live` gives it; nothing when it is over and holds nothing."""
        ...

    async def job_counts(self) -> list[JobCount]:
        """Jobs of all projects by queue and state."""
        ...

    async def remember_request(self, key: RequestKey, resource: str) -> Duplicate | Mismatch | None:
        """Store the key of a mutating call other than submit, or say what it met before."""
        ...

    async def recall_request(self, key: RequestKey) -> Duplicate | Mismatch | None:
        """What the key met before, if anything."""
        ...

    async def forget_requests(self, before: Micros) -> int:
        """Drop request keys older than this; how many."""
        ...

    # -- events -------------------------------------------------------------------------------
    async def events(self, after_seq: int, limit: int, job_uids: Sequence[str] = ()) -> list[Event]:
        """Events above a position, in order; of these jobs only, when any are named."""
        ...

    async def event_bounds(self) -> tuple[int, int]:
        """(oldest kept, newest) positions; (1, 0) when there are none."""
        ...

    # -- metrics ------------------------------------------------------------------------------
    async def add_metrics(self, points: Sequence[MetricPoint]) -> None:
        """Store points; of two with the same (job, index, key, step) that of the later attempt,
        and within an attempt the later one, stays."""
        ...

    async def metrics(self, query: MetricQuery) -> list[MetricPoint]:
        """Points by key, index, step."""
        ...

    # -- queues, hosts, tokens ------------------------------------------------------------------
    async def put_queue(
        self, queue: Queue, expected_version: int, request: RequestKey | None = None
    ) -> Queue | Stale | Met:
        """Write a queue over this version (0: it must not exist), and the key with it; a key that
        is known changes nothing."""
        ...

    async def queue(self, project: str, name: str) -> Queue | None:
        """One queue."""
        ...

    async def queues(self, project: str | None, after: str, limit: int) -> list[Queue]:
        """Queues of one project by name, above the name `after`; None: those of all projects, by
        project and name, above `after` = "PROJECT/NAME"."""
        ...

    async def delete_queue(
        self, project: str, name: str, expected_version: int, request: RequestKey | None = None
    ) -> bool | Stale | Met:
        """Remove a queue of this version, keeping the key; False when it has unfinished jobs."""
        ...

    async def put_host(self, host: Host) -> None:
        """Write a host's row."""
        ...

    async def delete_host(self, name: str) -> None:
        """Remove a host's row, if there is one."""
        ...

    async def hosts(self) -> list[Host]:
        """All hosts by name."""
        ...

    async def put_backend(self, note: BackendNote) -> None:
        """Write what an operator said of a backend."""
        ...

    async def backends(self) -> list[BackendNote]:
        """All that operators said of backends, by name."""
        ...

    async def put_queue_usage(self, usage: Mapping[tuple[str, str], tuple[float, Micros]]) -> None:
        """Write what queues, by (project, name), used on average as of a time, in place of all
        that was known of these."""
        ...

    async def queue_usage(self) -> dict[tuple[str, str], tuple[float, Micros]]:
        """What queues used on average, as it was written last."""
        ...

    async def put_token(self, token: TokenRecord) -> None:
        """Write a token's row."""
        ...

    async def tokens(self) -> list[TokenRecord]:
        """All tokens by id."""
        ...

    # -- life -----------------------------------------------------------------------------------
    @property
    def trouble(self) -> Trouble:
        """Whether writes reach the disk."""
        ...

    def broken(self) -> AsyncIterator[BaseException]:
        """Yields when the writer can go on no more; the server then stops."""
        ...

    async def close(self) -> None:
        """Finish what is queued, checkpoint and close."""
        ...
