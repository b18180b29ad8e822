"""The part of the store that keeps deployments, what routers were told, and what they told.

Mutating calls return after the commit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol

from hatoba_scheduler.domain.deployments import (
    Change,
    Deployment,
    DeploymentEvent,
    Prediction,
    Revision,
    Served,
)
from hatoba_scheduler.domain.device_rollouts import Row
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Stale

KEPT_REVISIONS = 20
"""So many of the newest revisions come with `load`, beside those in use."""
KEPT_EVENTS = 1_000
"""Of one deployment; older ones are dropped."""
KEPT_PREDICTIONS = 100_000
KEPT_BATCHES = 100_000


class Taken(Enum):
    """There is a deployment of that name."""

    TAKEN = auto()


@dataclass(frozen=True, slots=True)
class Kept:
    """A deployment as it was stored last, and the replicas that routers were told of last."""

    deployment: Deployment
    revisions: tuple[Revision, ...]
    served: tuple[Served, ...] = ()


class KnownRouter(NamedTuple):
    """A router that was connected once: where it answers, who it was, when it was heard last."""

    url: str
    router: str
    last_seen: Micros


class DeploymentStore(Protocol):
    """Deployments of one installation. See the module."""

    async def load(self) -> list[Kept]:
        """All deployments with their newest roll-outs; revisions in use and the newest ones."""
        ...

    async def apply(
        self, change: Change, request: RequestKey | None = None, rows: Sequence[Row] = ()
    ) -> Stale | Taken | Duplicate | Mismatch | None:
        """Write a decided change with its events, and rows of its roll-out to devices, all or
        nothing; None: it was written.

        `expected` 0 makes the deployment: Taken where its name is. A request key that is known
        changes nothing.
        """
        ...

    async def remove(self, uid: str) -> None:
        """Forget a deployment of which nothing is left, its revisions and events too."""
        ...

    async def revision(self, uid: str, number: int) -> Revision | None:
        """One revision."""
        ...

    async def revisions(self, uid: str, below: int, limit: int) -> list[Revision]:
        """Revisions, newest first, below a number (0: from the newest)."""
        ...

    async def events(self, uid: str, below: int, limit: int) -> list[DeploymentEvent]:
        """Kept events, newest first, below a position (0: from the newest)."""
        ...

    async def put_route(self, uid: str, cursor: int, served: Sequence[Served]) -> None:
        """Keep what routers are about to be told of a deployment."""
        ...

    async def newest_cursor(self) -> int:
        """The highest cursor of a kept route; 0 for none."""
        ...

    async def put_router(self, router: KnownRouter) -> None:
        """Keep a router that is connected, or was; those not heard of for a day are dropped."""
        ...

    async def routers(self) -> list[KnownRouter]:
        """All kept routers."""
        ...

    async def taken(self, batch: str) -> bool:
        """Whether a report with this id was stored before."""
        ...

    async def add_predictions(self, batch: str, predictions: Sequence[Prediction]) -> None:
        """Store a report, once for its id. Only the newest KEPT_PREDICTIONS stay."""
        ...

    async def prediction(self, trace_id: str) -> Prediction | None:
        """The newest kept prediction of a trace."""
        ...

    async def manifest_roots(self) -> set[str]:
        """Digests of all manifests that revisions in use name."""
        ...
