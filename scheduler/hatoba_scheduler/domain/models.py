"""Model versions, the aliases that point to them, and the rules of moving those. Pure.

Times are whole microseconds since 1970, 0 where they have not happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import NamedTuple

from hatoba_scheduler.domain.records import Cause, ManifestRef, Micros
from hatoba_scheduler.domain.references import version_name


class ModelState(IntEnum):
    """Whether a version may be used; the numbers are those of `hatoba.v1.ModelState`."""

    REGISTERING = 1
    READY = 2
    FAILED = 3


class MoveState(IntEnum):
    """What became of a move; the numbers are those of `hatoba.v1.AliasMoveState`."""

    PENDING = 1
    APPLIED = 2
    REJECTED = 3
    SUPERSEDED = 4


class VersionKey(NamedTuple):
    """Which version."""

    project: str
    model: str
    version: int

    @property
    def resource(self) -> str:
        """`projects/P/models/digits/versions/7`."""
        return version_name("models", *self)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version; only `state`, `cause`, `check_job`, and `content`'s signature and images change.

    `content` is a serialised `hatoba.v1.ModelVersion` of what is only handed through: serving,
    signature and params.
    """

    project: str
    model: str
    version: int
    """0 until the store has numbered it."""
    state: ModelState
    manifest: ManifestRef
    content: bytes
    create_time: Micros
    created_by: str
    handler: str = ""
    code: str = ""
    """Digest of the code that it is served with."""
    has_example: bool = False
    metrics: tuple[tuple[str, float], ...] = ()
    description: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    job: str = ""
    attempt: int = 0
    datasets: tuple[str, ...] = ()
    code_version: str = ""
    git_commit: str = ""
    parent: str = ""
    check_job: str = ""
    cause: Cause | None = None
    trace_id: str = ""

    @property
    def key(self) -> VersionKey:
        """Which it is."""
        return VersionKey(self.project, self.model, self.version)

    @property
    def name(self) -> str:
        """Resource name."""
        return self.key.resource

    def completed(self, version: int) -> ModelVersion:
        """This version, with its number, which only the transaction that stores it knows.

        Completes the record itself: nobody has seen it before its commit.
        """
        object.__setattr__(self, "version", version)
        return self


class Link(NamedTuple):
    """`target` came from `source`; both are resource names."""

    source: str
    target: str
    relation: str


def links_of(version: ModelVersion) -> list[Link]:
    """What a numbered version came from."""
    name = version.name
    found = [Link(dataset, name, "trained-on") for dataset in version.datasets]
    for source, relation in (
        (version.job, "made-by"),
        (version.code_version, "code-of"),
        (version.parent, "parent"),
    ):
        if source:
            found.append(Link(source, name, relation))
    return found


def why_not_served(version: ModelVersion) -> str:
    """Why a version cannot be deployed, as the end of a sentence; empty when it can."""
    if version.state is not ModelState.READY:
        return f"is {version.state.name}, and only READY versions can be deployed"
    if not version.handler:
        return "has no handler, so it cannot be served; register it again with --handler"
    if not version.has_example:
        return "has no example, which a replica must answer before it is ready"
    return ""


# -- aliases ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that points to a version, and who moved it last."""

    alias: str
    version: int
    update_time: Micros
    updated_by: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its aliases, by name; `latest` is its newest version there is, 0 for none."""

    project: str
    model: str
    latest: int
    protected: tuple[str, ...]
    revision: int
    create_time: Micros
    created_by: str
    aliases: tuple[Alias, ...] = ()

    @property
    def etag(self) -> str:
        """Changes with every change of it."""
        return f"m{self.revision}"


@dataclass(frozen=True, slots=True)
class Move:
    """One move of an alias, from a version to a version; 0 is nowhere. `number` is unique in all
    models."""

    project: str
    model: str
    number: int
    alias: str
    source: int
    target: int
    state: MoveState
    reason: str
    requested_by: str
    request_time: Micros
    decided_by: str = ""
    decide_time: Micros = 0
    comment: str = ""

    @property
    def name(self) -> str:
        """`projects/P/models/digits/moves/12`."""
        return f"projects/{self.project}/models/{self.model}/moves/{self.number}"


@dataclass(frozen=True, slots=True)
class Want:
    """That an alias shall point to `version` (0: nowhere), if it points to `expected` now (0:
    nowhere, None: wherever)."""

    project: str
    model: str
    alias: str
    version: int
    expected: int | None
    reason: str
    actor: str
    time: Micros


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody says to a move that waits."""

    project: str
    model: str
    number: int
    approve: bool
    comment: str
    actor: str
    time: Micros


class Step(Enum):
    """What is to be done about an alias or a move."""

    NOTHING = auto()
    """It is so already."""
    APPLY = auto()
    ASK = auto()
    """A second principal has to approve."""
    REJECT = auto()
    SUPERSEDE = auto()
    """The alias moved otherwise meanwhile."""


class Refusal(Enum):
    """Why a move or a decision cannot be; nothing was changed."""

    NO_MODEL = auto()
    NO_VERSION = auto()
    NOT_READY = auto()
    ELSEWHERE = auto()
    """The alias points to another version than was expected."""
    FOLLOWED = auto()
    """Deployments follow the alias."""
    NO_MOVE = auto()
    SAME_PRINCIPAL = auto()
    """Who asked for a move does not decide on it."""
    DECIDED = auto()
    """It was decided otherwise."""
    SUPERSEDED = auto()
    """The alias moved meanwhile."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal with what it is about: the version that the alias points to now, the state that
    stands in the way, or who uses it."""

    why: Refusal
    points_to: int = 0
    state: str = ""
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """A model as it is now with a move of it; `changed` tells whether the alias points elsewhere
    since."""

    model: Model
    move: Move
    changed: bool


def judge_want(
    want: Want, points_to: int, target: ModelState | None, protected: bool
) -> Step | Refused:
    """What a wish to move an alias leads to; `target` is the state of the version it names, None
    when there is no such version."""
    if points_to == want.version:
        return Step.NOTHING
    if want.expected is not None and want.expected != points_to:
        return Refused(Refusal.ELSEWHERE, points_to)
    refused = _unfit(want.version, target)
    if refused is not None:
        return refused
    return Step.ASK if protected else Step.APPLY


def judge_decision(
    decision: Decision, move: Move, points_to: int, target: ModelState | None
) -> Step | Refused:
    """What a decision on a move leads to; `points_to` is where its alias points now."""
    if decision.actor == move.requested_by:
        return Refused(Refusal.SAME_PRINCIPAL)
    if move.state is not MoveState.PENDING:
        return _decided(decision, move, points_to)
    if not decision.approve:
        return Step.REJECT
    if points_to != move.source:
        return Step.SUPERSEDE
    return _unfit(move.target, target) or Step.APPLY


def _decided(decision: Decision, move: Move, points_to: int) -> Step | Refused:
    if move.state is MoveState.SUPERSEDED:
        return Refused(Refusal.SUPERSEDED, points_to)
    same = MoveState.APPLIED if decision.approve else MoveState.REJECTED
    return Step.NOTHING if move.state is same else Refused(Refusal.DECIDED, state=move.state.name)


def _unfit(version: int, target: ModelState | None) -> Refused | None:
    if not version:
        return None
    if target is None:
        return Refused(Refusal.NO_VERSION)
    if target is not ModelState.READY:
        return Refused(Refusal.NOT_READY, state=target.name)
    return None
