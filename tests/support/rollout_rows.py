"""Deployments to begin a test with, and a backend that does at once what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hatoba.v1 import worker_pb2
from hatoba_scheduler.domain.deployments import (
    CanaryStep,
    Change,
    Deployment,
    Figures,
    ReplicaState,
    Revision,
    Rollout,
    RolloutState,
    Seen,
    SeenSet,
    Settings,
    Strategy,
)
from hatoba_scheduler.domain.records import Cause
from hatoba_scheduler.domain.rollouts import Now, View, created, step, updated
from hatoba_scheduler.domain.states import CauseCode, Origin

SECOND = 1_000_000
BAKE = 5 * SECOND
DEADLINE = 300 * SECOND
CRASHES = Cause(
    CauseCode.CRASH_LOOP, Origin.USER, "It ended with exit code 1.", False, 1, last_log_lines=("x",)
)


def version(number: int) -> str:
    """A model version's resource name."""
    return f"projects/default/models/digits/versions/{number}"


def settings(replicas: int = 2, model: str = "", **strategy: object) -> Settings:
    """What is wanted."""
    return Settings(b"", model or version(1), replicas, replace(Strategy(), **strategy))  # type: ignore[arg-type]


def revision(number: int) -> Revision:
    """A revision, of a model version of its own."""
    template = worker_pb2.ReplicaSpec(model_version=version(number)).SerializeToString()
    return Revision(number, version(number), b"", template, 1, "ann")


def steps(*pairs: tuple[int, int]) -> tuple[CanaryStep, ...]:
    """Canary steps: percent, and seconds of hold."""
    return tuple(CanaryStep(percent, hold * SECOND) for percent, hold in pairs)


def bare(what: Settings, **fields: object) -> Deployment:
    """A deployment before its first revision."""
    made = Deployment(
        uid="019a0000-0000-7000-8000-000000000001",
        project="default",
        name="reader",
        backend="mock",
        settings=what,
        version=0,
        settings_version=1,
        generation=0,
        wanted=(),
        current=0,
        newest=0,
        following="@" in what.model,
        followed=version(1) if "@" in what.model else "",
        rollout=None,
        events=0,
        create_time=1,
        created_by="ann",
    )
    return replace(made, **fields)  # type: ignore[arg-type]


@dataclass
class Course:
    """A deployment's life, step by step: what was decided, and what is seen."""

    wanted: Settings = field(default_factory=settings)
    time: int = SECOND
    figures: Figures = Figures()
    revisions: dict[int, Revision] = field(default_factory=dict)
    seen: SeenSet | None = None
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make it, with its first revision."""
        self.deployment = bare(self.wanted)
        self.take(created(self.deployment, revision(1), self.now()))

    def now(self, actor: str = "ann") -> Now:
        """The time of this course."""
        return Now(self.time, actor)

    @property
    def view(self) -> View:
        """What decisions are made from."""
        return View(self.deployment, self.revisions, self.seen, self.figures)

    @property
    def rollout(self) -> Rollout:
        """The newest roll-out."""
        assert self.deployment.rollout is not None
        return self.deployment.rollout

    def state(self) -> RolloutState:
        """Where it stands."""
        return self.rollout.state

    @property
    def wanted_now(self) -> list[tuple[int, int, int]]:
        """Revision, replicas and weight of what the backend is asked for."""
        return [tuple(one) for one in self.deployment.wanted]  # type: ignore[misc]

    def take(self, change: Change | None) -> bool:
        """Let a change be written."""
        if change is None:
            return False
        assert change.expected == self.deployment.version
        assert change.deployment.version == change.expected + 1
        self.changes.append(change)
        self.deployment = change.deployment
        self.revisions |= {one.revision: one for one in change.revisions}
        return True

    def settle(self) -> None:
        """Take every step that follows from what is seen."""
        for _ in range(20):
            if not self.take(step(self.view, self.now("system"))):
                return
        raise AssertionError("it never comes to rest")

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.time += round(seconds * SECOND)
        self.settle()

    def obey(self, *, ready: bool = True) -> None:
        """The backend has just what it is asked for."""
        state = ReplicaState.READY if ready else ReplicaState.STARTING
        self.show(
            [
                replica(one.revision, index, state)
                for one in self.deployment.wanted
                for index in range(one.replicas)
            ]
        )

    def show(self, replicas: list[Seen], leaving: tuple[str, ...] = ()) -> None:
        """The backend shows these, for what it was asked for last."""
        self.seen = SeenSet(self.deployment.generation, tuple(replicas), frozenset(leaving))
        self.settle()

    def deploy(self, number: int, **strategy: object) -> None:
        """Another revision."""
        before = self.deployment.settings
        new = replace(before, strategy=replace(before.strategy, **strategy))  # type: ignore[arg-type]
        self.take(updated(self.view, new, revision(number), "", self.now()))

    def through(self) -> None:
        """The roll-out under way succeeds."""
        for _ in range(10):
            self.obey()
            self.wait(100)
            if self.state().over:
                break
        assert self.state() is RolloutState.SUCCEEDED


def replica(
    number: int,
    index: int = 0,
    state: ReplicaState = ReplicaState.READY,
    *,
    restarts: int = 0,
    cause: Cause | None = None,
) -> Seen:
    """A replica as it is seen."""
    address = f"127.0.0.1:{9000 + 100 * number + index}" if state is ReplicaState.READY else ""
    return Seen(f"r-{number}-{index}", number, state, "h", address, restarts, 1, cause)
