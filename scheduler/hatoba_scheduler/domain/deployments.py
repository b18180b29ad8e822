"""What is remembered of deployments, and what is seen of them: immutable records.

Times are whole microseconds since 1970 (`Micros`), 0 where they have not happened; waits are
microseconds too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from hatoba_scheduler.domain.records import Cause, Micros

ALL = 100
"""Weights are percent and add up to this."""


class RolloutState(IntEnum):
    """Where a roll-out stands; from SUCCEEDED on nothing follows."""

    RUNNING = 1
    BAKING = 2
    PAUSED = 3
    ROLLING_BACK = 4
    SUCCEEDED = 5
    ROLLED_BACK = 6
    SUPERSEDED = 7
    FAILED = 8

    @property
    def over(self) -> bool:
        """True when nothing can follow."""
        return self >= RolloutState.SUCCEEDED


class Pause(IntEnum):
    """Why a roll-out is paused, which decides how it goes on."""

    NONE = 0
    ASKED = 1
    """Somebody stopped it: nothing happens by itself, not even a roll-back."""
    STEP = 2
    """A canary step without an end: it goes on when somebody resumes it."""
    TRAFFIC = 3
    """Somebody set weights by hand: promoting or rolling back ends it."""
    APPROVAL = 4
    """A group of devices that somebody has to let begin."""


class ReplicaState(IntEnum):
    """Where a replica stands, as the contract numbers it."""

    PENDING = 1
    STARTING = 2
    READY = 3
    UNHEALTHY = 4
    DRAINING = 5
    GONE = 6


class DeploymentState(IntEnum):
    """How a deployment is, as the contract numbers it; derived, never stored."""

    PROGRESSING = 1
    READY = 2
    DEGRADED = 3
    PAUSED = 4
    FAILED = 5
    DELETING = 6


class CanaryStep(NamedTuple):
    """A share of traffic in percent, and how long it must stay healthy (0: until resumed)."""

    percent: int
    hold: Micros


@dataclass(frozen=True, slots=True)
class Strategy:
    """How replicas are exchanged."""

    max_unavailable: int = 0
    max_surge: int = 1
    steps: tuple[CanaryStep, ...] = ()
    bake: Micros = 5_000_000
    ready_deadline: Micros = 300_000_000
    rollback: bool = True
    max_error_share: float = 0.05


class Share(NamedTuple):
    """What a revision is to have: replicas, and traffic in percent."""

    revision: int
    replicas: int
    weight: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What is wanted. `spec` is the contract's message with defaults filled in, serialised; the
    rest is read from it. `model` is a resource name, or `projects/P/models/M@ALIAS`.
    """

    spec: bytes
    model: str
    replicas: int
    strategy: Strategy

    @property
    def alias(self) -> str:
        """The alias that is named; empty when a version is."""
        return self.model.partition("@")[2]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One way from a revision to another; `from_revision` 0: there was none.

    `since` is when it came to its state or step, or last lost its readiness; `healthy_since` is
    since when all replicas of the new revision are ready, 0 while they are not.
    """

    number: int
    from_revision: int
    to_revision: int
    state: RolloutState
    steps: tuple[CanaryStep, ...]
    step: int
    start_time: Micros
    since: Micros
    healthy_since: Micros = 0
    end_time: Micros = 0
    pause: Pause = Pause.NONE
    back: bool = False
    """It goes back to an earlier revision because somebody asked."""
    cause: Cause | None = None

    @property
    def in_steps(self) -> bool:
        """It is at a canary step."""
        return self.step < len(self.steps)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment. Every write grows `version`, which guards it; `settings_version` grows with
    what is wanted; `generation` with what its backend is asked for (`wanted`).
    """

    uid: str
    project: str
    name: str
    backend: str
    settings: Settings
    version: int
    settings_version: int
    generation: int
    wanted: tuple[Share, ...]
    current: int
    """Revision that has the traffic, or had it last when all was well; 0: none yet."""
    newest: int
    """Number of the newest revision."""
    following: bool
    followed: str
    """Model version (resource name) that the alias was last seen at; empty without an alias."""
    rollout: Rollout | None
    events: int
    """Position of the newest event."""
    create_time: Micros
    created_by: str
    deleting: bool = False
    handle: str = ""
    """What the backend needs to find it again, serialised; empty until it told."""

    @property
    def resource(self) -> str:
        """`projects/P/deployments/NAME`."""
        return deployment_name(self.project, self.name)

    @property
    def replicas(self) -> int:
        """Replicas wanted of the current revision."""
        return self.settings.replicas

    @property
    def active(self) -> Rollout | None:
        """The roll-out under way."""
        return self.rollout if self.rollout is not None and not self.rollout.state.over else None

    def share(self, revision: int) -> Share:
        """What a revision is to have now."""
        return next((one for one in self.wanted if one.revision == revision), Share(revision, 0, 0))


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision, for ever the same but for `proven`, `cause` and `in_use`.

    `template` is what each replica is made from, serialised; equal ones mean equal replicas.
    """

    revision: int
    model_version: str
    spec: bytes
    template: bytes
    create_time: Micros
    created_by: str
    manifests: tuple[str, ...] = ()
    proven: bool = False
    cause: Cause | None = None
    in_use: bool = True
    """It has replicas or traffic, or is the one that a roll-back would go to."""


@dataclass(frozen=True, slots=True)
class DeploymentEvent:
    """Something that happened; `revision` 0: to the deployment as a whole."""

    seq: int
    time: Micros
    kind: str
    message: str
    revision: int
    actor: str
    cause: Cause | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """A replica as its backend sees it."""

    name: str
    revision: int
    state: ReplicaState
    host: str = ""
    address: str = ""
    restarts: int = 0
    since: Micros = 0
    cause: Cause | None = None
    server_name: str = ""
    """Name in the certificate that it shows; empty: it answers in plain text."""
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeenSet:
    """All replicas of a deployment as its backend sees them, and the generation it works on.

    `leaving` are those that it would end. `problem`: why it cannot have what is wanted.
    """

    generation: int
    replicas: tuple[Seen, ...] = ()
    leaving: frozenset[str] = frozenset()
    problem: Cause | None = None

    def staying(self, revision: int) -> list[Seen]:
        """Replicas of a revision that are not to go."""
        return [
            one
            for one in self.replicas
            if one.revision == revision
            and one.name not in self.leaving
            and one.state not in (ReplicaState.DRAINING, ReplicaState.GONE)
        ]

    def ready(self, revision: int) -> int:
        """How many of them are ready."""
        return sum(one.state is ReplicaState.READY for one in self.staying(revision))


class Served(NamedTuple):
    """A replica that routers send requests to."""

    revision: int
    name: str
    address: str
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class RouteShare:
    """A revision's share of the traffic in percent, and its replicas."""

    revision: int
    weight: int
    replicas: tuple[Served, ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Requests that routers saw of the new revision since the roll-out's state or step began."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A decided change of one deployment, all or nothing: written only over version `expected`."""

    deployment: Deployment
    expected: int
    rollouts: tuple[Rollout, ...] = ()
    revisions: tuple[Revision, ...] = ()
    events: tuple[DeploymentEvent, ...] = ()


def deployment_name(project: str, name: str) -> str:
    """`projects/P/deployments/NAME`."""
    return f"projects/{project}/deployments/{name}"


@dataclass(frozen=True, slots=True)
class Prediction:
    """A prediction that a router kept; `duration` in microseconds."""

    trace_id: str
    deployment: str
    revision: int
    model_version: str
    replica: str
    status: int
    time: Micros
    duration: Micros
    item: str = ""
