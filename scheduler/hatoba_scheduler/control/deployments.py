"""The book of deployments: as stored, as seen, and as routers know them.

Every change goes through it. What is decided is written under its guard, then remembered, then
told: to routers, to those who watch, and to the loop of the deployment's backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from hatoba.v1 import deployment_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.routes import RouteFeed
from hatoba_scheduler.convert_deployments import (
    NOBODY_YET,
    FleetShown,
    Shown,
    deployment_to_proto,
    hex_uid,
    is_for_devices,
    route_to_proto,
)
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.deployments import (
    Change,
    Deployment,
    Figures,
    Revision,
    RolloutState,
    SeenSet,
    Served,
)
from hatoba_scheduler.domain.device_rollouts import Row
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.records import Cause, LabelRequirement
from hatoba_scheduler.domain.references import BadReference, parse
from hatoba_scheduler.domain.rollouts import Now, Refused, View, observed, step
from hatoba_scheduler.domain.routing import routes, served
from hatoba_scheduler.domain.states import CauseCode, Origin
from hatoba_scheduler.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Resource,
)
from hatoba_scheduler.services.requests import mismatch
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Stale
from hatoba_scheduler.store.deployments import KEPT_REVISIONS, DeploymentStore, Kept, Taken
from hatoba_scheduler.whole import whole

log = structlog.get_logger(__name__)

STEPS_AT_ONCE = 50
"""More changes than a roll-out has states never follow from one observation."""
Decide = Callable[[View], Change | None]


class FleetSeen(Protocol):
    """What is seen of a deployment to devices."""

    def shown(self) -> FleetShown:
        """Where they stand now."""
        ...

    def lost_by(self, selector: Sequence[LabelRequirement]) -> list[str]:
        """Devices that it is meant for, and would not be with this selector, by name."""
        ...


@dataclass(eq=False, slots=True)
class Live:
    """One deployment, and what is known of it beyond its record."""

    deployment: Deployment
    revisions: dict[int, Revision]
    served: tuple[Served, ...] = ()
    """As routers were told last."""
    seen: SeenSet | None = None
    settled: bool = False
    """Its backend has told all that it will about replicas of before our start."""
    figures: Figures = Figures()
    figures_of: tuple[int, RolloutState, int] | None = None
    restarts: dict[str, int] = field(default_factory=dict)
    problem: Cause | None = None
    """Why its backend does not do what it is asked."""
    gone: bool = False
    fleet: FleetSeen | None = None
    """Of one to devices: where these stand. Routers know nothing of it."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def uid(self) -> str:
        """Its uid."""
        return self.deployment.uid

    def tell(self) -> None:
        """Wake those who watch it."""
        self.news.set()
        self.news = asyncio.Event()


