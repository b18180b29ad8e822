"""What routers are told: one table, of which each router gets what changed since its last message.

Nothing is queued for a router: it gets the newest of each route, however slow it reads. What is
told was stored before, so that a server that restarts tells the same until it knows better.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from hatoba.v1 import deployment_pb2
from hatoba_plugins.backend import Clock
from hatoba_scheduler.convert import set_time
from hatoba_scheduler.domain.deployments import Served
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.store.deployments import DeploymentStore, KnownRouter

log = structlog.get_logger(__name__)

SILENT = 15.0
"""Seconds after which a router that says nothing is not waited for any more."""
COMES_BACK = 30.0
"""The same for routers of before our start: they have to find that we are there, and where."""
Response = deployment_pb2.WatchDeploymentsResponse


class AccessSource(Protocol):
    """Who may ask for predictions."""

    def access(self) -> list[TokenRecord]:
        """All tokens that may."""
        ...

    def on_access(self, notify: Callable[[], None]) -> Callable[[], None]:
        """Call `notify` whenever that changes; the result takes it back."""
        ...


@dataclass(slots=True)
class _Entry:
    """One deployment's route, and since which cursor routers are told of it."""

    route: deployment_pb2.Route
    cursor: int
    names: frozenset[str]


@dataclass(eq=False, slots=True)
class Seat:
    """A router: one that is connected, or was, so that it may still act by what it was told."""

    url: str
    router: str
    heard: float
    """Monotonic time of its last word; of one that has not come back, as if it had spoken."""
    acked: int = 0
    session: Session | None = None


@dataclass(eq=False, slots=True)
class Session:
    """One open stream of a router."""

    seat: Seat
    sent: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def close(self) -> None:
        """End the stream."""
        self.closed = True
        self.wake.set()


