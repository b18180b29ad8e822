"""List, then watch: follows all objects of one kind in a namespace, for as long as it is run.

Kubernetes' watches end silently, expire (410), and go quiet when a link is half open. Whatever
happens, what is told is complete: a list takes its place, and what it does not name is gone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

import structlog

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached

log = structlog.get_logger(__name__)

WATCH_SECONDS = 240
"""Seconds after which the API server ends a watch by itself."""
SILENCE = 75.0
"""Seconds without a byte, bookmarks included, after which a link counts as half open."""
BACK_OFF_FIRST, BACK_OFF_MOST = 0.2, 15.0
_GONE = 410
Json = Mapping[str, Any]


class Follower(Protocol):
    """Who is told of objects."""

    def begin(self) -> None:
        """A list begins."""
        ...

    def seen(self, told: Json) -> None:
        """This is how an object is now."""
        ...

    def gone(self, told: Json) -> None:
        """An object was removed; as it was last."""
        ...

    def listed(self) -> None:
        """A list is complete: what it did not name since `begin` is gone."""
        ...

    def missed(self) -> None:
        """What happened in between can only be told by its outcome."""
        ...


class Kind(NamedTuple):
    """What is followed."""

    name: str
    path: str
    selector: str


class _Expired(Exception):
    """The version to watch from is too old: list again."""


class Reflector:
    """Follows one kind."""

    def __init__(self, kube: Kube, kind: Kind, follower: Follower, ctx: BackendContext) -> None:
        self._kube = kube
        self._kind = kind
        self._follower = follower
        self._ctx = ctx
        self._version = ""
        self._failures = 0
        self.problem = ""
        """Why it does not follow now; empty: it does."""
        self.synced = asyncio.Event()
        """It has listed once."""

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
            except _Expired as error:
                log.info("k8s.relist", kind=self._kind.name, reason=str(error))
                self._version = ""
                self._follower.missed()
                await self._ctx.clock.sleep(self._ctx.rng.uniform(0.0, BACK_OFF_FIRST))
            except (Refusal, Unreached) as error:
                await self._back_off(error)

    async def _back_off(self, error: Refusal | Unreached) -> None:
        """Wait longer each time, as long as the server asks, and never in step with others."""
        self._failures += 1
        self.problem = str(error)
        if self._failures == 1 or self._failures % 20 == 0:
            log.warning("k8s.watch_failed", kind=self._kind.name, error=str(error))
        most = min(BACK_OFF_MOST, BACK_OFF_FIRST * 2 ** min(self._failures, 10))
        asked = error.after if isinstance(error, Refusal) else None
        await self._ctx.clock.sleep((asked or 0.0) + self._ctx.rng.uniform(most / 2, most))

    def _well(self) -> None:
        self._failures, self.problem = 0, ""

    # -- list -----------------------------------------------------------------------------------

    async def _list(self) -> None:
        self._follower.begin()
        version = ""
        await self._ctx.budget("list")
        query = {"labelSelector": self._kind.selector}
        try:
            async with aclosing(self._kube.pages(self._kind.path, query)) as pages:
                async for page in pages:
                    version = page["metadata"]["resourceVersion"]
                    for item in page["items"]:
                        self._follower.seen(item)
                    await asyncio.sleep(0)
        except Refusal as error:
            if error.status == _GONE:
                raise _Expired("the list's next page expired") from error
            raise
        self._follower.listed()
        self._version = version
        self._well()
        self.synced.set()

    # -- watch ----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        await self._ctx.budget("watch")
        seconds = WATCH_SECONDS + self._ctx.rng.randrange(60)
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
            "labelSelector": self._kind.selector,
        }
        try:
            async with self._kube.lines(self._kind.path, query, SILENCE) as lines:
                await self._follow(lines)
        except Refusal as error:
            if error.status == _GONE:
                raise _Expired(error.message) from error
            raise

    async def _follow(self, lines: AsyncIterator[bytes]) -> None:
        """Until it ends, silently or not; the next watch goes on from the newest version."""
        self._well()
        async for line in lines:
            self._take(_decoded(line))

    def _take(self, event: Json) -> None:
        kind, told = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            raise _Expired(str(told.get("message") or told))
        self._version = told["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            self._follower.gone(told)
        else:
            self._follower.seen(told)


def _decoded(line: bytes) -> Json:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise _Expired(f"not an event: {line[:100]!r}") from error
    if not isinstance(event, dict):
        raise _Expired(f"not an event: {line[:100]!r}")
    return event
