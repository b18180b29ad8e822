"""Deployments on ECS: one service for each revision.

ECS keeps the tasks of a service running and spreads them; which revision has how many is decided
here, step by step, for ECS knows neither our weights nor what routers still send to. Within one
revision another definition (other credentials, another address of the server) is rolled out by ECS
itself. See docs/decisions.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import cast

from hatoba.v1 import common_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.aws.logs import CloudWatchLogs
from hatoba_plugins.aws.tags import CLUSTER, mapped
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.ecs.definitions import log_stream
from hatoba_plugins.backends.ecs.fleet import Fleet
from hatoba_plugins.backends.ecs.kept import Deployed
from hatoba_plugins.backends.ecs.names import UID_TAG, parse_service
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.errors import BackendError, Invalid, Stale, Unsupported
from hatoba_plugins.feed import Feed
from hatoba_plugins.rolling import parse_name
from hatoba_plugins.values import (
    DeploymentItem,
    Handle,
    LogChunk,
    NotYet,
    OwnedDeployment,
    Released,
    ReleaseOutcome,
    ReplicaSet,
    Target,
)

log = logging.getLogger(__name__)

HANDLE_VERSION = 1
MARKS = 100_000
"""Removed deployments that are remembered, to refuse a late apply."""
ASK_AGAIN = 0.5
STREAMS = ("stdout", "stderr")
SETTLED_EVERY = 5
"""What is settled is looked at only each so many polls."""


class EcsDeployments:
    """The deployment role."""

    def __init__(
        self, fleet: Fleet, options: EcsOptions, ctx: BackendContext, logs: CloudWatchLogs | None
    ) -> None:
        self._fleet = fleet
        self._options = options
        self._ctx = ctx
        self._logs = logs
        self._feed: Feed[DeploymentItem] = Feed()
        self._kept: dict[str, Deployed] = {}
        self._removed: OrderedDict[str, None] = OrderedDict()

    # -- what the core asks ---------------------------------------------------------------------

    async def apply(self, target: Target) -> Handle:
        """Begin with it; the rest follows. Raises Stale, Invalid, Conflict, Throttled and so on."""
        self._require_newest(target)
        definitions = await self._fleet.definitions(target)
        found = await self._fleet.discover(target)
        self._require_newest(target)
        known = self._kept.get(target.uid)
        if known is None:
            known = self._kept[target.uid] = Deployed(target)
        async with known.lock:
            before = known.target, dict(known.definitions)
            known.take(target, definitions, found)
            self._tell(known)
            try:
                await self._fleet.converge(known)
            except BackendError:
                if not known.touched:
                    self._take_back(known, *before)
                    raise
            except Unanswered as error:
                log.info("deployment %s: perhaps it was begun: %s", target.uid, error)
            self._tell(known)
        return Handle(HANDLE_VERSION, target.uid)

    def _require_newest(self, target: Target) -> None:
        known = self._kept.get(target.uid)
        if target.uid in self._removed:
            raise Stale(f"deployment {target.uid} was removed")
        if known and target.generation < known.target.generation:
            raise Stale(f"generation {known.target.generation} of {target.uid} was taken in before")

    def _take_back(self, known: Deployed, target: Target, definitions: dict[int, str]) -> None:
        """Nothing happened: it is as it was."""
        if known.target is target:
            self._kept.pop(target.uid, None)
            self._feed.publish([ReplicaSet(target.uid, 0, ())])
            return
        known.target, known.definitions = target, definitions
        self._tell(known)

    async def watch(self) -> AsyncIterator[DeploymentItem]:
        """All there are, Synced, then each that changes."""
        feed = cast(AsyncGenerator[DeploymentItem, None], self._feed.watch(self._all))
        async with aclosing(feed) as items:
            async for item in items:
                yield item

    def _all(self) -> list[ReplicaSet]:
        return [self._fleet.seen(known) for known in self._kept.values()]

    async def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """Those that leave are to drain and end."""
        known = self._kept.get(uid)
        if known is None or known.removed:
            return
        async with known.lock:
            self._fleet.retire(known, replicas)
            await self._fleet.converge(known)
            self._tell(known)

    async def remove(self, uid: str, handle: Handle | None) -> ReleaseOutcome:
        """Delete its services. Released when no task of theirs is left."""
        del handle
        self._removed[uid] = None
        while len(self._removed) > MARKS:
            self._removed.popitem(last=False)
        known = self._kept.get(uid)
        if known is not None:
            async with known.lock:
                known.removed = True
                left = await self._fleet.remove(uid, known)
                self._tell(known)
        else:
            left = await self._fleet.remove(uid, None)
        if left:
            return NotYet(uid, ASK_AGAIN)
        if self._kept.pop(uid, None) is not None and known is not None:
            self._feed.publish([ReplicaSet(uid, known.target.generation, ())])
        return Released(uid)

    async def owned(self, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        """All that have a service here, and those that want none now."""
        if cluster_id != self._ctx.cluster_id:
            return
        uids = dict.fromkeys(self._kept)
        async for service in self._fleet.all_services():
            tags, name = mapped(service.get("tags") or []), parse_service(service["serviceName"])
            if name is not None and tags.get(CLUSTER) == cluster_id and UID_TAG in tags:
                uids[name.uid] = None
        for uid in uids:
            known = self._kept.get(uid)
            generation = known.target.generation if known else 0
            yield OwnedDeployment(uid, cluster_id, generation, Handle(HANDLE_VERSION, uid))

    async def replica_logs(
        self, replica: str, stream: str, tail_lines: int
    ) -> AsyncIterator[LogChunk]:
        """The last lines of its tasks, both streams as one. Raises Unsupported, Invalid, Retry."""
        if self._logs is None:
            raise Unsupported("replica_logs")
        log = log_stream(self._newest_task(replica))
        if stream in STREAMS:
            yield await self._logs.tail(replica, log, stream, tail_lines)

    def _newest_task(self, replica: str) -> str:
        name = parse_name(replica)
        known = self._kept.get(name.uid) if name else None
        for revision in known.revisions.values() if known else ():
            if slot := revision.slots.slots.get(replica):
                return slot.newest
        raise Invalid(f"no service has a replica {replica!r}; its last words are in its cause")

    def architectures(self, needs: common_pb2.Resources) -> Sequence[str]:
        """That of the cluster, where it is told; Fargate's own is amd64."""
        fargate = self._options.launch_type == "FARGATE"
        known = self._options.architecture_for(needs.gpus) or ("amd64" if fargate else "")
        return [known] if known else []

    # -- going on -------------------------------------------------------------------------------

    async def poll_forever(self) -> None:
        """Look at what is there and bring it nearer to what is wanted, again and again."""
        turn = 0
        while True:
            await self._ctx.clock.sleep(self._options.poll_every)
            turn += 1
            due = [k for k in self._kept.values() if not k.settled or turn % SETTLED_EVERY == 0]
            await self._look(due)

    async def _look(self, due: Iterable[Deployed]) -> None:
        async with asyncio.TaskGroup() as looks:
            for known in due:
                looks.create_task(self._tend(known), name=f"ecs:{known.target.uid}")

    async def _tend(self, known: Deployed) -> None:
        async with known.lock:
            if known.removed or self._kept.get(known.target.uid) is not known:
                return
            try:
                await self._fleet.converge(known)
            except (BackendError, Unanswered) as error:
                log.warning("deployment %s: %s", known.target.uid, error)
            self._tell(known)

    def _tell(self, known: Deployed) -> None:
        told = self._fleet.seen(known)
        if told != known.told:
            known.told = told
            self._feed.publish([told])

    def end(self) -> None:
        """End all watches."""
        self._feed.end()
