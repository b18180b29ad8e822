"""What durable state promises of models: versions, aliases, moves, and what came from what.

Part of `Store`; the versions that jobs log are written by `Store.apply`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from hatoba_scheduler.domain.models import (
    Decision,
    Link,
    Model,
    ModelState,
    ModelVersion,
    Move,
    Moved,
    Refused,
    VersionKey,
    Want,
)
from hatoba_scheduler.domain.records import Cause
from hatoba_scheduler.store.base import Met, RequestKey, Stale

Metrics = tuple[tuple[str, float], ...]


class Verdict(NamedTuple):
    """How the check of a version ended; `content` replaces what it has (a signature was found)."""

    state: ModelState
    cause: Cause | None
    content: bytes


class InUse(NamedTuple):
    """It cannot be removed: who uses it, for example `alias production`, `jobs/predict-3`."""

    users: tuple[str, ...]


class MoveQuery(NamedTuple):
    """Which moves to list; an empty model means all of the project."""

    project: str
    model: str = ""
    pending_only: bool = False


class ModelStore(Protocol):
    """Models of one installation."""

    async def register(
        self, version: ModelVersion, request: RequestKey | None
    ) -> ModelVersion | Met:
        """Number and store a version with the key of its request, in one transaction.

        A key that is known changes nothing; `Duplicate.resource` is the version's resource name.
        """
        ...

    async def note_check(self, key: VersionKey, check_job: str) -> None:
        """Keep which job checks a version; the first one stays."""
        ...

    async def settle(self, key: VersionKey, verdict: Verdict) -> bool:
        """End the check of a version that is REGISTERING; False when it is not."""
        ...

    async def replace_content(
        self, version: ModelVersion, content: bytes, request: RequestKey | None = None
    ) -> Stale | Met | None:
        """Keep other content of a version, if it has what was read; Stale when it is another's by
        now, or gone. A request key that is known changes nothing."""
        ...

    async def version(self, key: VersionKey) -> ModelVersion | None:
        """One version."""
        ...

    async def newest_ready(self, project: str, model: str) -> ModelVersion | None:
        """The newest READY version of a model."""
        ...

    async def alias(self, project: str, model: str, alias: str) -> int:
        """The version that an alias points to; 0 for none."""
        ...

    async def versions(
        self, project: str, model: str, below: int, limit: int
    ) -> list[ModelVersion]:
        """Versions of a model, newest first, below a number (0: from the newest)."""
        ...

    async def registering(self) -> list[ModelVersion]:
        """All versions whose check has not ended."""
        ...

    async def model(self, project: str, model: str) -> Model | None:
        """One model with its aliases."""
        ...

    async def models(self, project: str, after: str, limit: int) -> list[Model]:
        """Models by name, above the name `after`."""
        ...

    async def protect(
        self,
        project: str,
        model: str,
        aliases: tuple[str, ...],
        etag: str,
        request: RequestKey | None = None,
    ) -> Model | Stale | Met | None:
        """Say which aliases are protected, if the model is as read (an empty etag: whatever it is);
        None when there is no such model. A request key that is known changes nothing, here and
        below."""
        ...

    async def move(self, want: Want, request: RequestKey | None = None) -> Moved | Refused | Met:
        """Move an alias, or take it away, in one guarded step; a protected one gets a move that
        waits."""
        ...

    async def decide(
        self, decision: Decision, request: RequestKey | None = None
    ) -> Moved | Refused | Met:
        """Carry out or reject a move that waits, in one guarded step."""
        ...

    async def moves(self, query: MoveQuery, below: int, limit: int) -> list[Move]:
        """Moves, newest first, below a number (0: from the newest)."""
        ...

    async def delete_version(
        self, key: VersionKey, request: RequestKey | None = None
    ) -> ModelVersion | InUse | Met | None:
        """Remove a version that nothing uses, as it was; None when there is no such version. A
        request key that is known removes nothing."""
        ...

    async def made_by(self, jobs: Sequence[str]) -> Mapping[str, list[str]]:
        """Versions of those jobs that made any, by resource names."""
        ...

    async def last_metrics(self, job_uid: str, index: int) -> Metrics:
        """Of each metric of a task the value at its highest step, by key."""
        ...

    async def links(self, names: Sequence[str], *, backwards: bool) -> list[Link]:
        """What came from these resources, or (backwards) what they came from."""
        ...

    async def deployment_facts(self, project: str, name: str) -> dict[str, str] | None:
        """What a lineage shows of a deployment; None when there is no such one."""
        ...

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that versions name."""
        ...
