"""What a replica on the mock does, from its template, and the records of deployments.

A template says it in an environment variable:

    env: {MOCK_REPLICA: '{"starts_in": 2, "crash_after": 5}'}
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, get_type_hints

from hatoba.v1 import common_pb2, worker_pb2
from hatoba_plugins.values import (
    Handle,
    OwnedDeployment,
    ReplicaPhase,
    ReplicaView,
    RevisionTarget,
    Target,
)

VARIABLE = "MOCK_REPLICA"
HANDLE_VERSION = 1
HOST = "mock"


@dataclass(frozen=True)
class ReplicaScript:
    """One replica's life. Times are seconds on the backend's clock."""

    starts_in: float = 0.0
    """Until it is ready."""
    never_ready: bool = False
    crash_after: float = 0.0
    """So long after it became ready it ends with exit code 1; 0: never."""
    crashes: int = 1
    """It crashes so often, then it stays."""
    restarts_in: float = 1.0
    """From a crash to its next start."""
    drains_for: float = 0.0
    """From its retirement to its end."""


def script_of(template: worker_pb2.ReplicaSpec) -> ReplicaScript:
    """The script in a template. ValueError names what is wrong with it."""
    given = _given(template.env.get(VARIABLE, "{}"))
    types = get_type_hints(ReplicaScript)
    for name, value in given.items():
        if name not in types:
            raise ValueError(f"{VARIABLE}: {name!r} is unknown; known are {', '.join(types)}")
        if not _fits(value, types[name]):
            raise ValueError(f"{VARIABLE}: {name} must be {types[name].__name__}, 0 or more")
    return ReplicaScript(**given)


def _given(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{VARIABLE} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{VARIABLE} must be an object, not {text!r}")
    return given


def _fits(value: object, wanted: type) -> bool:
    if wanted is bool or isinstance(value, bool):
        return wanted is bool and isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and value >= 0
    return isinstance(value, int | float) and isfinite(value) and value >= 0


@dataclass(slots=True)
class MockReplica:
    """One replica of the world."""

    view: ReplicaView
    script: ReplicaScript

    def enter(self, phase: ReplicaPhase, now: float) -> None:
        """It stands there since now."""
        address = f"{self.view.name}.invalid:80" if phase is ReplicaPhase.READY else ""
        self.view = replace(self.view, phase=phase, since=now, address=address)

    def crash(self, now: float) -> None:
        """It ended by itself."""
        self.enter(ReplicaPhase.UNHEALTHY, now)
        cause = common_pb2.Cause(
            code=common_pb2.CAUSE_CODE_EXIT_CODE,
            origin=common_pb2.ORIGIN_USER,
            message="it ended with exit code 1",
            exit_code=1,
            last_log_lines=["crashed by its script"],
        )
        self.view = replace(self.view, restarts=self.view.restarts + 1, cause=cause)


@dataclass(slots=True)
class MockDeployment:
    """A deployment of the world: the newest target it was given, and what it has."""

    cluster_id: str
    target: Target
    replicas: dict[str, MockReplica] = field(default_factory=dict)

    def views(self) -> tuple[ReplicaView, ...]:
        """All replicas as they are."""
        return tuple(one.view for one in self.replicas.values())

    def owned(self) -> OwnedDeployment:
        """What is listed of it."""
        uid = self.target.uid
        return OwnedDeployment(uid, self.cluster_id, self.target.generation, handle_of(uid))


def handle_of(uid: str) -> Handle:
    """Its uid is all that is needed to find a deployment again."""
    return Handle(HANDLE_VERSION, uid)


def target_data(target: Target) -> dict[str, object]:
    """A target for the ledger."""
    return {
        "deployment": target.deployment,
        "generation": target.generation,
        "max_unavailable": target.max_unavailable,
        "max_surge": target.max_surge,
        "revisions": [_revision_data(one) for one in target.revisions],
    }


def target_of(uid: str, data: Mapping[str, Any]) -> Target:
    """A target from the ledger."""
    return Target(
        data["deployment"],
        uid,
        data["generation"],
        tuple(_revision_of(one) for one in data["revisions"]),
        data["max_unavailable"],
        data["max_surge"],
    )


def script_data(script: ReplicaScript) -> dict[str, object]:
    """A script for the ledger."""
    return asdict(script)


def _revision_data(one: RevisionTarget) -> dict[str, object]:
    template = b64encode(one.template.SerializeToString(deterministic=True)).decode()
    known = {"revision": one.revision, "replicas": one.replicas, "weight": one.weight}
    return {**known, "template": template}


def _revision_of(data: Mapping[str, Any]) -> RevisionTarget:
    template = worker_pb2.ReplicaSpec.FromString(b64decode(data["template"]))
    return RevisionTarget(data["revision"], data["replicas"], data["weight"], template)
