"""The backend contract: what a plug-in registers, what it is given, what it must do.

Everything that does I/O is awaited by the core itself, with a deadline, from one event loop. Any
method may be called again after a time-out or a restart of the core, with the same arguments.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from hatoba.v1 import common_pb2, deployment_pb2, device_pb2, job_pb2, worker_pb2
from hatoba_plugins.values import (
    BackendOptions,
    Capabilities,
    DeploymentItem,
    DeviceKept,
    DeviceNews,
    DeviceWish,
    FindOutcome,
    Handle,
    Health,
    LaunchGroup,
    LaunchOutcome,
    LogChunk,
    Observation,
    Owned,
    OwnedDeployment,
    Problem,
    Ref,
    ReleaseOutcome,
    Share,
    StopResult,
    Target,
    WatchItem,
    WishOutcome,
)

API_VERSION = 1
"""Version of this contract; a backend of another one is not loaded."""


class Clock(Protocol):
    """The core's time, so that tests can own it."""

    def time(self) -> float:
        """Seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds of this clock."""
        ...


class WorkerHub(Protocol):
    """The scheduler's side of all host workers' streams."""

    def ready_hosts(self) -> list[str]:
        """Hosts that may be sent work now, by name."""
        ...

    def send_launch(self, host: str, launch: worker_pb2.LaunchAttempt) -> bool:
        """Queue a launch on a host's stream; False when that host is not ready for dispatch."""
        ...

    def send_stop(self, host: str, name: str, fence: int, grace: float) -> bool:
        """Queue a stop on a host's stream; False when that host is not connected."""
        ...

    def seen(self, name: str, host: str) -> Observation | None:
        """What is known of an attempt, on this host (empty: wherever it is); None: nothing yet.

        GONE once the host, connected, does not have it; not reachable while it is away.
        """
        ...

    def owned(self) -> list[Owned]:
        """All attempts that hosts have, and ended ones that were not forgotten."""
        ...

    def forget(self, name: str) -> None:
        """An ended attempt was released."""
        ...

    def watch(self) -> AsyncIterator[WatchItem]:
        """Snapshots of all hosts as they change, gaps when a host comes or goes, what they tell."""
        ...

    def hosts_for_replicas(self) -> list[HostRoom]:
        """All remembered hosts by name, connected or not, with what jobs leave of them."""
        ...

    def order_replicas(self, host: str, replicas: Sequence[worker_pb2.ReplicaSpec]) -> bool:
        """Have a host keep exactly these replicas; False when it is not connected: order again.

        What they need is held back from jobs from now on. Of those that `replicas` tells of, the
        name alone is enough: they stay what they are.
        """
        ...

    def replicas(self, host: str) -> Mapping[str, deployment_pb2.Replica] | None:
        """Replicas that a host has, or may yet get by an order under way (PENDING), by name.

        As it told last while it is away; None until it has told of all once.
        """
        ...

    def watch_replicas(self) -> AsyncIterator[str]:
        """Names of hosts whose replicas, connection or room changed; first each that there is."""
        ...

    async def replica_tail(
        self, host: str, replica: str, stream: str, lines: int
    ) -> LogChunk | None:
        """The last lines of a replica's log; None when its host does not answer."""
        ...

    def attach(
        self,
        host: str,
        order: worker_pb2.AttachAttempt,
        said: AsyncIterator[job_pb2.AttachInput],
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """Have a host attach somebody to an attempt, see `AttachBackend`; it chooses the session.

        Raises Retry where the host does not, and says why.
        """
        ...


class DeviceHub(Protocol):
    """The scheduler's side of all devices' streams."""

    def send(self, device: str, desired: device_pb2.DeviceDesired) -> bool:
        """Queue what is wanted on a device's stream, in place of what is queued and older; False
        when it is not connected."""
        ...

    def watch(self) -> AsyncIterator[DeviceNews]:
        """Devices as they come, go and tell, from now on: first those that are connected with what
        they told last, then Synced. Gap where the watcher was too slow."""
        ...

    def end(self, device: str, reason: str) -> None:
        """End a device's stream, if it has one."""
        ...


@dataclass(frozen=True, slots=True)
class HostRoom:
    """A host as a place for replicas: `free` is what neither jobs nor replicas hold."""

    name: str
    connected: bool
    accepting: bool
    """False: cordoned, declared gone or not connected."""
    free: Share
    free_gpus: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    embedded: bool
    secrets: frozenset[str]
    declared_gone: bool = False
    draining: bool = False
    """Its replicas are to go elsewhere."""


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What the core gives an opened backend."""

    clock: Clock
    rng: random.Random
    cluster_id: str
    store_epoch: int
    advertise: str
    """`host:port` under which workers and runners reach the scheduler."""
    budget: Callable[[str], Awaitable[None]]
    """Await it with an operation's name before each native call."""
    secret: Callable[[str], Awaitable[str]]
    """The backend's own credentials, by name. Raises KeyError with words on what to do."""
    workers: WorkerHub
    ca: str = ""
    """PEM of the authority that vouches for `advertise`; empty: a public one, or no TLS."""
    tls: bool = False
    """Whether `advertise` speaks TLS."""
    devices: DeviceHub | None = None
    """None where the server has no port for devices."""
    device_jobs: WorkerHub | None = None
    """The scheduler's side of the streams that devices open for jobs, each as the host of its own
    name. None as above."""
    dials: Callable[[str], bool] = field(default=lambda _: False)
    """Whether a device of this name dials the core's port for devices: what is said in its name by
    another way is not its word."""


class JobBackend(Protocol):
    """Runs jobs to their end. Handles stay valid over restarts of core and backend."""

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """Create, or adopt what a former call created, one answer per member; returns at once.

        Idempotent by `name`: a second launch of a name, also after its end, creates nothing.
        Raising a `BackendError` refuses the whole group; anything else raised is Ambiguous.
        """
        ...

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """How they are now. Those that cannot be reached come with `reachable` False."""
        ...

    def watch(self) -> AsyncIterator[WatchItem]:
        """What changes, from now on: first a snapshot and all live attempts, then Synced.

        After a Gap the core observes everything. It may end; the core then watches anew.
        """
        ...

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """Have them end: politely, after `grace` seconds by force. Idempotent; returns at once.

        A name that was never launched leaves a mark that refuses its late launch.
        """
        ...

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """Let go of what ended. Released only when nothing of it is left."""
        ...


@runtime_checkable
class AttachBackend(Protocol):
    """What a job backend with the capability `attach` does besides.

    Both tell an empty piece once they are through, and then what comes; what was begun ends with
    the attempt, and when the generator is closed. They raise a `BackendError` when nothing was
    begun. Of `said` nothing is read ahead.
    """

    def exec(
        self, ref: Ref, start: job_pb2.ExecStart, said: AsyncIterator[job_pb2.AttachInput]
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """Run a command beside a running attempt's; `ended` comes last. Not repeatable."""
        ...

    def forward(
        self, ref: Ref, port: int, said: AsyncIterator[job_pb2.AttachInput]
    ) -> AsyncGenerator[job_pb2.AttachOutput, None]:
        """One connection to a TCP port on which the attempt listens."""
        ...


class DeploymentBackend(Protocol):
    """Keeps deployments running. It owns the replacement of replicas inside one generation; steps,
    weights, bake, promotion and roll-back are the core's, each a new generation.
    """

    async def apply(self, target: Target) -> Handle:
        """Have the deployment become `target`; returns at once, replicas follow.

        Idempotent; called again after a restart of the core. Raises Stale for a generation below
        the newest it was given, and another `BackendError` when nothing was taken in.
        """
        ...

    def watch(self) -> AsyncIterator[DeploymentItem]:
        """Every ReplicaSet as it changes, from now on: first all there are, then Synced.

        After a Gap the core watches anew, as it does when this ends. What is removed comes once
        more with no replicas.
        """
        ...

    async def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """Let these replicas end, politely: no router sends them anything any more.

        Of those in `leaving` only; others are not touched. Idempotent.
        """
        ...

    async def remove(self, uid: str, handle: Handle | None) -> ReleaseOutcome:
        """End all of a deployment at once, politely. Released when nothing of it is left.

        Idempotent; a later `apply` of this uid is refused as Stale.
        """
        ...

    def owned(self, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        """Everything of deployments with our labels, for the core to adopt or remove."""
        ...

    def replica_logs(self, replica: str, stream: str, tail_lines: int) -> AsyncIterator[LogChunk]:
        """The last lines that a replica wrote. Offsets may have gaps, and grow with the log by no
        less than its bytes: who follows asks again. Raises Unsupported without `replica_logs`.
        """
        ...


@runtime_checkable
class ImageRunner(Protocol):
    """What a deployment backend does besides, when its replicas run in images and in nothing else.

    Of a model version with images of its own the one to run stands in the template, with its
    `architecture`: such a replica is to be kept from machines of another one.
    """

    def architectures(self, needs: common_pb2.Resources) -> Sequence[str]:
        """What replicas with these needs may run on (`amd64`, `arm64`), the likeliest first.

        Empty: it cannot tell, and keeps replicas to theirs all the same.
        """
        ...


class DeviceBackend(Protocol):
    """Keeps far devices converging: carries what is wanted to them, and what they tell to us.

    What is wanted of a device is one document with one generation. The core composes it, keeps it,
    and gives it again whenever a device comes or the core starts.
    """

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """Have devices want this, one answer each; returns at once. Idempotent; a lower generation
        than one of before is Superseded."""
        ...

    def reports(self) -> AsyncIterator[DeviceNews]:
        """Devices as they come, go and tell: first all that is known, then Synced. Reports may
        come twice and out of order; their generation says what they are about. After a Gap all that
        is known comes again, up to a Synced, or it ends; the core wishes everything again. It may
        end at any time; the core then asks anew."""
        ...

    async def forget(self, devices: Sequence[str]) -> list[ReleaseOutcome]:
        """Nothing is wanted of these any more, and nothing is to be heard of them. Idempotent."""
        ...


@runtime_checkable
class BringsRecords(Protocol):
    """What a device role has, too, where devices send what they keep by it. Who dials the core
    sends it there.
    """

    def records(self) -> AsyncIterator[DeviceKept]:
        """What devices send; again and again, until it was said to be stored."""
        ...

    async def stored(self, device: str, position: int) -> None:
        """Tell a device up to which position all of it is durable. Raises a BackendError."""
        ...


@runtime_checkable
class SignsDevices(Protocol):
    """What a device role has, too, where somebody else than the core signs for its devices. All
    raise a `BackendError`.
    """

    async def check_free(self, device: str) -> None:
        """Raises Conflict where there is something of this name already."""
        ...

    async def enroll(self, device: str, csr: str) -> device_pb2.DeviceIdentity:
        """What a device is known by that has the key of this signing request (PEM). Again with the
        same key is the same; another key takes the place of it.
        """
        ...

    async def revoke(self, device: str) -> None:
        """End all of a device's certificates. Idempotent."""
        ...


class Backend(Protocol):
    """One opened instance; a role it lacks is None."""

    @property
    def jobs(self) -> JobBackend | None:
        """Its job role."""
        ...

    @property
    def deployments(self) -> DeploymentBackend | None:
        """Its deployment role."""
        ...

    @property
    def devices(self) -> DeviceBackend | None:
        """Its device role."""
        ...

    def capabilities(self) -> Capabilities:
        """What this instance can, as values."""
        ...

    async def health(self) -> Health:
        """How it is now."""
        ...

    async def validate(self, spec: job_pb2.JobSpec) -> list[Problem]:
        """What of this specification can never run here; called at submit, must be quick."""
        ...

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Look up by deterministic name, live, never from a cache older than our own last write."""
        ...

    def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """All external objects with our labels, ended ones too."""
        ...

    def logs(self, ref: Ref, stream: str, offset: int, follow: bool) -> AsyncIterator[LogChunk]:
        """Logs that the backend itself keeps.

        Raises Unsupported without that capability, Denied, Retry.
        """
        ...


class BackendType(Protocol):
    """What a plug-in registers."""

    @property
    def name(self) -> str:
        """Type name, as in `[backends.X] type`."""
        ...

    @property
    def api(self) -> int:
        """The API_VERSION it was written for."""
        ...

    @property
    def options(self) -> type[BackendOptions]:
        """Its options; checked without opening."""
        ...

    def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AbstractAsyncContextManager[Backend]:
        """Open one instance; what it started ends with the context."""
        ...
