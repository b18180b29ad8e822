"""Where requests go, and who may ask: the server's table, as the router goes by it.

Counts of requests in flight live with the replicas here and outlast changes of the table.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from yarl import URL

from hatoba.v1 import deployment_pb2
from hatoba_worker.router import replies

DEFAULT_PROJECT = "default"
MAX_BODY = 16 << 20
MAX_QUEUE = 64
TIMEOUT = 60.0
FIRST_REST = 0.05
LONGEST_REST = 2.0


class Caller(NamedTuple):
    """What a token opens. `expires` in seconds since 1970; an empty `deployment` means all."""

    deployment: str
    expires: float
    principal: str


class Replica:
    """One process that answers."""

    __slots__ = (
        "_refusals",
        "_rests_until",
        "_urls",
        "address",
        "gone",
        "in_flight",
        "name",
        "server_name",
    )

    def __init__(self, name: str, address: str, server_name: str = "") -> None:
        self.name = name
        self.address = address
        self.server_name = server_name
        """Name in the certificate that it shows; empty: it answers in plain text."""
        self.in_flight = 0
        self.gone = False
        """Another one answered at its address; so it stays until the server names it again."""
        self._refusals = 0
        self._rests_until = 0.0
        self._urls: dict[str, URL] = {}

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it another."""
        return self.name, self.address, self.server_name

    def url(self, path: str, query: str) -> URL:
        """Where one of its paths is."""
        found = self._urls.get(path)
        if found is None:
            scheme = "https" if self.server_name else "http"
            found = self._urls[path] = URL(f"{scheme}://{self.address}/{path}", encoded=True)
        return found if not query else URL(f"{found}?{query}", encoded=True)

    def rests(self, now: float) -> bool:
        """Whether it is set aside because it refused connections."""
        return now < self._rests_until

    def refused(self, now: float) -> None:
        """It could not be connected to: others get what comes for a moment, twice as long each
        time."""
        rest = min(FIRST_REST * 2**self._refusals, LONGEST_REST)
        self._refusals = min(self._refusals + 1, 16)
        self._rests_until = now + rest

    def connected(self) -> None:
        """It takes connections."""
        self._refusals = 0
        self._rests_until = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """One revision of a route; `model` is how people write its version (`digits:7`)."""

    revision: int
    weight: int
    model_version: str
    model: str
    replicas: tuple[Replica, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request goes."""

    target: Target
    replica: Replica


@dataclass(frozen=True, slots=True)
class Limits:
    """What is accepted; bytes and seconds."""

    max_body: int
    max_queue: int
    timeout: float


@dataclass(frozen=True, slots=True)
class Route:
    """One deployment; `name` is how people call it."""

    deployment: str
    project: str
    name: str
    targets: tuple[Target, ...]
    limits: Limits
    capture_dataset: str
    capture_rate: float

    def pick(self, now: float, rng: Random, tried: Collection[Replica] = ()) -> Choice:
        """A revision by weight, and of its replicas the one that has least in flight.

        Raises Refusal: 429 when all are busy, 503 when there is none. Those in `tried`, those that
        are gone and, as long as there are others, those that refused connections a moment ago are
        left out.
        """
        untried = [
            (target, [one for one in target.replicas if not one.gone and one not in tried])
            for target in self.targets
            if target.weight > 0
        ]
        awake = [
            (target, [one for one in ready if not one.rests(now)]) for target, ready in untried
        ]
        # One that refused may be back: asking it costs less than refusing the request.
        known = awake if any(ready for _, ready in awake) else untried
        most = self.limits.max_queue
        free = [(target, [one for one in ready if one.in_flight < most]) for target, ready in known]
        able = [(target, ready) for target, ready in free if ready]
        if not able:
            raise self._unable(sum(len(ready) for _, ready in known))
        target, ready = _by_weight(able, rng)
        return Choice(target, _idlest(ready, rng))

    def _unable(self, busy: int) -> replies.Refusal:
        if busy:
            return replies.all_busy(busy, self.limits.max_queue)
        return replies.none_ready(self.name)


def _by_weight(
    able: list[tuple[Target, list[Replica]]], rng: Random
) -> tuple[Target, list[Replica]]:
    if len(able) == 1:
        return able[0]
    at = rng.random() * sum(target.weight for target, _ in able)
    for found in able:
        at -= found[0].weight
        if at < 0:
            return found
    return able[-1]


def _idlest(ready: list[Replica], rng: Random) -> Replica:
    if len(ready) == 1:
        return ready[0]
    least = min(one.in_flight for one in ready)
    return rng.choice([one for one in ready if one.in_flight == least])


class Table:
    """All routes and callers."""

    def __init__(self) -> None:
        self.cursor = 0
        self._messages: dict[str, deployment_pb2.Route] = {}
        self._routes: dict[str, Route] = {}
        self._by_path: dict[str, Route] = {}
        self._access: list[deployment_pb2.Access] = []
        self._callers: dict[str, Caller] = {}

    @property
    def routes(self) -> Collection[Route]:
        """Every route."""
        return self._routes.values()

    def route(self, path: str) -> Route | None:
        """The route at `/NAME` or `/p/PROJECT/NAME`."""
        return self._by_path.get(path)

    def current(self, route: Route) -> Route | None:
        """The route of the same deployment as it is now; None when that is no more."""
        return self._routes.get(route.deployment)

    def caller(self, sha256: str, now: float) -> Caller | None:
        """Who shows a token of this digest (hex); None for one that opens nothing at `now`."""
        found = self._callers.get(sha256)
        return found if found is not None and now < found.expires else None

    def apply(self, message: deployment_pb2.WatchDeploymentsResponse) -> list[str]:
        """Go by what the server says; the names of deployments that are no more."""
        gone = set(message.removed)
        if message.complete:
            gone |= self._routes.keys() - {route.deployment for route in message.routes}
        for name in gone:
            self._messages.pop(name, None)
            self._routes.pop(name, None)
        for route in message.routes:
            self._messages[route.deployment] = route
            self._routes[route.deployment] = _route(route, self._routes.get(route.deployment))
        self._by_path = dict(_paths(self._routes.values()))
        if message.access_changed:
            self._access = list(message.access)
            self._callers = {access.sha256: _caller(access) for access in message.access}
        self.cursor = message.cursor
        return sorted(gone)

    def message(self) -> deployment_pb2.WatchDeploymentsResponse:
        """All of it as one message, from which `apply` makes the same again."""
        return deployment_pb2.WatchDeploymentsResponse(
            cursor=self.cursor,
            complete=True,
            routes=self._messages.values(),
            access=self._access,
            access_changed=True,
        )


def _paths(routes: Iterable[Route]) -> Iterable[tuple[str, Route]]:
    for route in routes:
        yield f"/p/{route.project}/{route.name}", route
        if route.project == DEFAULT_PROJECT:
            yield f"/{route.name}", route


def _route(message: deployment_pb2.Route, known: Route | None) -> Route:
    replicas = {
        one.key: one
        for target in (known.targets if known else ())
        for one in target.replicas
        if not one.gone
    }
    _, project, _, name = message.deployment.split("/")
    limits = message.limits
    return Route(
        deployment=message.deployment,
        project=project,
        name=name,
        targets=tuple(_target(target, replicas) for target in message.targets),
        limits=Limits(
            limits.max_body_bytes or MAX_BODY,
            limits.max_queue or MAX_QUEUE,
            limits.timeout.ToMilliseconds() / 1000 or TIMEOUT,
        ),
        capture_dataset=message.capture.dataset,
        capture_rate=message.capture.rate if message.capture.dataset else 0.0,
    )


def _target(
    message: deployment_pb2.RouteTarget, known: Mapping[tuple[str, str, str], Replica]
) -> Target:
    found = (Replica(one.name, one.address, one.server_name) for one in message.replicas)
    replicas = tuple(known.get(one.key) or one for one in found)
    return Target(
        message.revision,
        message.weight,
        message.model_version,
        short_model(message.model_version),
        replicas,
    )


def short_model(resource: str) -> str:
    """`projects/P/models/digits/versions/7` as `digits:7`; anything else as it is."""
    parts = resource.split("/")
    return f"{parts[3]}:{parts[5]}" if len(parts) == 6 else resource


def _caller(access: deployment_pb2.Access) -> Caller:
    ends = access.expire_time.ToMicroseconds() / 1e6
    expires = ends if access.HasField("expire_time") else math.inf
    return Caller(access.deployment, expires, access.principal)
