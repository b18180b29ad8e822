"""Everything that is asked of one deployment backend, and everything it says, while it is open.

Deployments are decided upon one after the other, and asked for beside each other: a backend that
hangs over one holds up no other, and no call lasts longer than its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from hatoba_plugins.backend import Clock, DeploymentBackend
from hatoba_plugins.errors import BackendError, Denied, Invalid, NoCapacity, Stale, Throttled
from hatoba_plugins.values import DeploymentItem, Handle, Released, ReplicaSet, Synced
from hatoba_scheduler.control.deployments import DeploymentBook, Live, outrun
from hatoba_scheduler.control.forever import AGAIN, forever
from hatoba_scheduler.control.routes import RouteFeed
from hatoba_scheduler.convert_deployments import (
    ReplicaCredential,
    handle_from,
    handle_text,
    hex_uid,
    seen_of,
    target_of,
)
from hatoba_scheduler.domain.deployments import SeenSet
from hatoba_scheduler.domain.records import Cause
from hatoba_scheduler.domain.rollouts import handled
from hatoba_scheduler.domain.states import CauseCode, Origin
from hatoba_scheduler.errors import HatobaError

log = structlog.get_logger(__name__)

CALL_DEADLINE = 30.0
TICK = 0.25
"""Seconds between looks at what only time moves."""
LONGEST_AGAIN = 30.0
RETIRE_AGAIN = 10.0
UNHEARD = 30.0
"""Seconds after the backend told all it has in which replicas of before stay in the table."""
CALLS_AT_ONCE = 8
_CAUSES: dict[type[BackendError], tuple[CauseCode, Origin]] = {
    NoCapacity: (CauseCode.NO_CAPACITY, Origin.CAPACITY),
    Throttled: (CauseCode.THROTTLED, Origin.INFRASTRUCTURE),
    Invalid: (CauseCode.REFUSED_INVALID, Origin.USER),
    Denied: (CauseCode.REFUSED_DENIED, Origin.POLICY),
}


@dataclass(eq=False, slots=True)
class _Desk:
    """What was asked for one deployment."""

    applied: int = 0
    """The generation that the backend took in since our start."""
    retired: dict[str, float] = field(default_factory=dict)
    not_before: float = 0.0
    failures: int = 0
    busy: bool = False


class DeploymentLoop:
    """One backend's deployments: decided, applied, retired, removed."""

    def __init__(
        self,
        name: str,
        backend: DeploymentBackend,
        book: DeploymentBook,
        feed: RouteFeed,
        clock: Clock,
        credential: ReplicaCredential = lambda uid, revision: "",
    ) -> None:
        """`credential` gives what a revision's replicas read its files with."""
        self.name = name
        self._credential = credential
        self._backend = backend
        self._book = book
        self._feed = feed
        self._clock = clock
        self._desks: dict[str, _Desk] = {}
        self._todo: dict[str, SeenSet | None] = {}
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(CALLS_AT_ONCE)
        self._synced_at: float | None = None
        book.listen(self._changed)
        feed.on_news(self._router_news)

    def recover(self) -> None:
        """After a start every deployment is asked for again."""
        for live in self._own():
            self._add(live)

    def _own(self) -> list[Live]:
        return [one for one in self._book.all() if one.deployment.backend == self.name]

    def _changed(self, live: Live) -> None:
        if live.deployment.backend == self.name:
            self._note_absence(live)
            self._add(live)

    def _note_absence(self, live: Live) -> None:
        """A backend that told all it has, and not this one, has nothing of it."""
        if live.seen is None and self._synced_at is not None:
            live.seen = SeenSet(0)

    def _router_news(self) -> None:
        for live in self._own():
            if live.deployment.deleting or (live.seen is not None and live.seen.leaving):
                self._add(live)

    def _add(self, live: Live, before: SeenSet | None = None) -> None:
        """Have a deployment looked at; what was seen before its first unseen news is kept."""
        if self._todo.get(live.uid) is None:
            self._todo[live.uid] = before
        self._wake.set()

    # -- the loops ------------------------------------------------------------------------------

    async def run(self) -> None:
        """All loops of this backend; ends by cancellation."""
        async with asyncio.TaskGroup() as group:
            for loop in (self._watch_loop, self._tick_loop):
                group.create_task(self._forever(loop), name=f"{self.name}:{loop.__name__}")
            tend = self._forever(lambda: self._tend_loop(group))
            group.create_task(tend, name=f"{self.name}:_tend_loop")

    def _forever(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> Coroutine[Any, Any, None]:
        return forever(loop, self._clock, "deployments", self.name)

    async def _watch_loop(self) -> None:
        """Follow the backend; when the watch ends it is begun anew, and tells everything again."""
        async for item in self._backend.watch():
            self._watched(item)

    def _watched(self, item: DeploymentItem) -> None:
        if isinstance(item, ReplicaSet):
            self._saw(item)
        elif isinstance(item, Synced):
            if self._synced_at is None:
                self._synced_at = self._clock.monotonic()
            for live in self._own():
                self._note_absence(live)
                self._add(live)
        else:
            # Something may have been missed: what was retired may have to be retired again.
            for desk in self._desks.values():
                desk.retired.clear()

    def _saw(self, told: ReplicaSet) -> None:
        live = self._book.by_uid(told.uid)
        if live is None or live.deployment.backend != self.name:
            if told.replicas:
                log.warning("deployment.unknown", backend=self.name, uid=told.uid)
            return
        before = self._book.saw(live, seen_of(told))
        self._add(live, before)

    async def _tick_loop(self) -> None:
        """Look again at what moves with time alone."""
        while True:
            await self._clock.sleep(TICK)
            since = self._synced_at
            late = since is not None and self._clock.monotonic() - since >= UNHEARD
            for live in self._own():
                settles = not live.settled and late
                live.settled = live.settled or settles
                if settles or self._pending(live):
                    self._add(live)

    def _pending(self, live: Live) -> bool:
        desk, one = self._desk(live), live.deployment
        waits = one.active is not None or one.deleting or desk.applied < one.generation
        return waits or bool(live.seen is not None and live.seen.leaving)

    def _desk(self, live: Live) -> _Desk:
        return self._desks.setdefault(live.uid, _Desk())

    async def _tend_loop(self, group: asyncio.TaskGroup) -> None:
        while True:
            while not self._todo:
                self._wake.clear()
                await self._wake.wait()
            uid = next(iter(self._todo))
            before = self._todo.pop(uid)
            live = self._book.by_uid(uid)
            if live is None:
                self._desks.pop(uid, None)
                continue
            await self._tend(live, before)
            desk = self._desk(live)
            if not desk.busy and self._due(live):
                desk.busy = True
                group.create_task(self._call(live, desk), name=f"{self.name}:call:{uid}")

    async def _tend(self, live: Live, before: SeenSet | None) -> None:
        try:
            await self._book.tend(live, before)
        except HatobaError as error:
            log.warning("deployment.not_stored", deployment=live.uid, error=error.message)

    # -- asking the backend ---------------------------------------------------------------------

    def _due(self, live: Live) -> bool:
        desk = self._desk(live)
        if live.gone or self._clock.monotonic() < desk.not_before:
            return False
        if live.deployment.deleting:
            return self._feed.all_unrouted(live.uid)
        return desk.applied < live.deployment.generation or bool(self._to_retire(live))

    def _to_retire(self, live: Live) -> list[str]:
        """Replicas that may end: the backend would, and no router knows them any more."""
        desk, seen = self._desk(live), live.seen
        # What an older generation would end may be wanted again.
        if seen is None or seen.generation < live.deployment.generation:
            return []
        now = self._clock.monotonic()
        desk.retired = {n: at for n, at in desk.retired.items() if n in seen.leaving}
        fresh = [n for n in sorted(seen.leaving) if now - desk.retired.get(n, -1e9) >= RETIRE_AGAIN]
        return self._feed.unrouted(live.uid, fresh)

    async def _call(self, live: Live, desk: _Desk) -> None:
        """One call for one deployment; whatever comes of it is no end of the loop."""
        try:
            async with self._slots, asyncio.timeout(CALL_DEADLINE):
                await self._ask(live, desk)
            desk.failures = 0
            self._note(live, None)
        except Stale as error:
            self._failed(live, desk, error)
            await self._outrun(live, error)
        except TimeoutError:
            self._failed(live, desk, TimeoutError(f"no answer within {CALL_DEADLINE:g} s"))
        except Exception as error:  # noqa: BLE001 - whatever a backend raises, it is asked again
            self._failed(live, desk, error)
        finally:
            desk.busy = False
            if not live.gone:
                self._add(live)

    async def _ask(self, live: Live, desk: _Desk) -> None:
        one = live.deployment
        if one.deleting:
            await self._remove(live, desk)
        elif desk.applied < one.generation:
            target = target_of(one, live.revisions, self._credential)
            handle = await self._backend.apply(target)
            desk.applied = one.generation
            await self._keep_handle(live, handle)
        elif names := self._to_retire(live):
            await self._backend.retire(hex_uid(one.uid), names)
            desk.retired |= dict.fromkeys(names, self._clock.monotonic())

    async def _keep_handle(self, live: Live, handle: Handle) -> None:
        text = handle_text(handle)
        await self._book.change(live, lambda view: handled(view, text, self._book.now()))

    async def _remove(self, live: Live, desk: _Desk) -> None:
        uid = hex_uid(live.uid)
        outcome = await self._backend.remove(uid, handle_from(live.deployment.handle))
        if isinstance(outcome, Released):
            await self._book.remove(live)
            self._desks.pop(live.uid, None)
        else:
            desk.not_before = self._clock.monotonic() + outcome.after

    async def _outrun(self, live: Live, error: Stale) -> None:
        """The backend has a newer generation, as after a restored backup: go on above that."""
        log.warning("deployment.stale", deployment=live.uid, error=str(error))
        if live.seen is not None and not live.deployment.deleting:
            told = live.seen.generation
            try:
                await self._book.change(live, lambda view: outrun(view, told, self._book.now()))
            except HatobaError as refused:
                log.warning("deployment.not_stored", deployment=live.uid, error=refused.message)

    def _failed(self, live: Live, desk: _Desk, error: Exception) -> None:
        desk.failures += 1
        wait = min(AGAIN * 2 ** min(desk.failures - 1, 10), LONGEST_AGAIN)
        if isinstance(error, BackendError) and error.after is not None:
            wait = error.after
        desk.not_before = self._clock.monotonic() + wait
        log.warning("deployment.call.failed", deployment=live.uid, error=repr(error))
        code, origin = _CAUSES.get(
            type(error),  # type: ignore[arg-type]
            (CauseCode.BACKEND_FAILED, Origin.INFRASTRUCTURE),
        )
        said = error.message if isinstance(error, BackendError | HatobaError) else str(error)
        text = f"Backend {self.name!r}: {said or repr(error)}; asked again in {wait:g} s"
        self._note(live, Cause(code, origin, text, True))

    def _note(self, live: Live, problem: Cause | None) -> None:
        if live.problem != problem:
            live.problem = problem
            live.tell()