class DeploymentBook:
    """All deployments of this installation, by uid."""

    def __init__(self, store: DeploymentStore, feed: RouteFeed, clock: Clock) -> None:
        self._store = store
        self._feed = feed
        self._clock = clock
        self._since = self._micros()
        self._all: dict[str, Live] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._hex: dict[str, str] = {}
        self._listeners: list[Callable[[Live], None]] = []

    async def recover(self) -> None:
        """Load what there is; routers go on with what they were told last."""
        for kept in await self._store.load():
            live = self._add(kept)
            if not live.deployment.deleting and not is_for_devices(live.deployment):
                self._feed.restore(live.uid, self._route(live), live.served)

    def _add(self, kept: Kept) -> Live:
        one = kept.deployment
        live = Live(one, {r.revision: r for r in kept.revisions}, kept.served)
        self._all[one.uid] = live
        self._names[one.project, one.name] = one.uid
        self._hex[hex_uid(one.uid)] = one.uid
        return live

    def listen(self, listener: Callable[[Live], None]) -> None:
        """Tell this listener of every deployment that changed or is new."""
        self._listeners.append(listener)

    def now(self, actor: str = "system") -> Now:
        """The time, and who asks."""
        return Now(self._micros(), actor)

    def _micros(self) -> int:
        return round(self._clock.time() * 1e6)

    def served_by(self, backends: Collection[str]) -> None:
        """These backends are open; deployments of others say why nothing becomes of them."""
        for live in self._all.values():
            backend = live.deployment.backend
            if backend not in backends:
                text = f"Backend {backend!r} is not open; `hatoba backends list` says why."
                live.problem = Cause(
                    CauseCode.BACKEND_FAILED, Origin.INFRASTRUCTURE, text, retryable=True
                )

    # -- looking --------------------------------------------------------------------------------

    def all(self) -> list[Live]:
        """All deployments."""
        return list(self._all.values())

    def of_project(self, project: str) -> list[Live]:
        """Deployments of a project by name."""
        found = [one for one in self._all.values() if one.deployment.project == project]
        return sorted(found, key=lambda one: one.deployment.name)

    def named(self, text: str, project: str, field: str = "name") -> Live:
        """The deployment that somebody named. Raises InvalidArgument, NotFound."""
        try:
            ref = parse(text, "deployments", project or DEFAULT_PROJECT)
        except BadReference as error:
            raise InvalidArgument.field(field, str(error), value=text) from None
        uid = self._names.get((ref.project, ref.name))
        if uid is None:
            raise NotFound(
                f"no deployment {ref.name!r} in project {ref.project!r}; "
                "`hatoba deployments list` names those there are",
                resource=Resource("deployment", ref.resource),
            )
        return self._all[uid]

    def find(self, text: str, project: str, field: str = "deployment") -> Live | None:
        """The same, None where there is none. Raises InvalidArgument."""
        try:
            return self.named(text, project, field)
        except NotFound:
            return None

    def by_uid(self, uid: str) -> Live | None:
        """A deployment by uid, with dashes or without."""
        return self._all.get(self._hex.get(uid, uid))

    def by_resource(self, name: str) -> Live | None:
        """A deployment by resource name."""
        parts = name.split("/")
        uid = self._names.get((parts[1], parts[3])) if len(parts) == 4 else None
        return self._all.get(uid) if uid is not None else None

    def view(self, live: Live) -> View:
        """What decisions are made from."""
        seen = live.seen
        if seen is not None and seen.problem is None and live.problem is not None:
            seen = replace(seen, problem=live.problem)
        return View(
            live.deployment,
            live.revisions,
            seen,
            live.figures if live.figures_of == _place(live.deployment) else Figures(),
            live.restarts,
            self._since,
        )

    def shown(self, live: Live) -> deployment_pb2.Deployment:
        """A deployment as callers see it."""
        one = live.deployment
        devices = is_for_devices(one)
        urls = () if devices else self._feed.urls(one.project, one.name)
        weights = self._feed.weights(one.uid)
        fleet = NOBODY_YET if devices else None
        if live.fleet is not None:
            fleet = live.fleet.shown()
        shown = Shown(self.view(live), weights, urls, live.problem, self._micros(), fleet)
        return deployment_to_proto(shown)

    # -- changing -------------------------------------------------------------------------------

    async def create(
        self, change: Change, revision: Revision, request: RequestKey | None
    ) -> tuple[Live, bool]:
        """Store a new deployment; True: by an earlier call with this key. Raises AlreadyExists,
        Aborted, Unavailable."""
        live, again = await whole(self._make(change, revision, request))
        if not again:
            await self.reroute(live)
        return live, again

    async def _make(
        self, change: Change, revision: Revision, request: RequestKey | None
    ) -> tuple[Live, bool]:
        answer = await self._store.apply(change, request)
        one = change.deployment
        if isinstance(answer, Duplicate):
            known = self.by_uid(answer.resource)
            if known is None:
                raise NotFound(f"deployment {one.name!r}, which this call made, was removed")
            return known, True
        if answer is not None:
            raise _refusal(answer, one, request)
        live = self._add(Kept(one, ()))
        live.settled = True
        live.revisions[revision.revision] = revision
        self._take(live, change)
        return live, False

    async def change(
        self,
        live: Live,
        decide: Decide,
        request: RequestKey | None = None,
        *,
        rows: Sequence[Row] = (),
    ) -> bool:
        """Carry out what `decide` makes of the deployment as it is now, `rows` of devices with it;
        False: it was done before, or there was nothing to do. Raises FailedPrecondition, NotFound,
        Aborted, Unavailable."""
        async with live.lock:
            if live.gone:
                raise NotFound(f"deployment {live.deployment.name!r} is gone")
            try:
                change = decide(self.view(live))
            except Refused as refused:
                raise precondition(live.deployment, str(refused)) from None
            if change is None:
                return False
            if not await whole(self._write(live, change, request, rows)):
                return False
        await self.reroute(live)
        return True

    async def _write(
        self, live: Live, change: Change, request: RequestKey | None, rows: Sequence[Row]
    ) -> bool:
        answer = await self._store.apply(change, request, rows)
        if isinstance(answer, Duplicate):
            return False
        if answer is not None:
            raise _refusal(answer, live.deployment, request)
        self._take(live, change)
        return True

    def _take(self, live: Live, change: Change) -> None:
        """Remember what was written, and tell of it."""
        before, after = live.deployment.rollout, change.deployment.rollout
        live.deployment = change.deployment
        live.revisions |= {one.revision: one for one in change.revisions}
        oldest = change.deployment.newest - KEPT_REVISIONS
        for number, one in list(live.revisions.items()):
            if not one.in_use and number <= oldest:
                del live.revisions[number]
        begun = after is not None and (before is None or before.number != after.number)
        if begun and live.seen is not None:
            live.restarts = {one.name: one.restarts for one in live.seen.replicas}
        self._tell(live)

    def _tell(self, live: Live) -> None:
        live.tell()
        for listener in self._listeners:
            listener(live)

    async def remove(self, live: Live) -> None:
        """Nothing of a deployment is left: forget it."""
        async with live.lock:
            await self._store.remove(live.uid)
            live.gone = True
        del self._all[live.uid]
        del self._names[live.deployment.project, live.deployment.name]
        del self._hex[hex_uid(live.uid)]
        self._feed.forget(live.uid)
        self._tell(live)

    # -- what happens ---------------------------------------------------------------------------

    def saw(self, live: Live, seen: SeenSet) -> SeenSet | None:
        """Remember what a backend sees; what it saw before."""
        before, live.seen = live.seen, seen
        there = [one.name for one in seen.replicas]
        self._feed.forget(live.uid, there)
        live.restarts = {name: live.restarts[name] for name in there if name in live.restarts}
        live.tell()
        return before

    def reported(self, statistics: Iterable[deployment_pb2.RouteStatistics]) -> None:
        """Count what routers saw of revisions that are rolled out."""
        for told in statistics:
            live = self.by_resource(told.deployment)
            place = _place(live.deployment) if live is not None else None
            if live is None or place is None or live.deployment.active is None:
                continue
            if told.revision != live.deployment.active.to_revision:
                continue
            known = live.figures if live.figures_of == place else Figures()
            live.figures_of = place
            live.figures = Figures(
                known.requests + max(told.requests, 0),
                known.errors + max(told.errors, 0),
                told.last_error or known.last_error,
            )

    async def tend(self, live: Live, before: SeenSet | None = None) -> None:
        """Tell what came and went, take the steps that follow, and let routers know.

        Raises Unavailable when it cannot be stored.
        """
        if live.gone:
            return
        await self.change(live, lambda view: observed(view, before, self.now()))
        for _ in range(STEPS_AT_ONCE):
            if not await self.change(live, lambda view: step(view, self.now())):
                break
        await self.reroute(live)

    async def reroute(self, live: Live) -> None:
        """Have routers know what is so now. Raises Unavailable."""
        async with live.lock:
            if live.gone or is_for_devices(live.deployment):
                return
            if live.deployment.deleting:
                await self._feed.withdraw(live.uid)
                live.served = ()
                return
            found = served(live.deployment, live.seen, live.served, settled=live.settled)
            live.served, before = tuple(found), live.served
            try:
                await self._feed.publish(live.uid, self._route(live), found)
            except BaseException:
                live.served = before
                raise

    def _route(self, live: Live) -> deployment_pb2.Route:
        failed = frozenset(
            number
            for number, one in live.revisions.items()
            if one.cause is not None and one.cause.code is not CauseCode.CANCELLED
        )
        shares = routes(live.deployment, live.served, failed)
        return route_to_proto(live.deployment, shares, live.revisions)

    async def revision(self, live: Live, number: int) -> Revision | None:
        """One revision, also one that is not in memory."""
        return live.revisions.get(number) or await self._store.revision(live.uid, number)