class RouteFeed:
    """The table of all routes, and the routers that follow it."""

    def __init__(self, store: DeploymentStore, access: AccessSource, clock: Clock) -> None:
        self._store = store
        self._access = access
        self._clock = clock
        self._cursor = 0
        self._began = 0
        """What was told before this cursor was told by an earlier server."""
        self._access_cursor = 0
        self._entries: dict[str, _Entry] = {}
        self._removed: dict[str, int] = {}
        self._absent: dict[str, dict[str, int]] = defaultdict(dict)
        self._seats: dict[str, Seat] = {}
        self._listeners: list[Callable[[], None]] = []

    async def recover(self) -> None:
        """Begin above every cursor that was ever told, and expect the routers that were known."""
        newest = await self._store.newest_cursor()
        self._began = max(newest + 1, round(self._clock.time() * 1e6))
        self._cursor = self._access_cursor = self._began
        heard = self._clock.monotonic() + COMES_BACK - SILENT
        for known in await self._store.routers():
            self._seats[known.url] = Seat(known.url, known.router, heard)
        self._access.on_access(self._access_changed)

    def on_news(self, notify: Callable[[], None]) -> None:
        """Call `notify` whenever a router came, went or acknowledged something."""
        self._listeners.append(notify)

    # -- the table ------------------------------------------------------------------------------

    def restore(self, uid: str, route: deployment_pb2.Route, served: Sequence[Served]) -> None:
        """A route as routers had it before the server started."""
        names = frozenset(one.name for one in served)
        self._entries[uid] = _Entry(route, self._cursor, names)

    async def publish(
        self, uid: str, route: deployment_pb2.Route, served: Sequence[Served]
    ) -> None:
        """Store and tell a route, if it is not what routers have. Raises StorageFailed."""
        known = self._entries.get(uid)
        if known is not None and known.route == route:
            return
        cursor = self._next()
        await self._store.put_route(uid, cursor, served)
        # Others may have been told meanwhile: what is told now is newer than all of it.
        cursor = self._next()
        names = frozenset(one.name for one in served)
        gone = (known.names if known is not None else frozenset()) - names
        absent = self._absent[uid]
        absent.update(dict.fromkeys(gone, cursor))
        for name in names:
            absent.pop(name, None)
        self._entries[uid] = _Entry(route, cursor, names)
        self._removed.pop(route.deployment, None)
        self._wake_all()

    async def withdraw(self, uid: str) -> None:
        """Take a deployment out of the table. Raises StorageFailed."""
        known = self._entries.get(uid)
        if known is None:
            return
        await self._store.put_route(uid, self._next(), ())
        cursor = self._next()
        del self._entries[uid]
        self._absent[uid].update(dict.fromkeys(known.names, cursor))
        self._removed[known.route.deployment] = cursor
        self._wake_all()

    def forget(self, uid: str, there: Collection[str] = ()) -> None:
        """Of a deployment's replicas only these are left; the others were told of for nothing."""
        absent = self._absent.get(uid, {})
        for name in absent.keys() - set(there):
            del absent[name]
        if not absent:
            self._absent.pop(uid, None)

    def unrouted(self, uid: str, replicas: Iterable[str]) -> list[str]:
        """Those of the replicas that no router sends anything any more."""
        entry = self._entries.get(uid)
        named = entry.names if entry is not None else frozenset()
        absent, acked = self._absent.get(uid, {}), self._acknowledged()
        return [
            one for one in replicas if one not in named and absent.get(one, self._began) <= acked
        ]

    def all_unrouted(self, uid: str) -> bool:
        """No router sends anything to a deployment that was withdrawn."""
        if uid in self._entries:
            return False
        newest = max(self._absent.get(uid, {}).values(), default=self._began)
        return newest <= self._acknowledged()

    def weights(self, uid: str) -> dict[int, int]:
        """A deployment's shares by revision, as routers have them."""
        entry = self._entries.get(uid)
        return {one.revision: one.weight for one in entry.route.targets} if entry else {}

    def urls(self, project: str, name: str) -> list[str]:
        """Where routers that are there answer for a deployment."""
        path = name if project == DEFAULT_PROJECT else f"p/{project}/{name}"
        seats = sorted(seat.url for seat in self._seats.values() if seat.session is not None)
        return [f"{url}/{path}" for url in seats if url]

    def _acknowledged(self) -> int:
        """The cursor that every router that counts acts by, or a newer one."""
        now = self._clock.monotonic()
        for key, seat in list(self._seats.items()):
            if now - seat.heard >= SILENT and seat.session is None:
                del self._seats[key]
        counted = [seat.acked for seat in self._seats.values() if now - seat.heard < SILENT]
        return min(counted, default=self._cursor)

    def _next(self) -> int:
        self._cursor = max(self._cursor + 1, round(self._clock.time() * 1e6))
        return self._cursor

    def _access_changed(self) -> None:
        self._access_cursor = self._next()
        self._wake_all()

    def _wake_all(self) -> None:
        for seat in self._seats.values():
            if seat.session is not None:
                seat.session.wake.set()

    # -- routers --------------------------------------------------------------------------------

    async def open(self, hello: deployment_pb2.WatchDeploymentsRequest) -> Session:
        """Begin a router's stream; an older one of the same router ends."""
        key = hello.url or hello.router
        former = self._seats.get(key)
        if former is not None and former.session is not None:
            former.session.close()
        seat = Seat(hello.url, hello.router, self._clock.monotonic())
        if former is not None and former.router == hello.router:
            seat.acked = former.acked
        session = seat.session = Session(seat)
        self._seats[key] = seat
        log.info("router.connected", router=hello.router, url=hello.url)
        self._tell()
        await self._remember(seat)
        return session

    async def left(self, session: Session) -> None:
        """A router's stream ended; it acts by what it was told last."""
        session.close()
        if session.seat.session is not session:
            return
        session.seat.session = None
        log.info("router.left", router=session.seat.router)
        self._tell()
        await self._remember(session.seat)

    async def _remember(self, seat: Seat) -> None:
        if seat.url:
            last_seen = round(self._clock.time() * 1e6)
            await self._store.put_router(KnownRouter(seat.url, seat.router, last_seen))

    def heard(self, session: Session, acked: int) -> None:
        """A router said something; it acts by this cursor."""
        seat = session.seat
        seat.heard = self._clock.monotonic()
        if seat.acked < acked <= self._cursor:
            seat.acked = acked
        self._tell()

    def _tell(self) -> None:
        for notify in self._listeners:
            notify()

    async def messages(self, session: Session) -> AsyncIterator[Response]:
        """The whole table, then what changes, until the session is closed."""
        while not session.closed:
            session.wake.clear()
            message = self._message(session)
            if message is not None:
                yield message
            else:
                await session.wake.wait()

    def _message(self, session: Session) -> Response | None:
        since = session.sent
        if since >= self._cursor:
            return None
        session.sent = self._cursor
        message = Response(cursor=self._cursor, complete=not since)
        message.routes.extend(one.route for one in self._entries.values() if one.cursor > since)
        if since:
            message.removed.extend(name for name, at in self._removed.items() if at > since)
        if self._access_cursor > since:
            message.access_changed = True
            message.access.extend(_access(one) for one in self._access.access())
        self._drop_told()
        return message

    def _drop_told(self) -> None:
        """Forget removals that every open stream has told."""
        sent = [seat.session.sent for seat in self._seats.values() if seat.session is not None]
        oldest = min(sent, default=self._cursor)
        for name in [name for name, at in self._removed.items() if at <= oldest]:
            del self._removed[name]

    def close(self) -> None:
        """End all streams: the server stops."""
        for seat in self._seats.values():
            if seat.session is not None:
                seat.session.close()


def _access(record: TokenRecord) -> deployment_pb2.Access:
    out = deployment_pb2.Access(
        sha256=record.sha256, deployment=record.deployment, principal=record.principal
    )
    set_time(out.expire_time, record.expire_time)
    return out