def _place(deployment: Deployment) -> tuple[int, RolloutState, int] | None:
    """Where a roll-out is: figures count from there."""
    rollout = deployment.active
    return (rollout.number, rollout.state, rollout.step) if rollout is not None else None


def outrun(view: View, generation: int, now: Now) -> Change | None:
    """The backend was asked for a newer generation than we remember: go on above it."""
    del now
    one = view.deployment
    if generation < one.generation:
        return None
    return Change(changed(one, version=one.version + 1, generation=generation + 1), one.version)


def precondition(deployment: Deployment, message: str) -> FailedPrecondition:
    """What was asked of it cannot be done now."""
    return FailedPrecondition(
        f"deployment {deployment.name!r}: {message}",
        resource=Resource("deployment", deployment.resource),
    )


def _refusal(
    answer: Stale | Taken | Mismatch, deployment: Deployment, request: RequestKey | None
) -> AlreadyExists | Aborted:
    if isinstance(answer, Taken):
        return AlreadyExists(
            f"there is a deployment {deployment.name!r}; `hatoba deploy --name "
            f"{deployment.name}` changes it",
            resource=Resource("deployment", deployment.resource),
        )
    if isinstance(answer, Mismatch):
        return mismatch(request.request_id if request is not None else "", answer)
    return Aborted(
        f"deployment {deployment.name!r} or its model version was changed meanwhile; "
        "read it again and retry"
    )
