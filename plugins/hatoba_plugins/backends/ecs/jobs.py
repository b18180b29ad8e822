"""Jobs on ECS: one RunTask each, found again by its `startedBy`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, cast
from weakref import WeakValueDictionary

from hatoba.runs import run_mark
from hatoba_plugins.aws import AwsClients, Unanswered
from hatoba_plugins.aws.logs import Source
from hatoba_plugins.aws.tags import listed, owner_tags
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.ecs.attempts import TIMEOUT_TAG, Attempts, Known
from hatoba_plugins.backends.ecs.calls import EcsCalls, said
from hatoba_plugins.backends.ecs.definitions import (
    RUN,
    content_hash,
    job_definition,
    log_stream,
    overrides,
)
from hatoba_plugins.backends.ecs.names import STOPPED, TIMED_OUT, cluster_of, token
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.backends.ecs.placing import placing
from hatoba_plugins.backends.ecs.states import refusal
from hatoba_plugins.checks import require_kind
from hatoba_plugins.errors import BackendError, Conflict, Invalid
from hatoba_plugins.feed import Feed
from hatoba_plugins.lanes import Lanes
from hatoba_plugins.runner import bare_environment, runner_environment
from hatoba_plugins.values import (
    Ambiguous,
    Capabilities,
    CapacitySnapshot,
    FindOutcome,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    NotYet,
    Observation,
    Owned,
    Phase,
    Pool,
    Ref,
    Refused,
    Released,
    ReleaseOutcome,
    Share,
    StopResult,
    WatchItem,
)

LOOK_AROUND_EVERY = 60.0
AT_ONCE = 16
"""Calls of one request that go out beside each other."""
SLOTS = 10_000
"""Attempts that state no resources and are here at a time."""


class EcsJobs:
    """The job role."""

    def __init__(
        self,
        aws: AwsClients,
        calls: EcsCalls,
        options: EcsOptions,
        ctx: BackendContext,
        capabilities: Capabilities,
    ) -> None:
        self._aws = aws
        self._calls = calls
        self._options = options
        self._ctx = ctx
        self._capabilities = capabilities
        self._feed: Feed[WatchItem] = Feed()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._out_of_reach = False
        self.attempts = Attempts(calls, options, ctx, lambda seen: self._feed.publish([seen]))

    # -- launch ---------------------------------------------------------------------------------

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """Look up each, and run a task for what is not there. Raises Unsupported."""
        require_kind(group, self._capabilities)

        async def one(request: LaunchRequest) -> LaunchOutcome:
            async with self._locks.setdefault(request.name, asyncio.Lock()):
                return await self._launch(request)

        return await Lanes(AT_ONCE).each(group.members, one, "launch")

    async def _launch(self, request: LaunchRequest) -> LaunchOutcome:
        try:
            if self.attempts.marked(request.name):
                raise Invalid("it was stopped before it was launched")
            cluster = self._cluster_of(request)
            known = self.attempts.known.get(request.name)
            known = known or await self.attempts.look_up(request.name, (cluster,))
            if known is None:
                return await self._run(cluster, request)
        except BackendError as error:
            return Refused(request.name, error)
        except Unanswered as error:
            return Ambiguous(request.name, str(error))
        return Launched(request.name, known.handle, known.seen.phase)

    def _cluster_of(self, request: LaunchRequest) -> str:
        if request.placement.pool in self._options.clusters:
            return request.placement.pool
        return self._options.cluster_for(request.spec.resources.gpus)

    async def _run(self, cluster: str, request: LaunchRequest) -> LaunchOutcome:
        parameters = await self._parameters(cluster, request)
        self.attempts.settling.asked(request.name)
        try:
            told = await self._aws.write("ecs:RunTask", **parameters)
        finally:
            # Look-ups lag behind what was begun just now, however long the call took.
            self.attempts.settling.asked(request.name)
        if not (tasks := told.get("tasks")):
            error = refusal(next(iter(told.get("failures") or []), {}))
            return Refused(request.name, error)
        known = self.attempts.took({**tasks[0], "tags": parameters["tags"]}, looked=False)
        if known is None:
            return Ambiguous(request.name, "RunTask answered with a task that is not ours")
        return Launched(request.name, known.handle, known.seen.phase)

    async def _parameters(self, cluster: str, request: LaunchRequest) -> dict[str, Any]:
        """The same each time it is asked for, so that the client token holds."""
        spec = request.spec
        bare = {**bare_environment(request), **spec.env}
        env = runner_environment(self._ctx, request) if self._fenced else bare
        common = {key: env.pop(key) for key in ("HATOBA_CA",) if key in env}
        command = [*RUN, *spec.command] if self._fenced else list(spec.command)
        definition = job_definition(self._options, spec, request.placement.memory, common)
        tags = owner_tags(request, self._ctx.cluster_id, content_hash(definition))
        timeout = spec.timeout.ToTimedelta().total_seconds()
        if timeout and not self._fenced:
            tags[TIMEOUT_TAG] = f"{timeout:g}"
        return {
            "cluster": cluster,
            "taskDefinition": await self._calls.definition(definition),
            "count": 1,
            "clientToken": token(self._ctx.cluster_id, request.name, request.fence),
            "startedBy": request.name,
            "overrides": overrides(command, env),
            "tags": listed(tags),
            "enableECSManagedTags": True,
            **placing(self._options, spec.resources.gpus),
        }

    @property
    def _fenced(self) -> bool:
        return self._options.runner == "image"

    # -- questions ------------------------------------------------------------------------------

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Look each up by its `startedBy`."""
        return await Lanes(AT_ONCE).each(refs, self.attempts.find, "find")

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """A hundred in a call; what cannot be asked about is not reachable."""
        arns = {ref.name: self._arn(ref) for ref in refs}
        try:
            told = await self.attempts.look_at(arn for arn in arns.values() if arn)
            return [await self._observed(ref, arns[ref.name], told) for ref in refs]
        except (BackendError, Unanswered):
            return [self.attempts.unreachable(ref.name) for ref in refs]

    async def _observed(self, ref: Ref, arn: str, told: set[str]) -> Observation:
        if not arn and ref.handle is None:
            await self._try_to_find(ref.name)
        known = self.attempts.known.get(ref.name)
        if known is not None and ref.mark and run_mark(known.arn) != ref.mark:
            return await self.attempts.of_run(ref.name, ref.mark)
        if known is None or (arn and arn not in told):
            return self.attempts.missed(ref.name)
        return known.seen

    async def _try_to_find(self, name: str) -> None:
        with suppress(Conflict):
            await self.attempts.look_up(name)

    def _arn(self, ref: Ref) -> str:
        known = self.attempts.known.get(ref.name)
        if known is not None:
            return known.arn
        return ref.handle.data if ref.handle is not None else ""

    async def log_source(self, ref: Ref) -> Source:
        """Where its task writes; also of one that ECS does not tell of any more."""
        arn = self._arn(ref)
        if ref.name not in self.attempts.known:
            await (self.attempts.look_at([arn]) if arn else self._try_to_find(ref.name))
        known = self.attempts.known.get(ref.name)
        if known is None:
            return Source(log_stream(arn) if arn else "", over=True)
        return Source(log_stream(known.arn), not known.live, known.stopped)

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """Every task with our tags, ended ones of the last hour too, until they are released."""
        if cluster_id != self._ctx.cluster_id:
            return
        await self.attempts.look_around()
        for known in list(self.attempts.known.values()):
            own = known.owner
            yield Owned(
                known.name,
                own.cluster_id,
                own.job_uid,
                own.index,
                own.number,
                known.handle,
                not known.live,
                pool=cluster_of(known.arn),
            )

    # -- stop and release -----------------------------------------------------------------------

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """SIGTERM now; the task definition's stop time-out is the grace that ECS gives."""
        del grace
        return await Lanes(AT_ONCE).each(refs, self._stop, "stop")

    async def _stop(self, ref: Ref) -> StopResult:
        known = self.attempts.known.get(ref.name)
        if known is None:
            known = await self.attempts.look_up(ref.name)
        if known is None:
            self.attempts.mark(ref.name)
            return StopResult(ref.name, self.attempts.settling.under_way(ref.name))
        if known.live:
            await self._end(known, STOPPED)
        return StopResult(ref.name, known=True)

    async def _end(self, known: Known, reason: str) -> None:
        known.stopping = reason
        try:
            await self._aws.read(
                "ecs:StopTask", cluster=cluster_of(known.arn), task=known.arn, reason=reason
            )
        except Invalid as error:
            if "not found" not in said(error):
                raise
            self.attempts.missed(known.name)
            return
        await self.attempts.look_at([known.arn])

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """A stopped task holds nothing; ECS forgets it by itself after an hour."""
        seen = await self.observe(refs)
        return [self._release(ref.name, one) for ref, one in zip(refs, seen, strict=True)]

    def _release(self, name: str, seen: Observation) -> ReleaseOutcome:
        if seen.phase < Phase.ENDED:
            return NotYet(name, after=min(1.0, self._options.poll_every))
        self.attempts.release(name)
        return Released(name)

    # -- the watch ------------------------------------------------------------------------------

    async def watch(self) -> AsyncIterator[WatchItem]:
        """Room, every attempt that is not released, Synced, then what the polls see."""
        await self.attempts.look_around()
        feed = cast(AsyncGenerator[WatchItem, None], self._feed.watch(self._now))
        async with aclosing(feed) as items:
            async for item in items:
                yield item

    def _now(self) -> list[WatchItem]:
        room = CapacitySnapshot(pools_of(self._options), elastic=True, as_of=self._ctx.clock.time())
        return [room, *(known.seen for known in self.attempts.known.values())]

    async def poll_forever(self) -> None:
        """Look at all live attempts again and again, and now and then for unknown ones."""
        looked = self._ctx.clock.monotonic()
        while True:
            await self._ctx.clock.sleep(self._options.poll_every)
            try:
                await self._poll()
                if self._ctx.clock.monotonic() - looked >= LOOK_AROUND_EVERY:
                    await self.attempts.look_around()
                    looked = self._ctx.clock.monotonic()
                self._out_of_reach = False
            except (BackendError, Unanswered):
                self._lose_sight()

    async def _poll(self) -> None:
        live = [known for known in self.attempts.known.values() if known.live]
        if not live:
            return
        told = await self.attempts.look_at(known.arn for known in live)
        for known in live:
            if known.arn not in told:
                self.attempts.missed(known.name)
            elif reason := self._to_end(known):
                await self._end(known, reason)

    def _to_end(self, known: Known) -> str:
        """Why it is to be stopped by us; empty: it is not."""
        if not known.live or known.stopping:
            return ""
        if self.attempts.marked(known.name):
            return STOPPED
        over = known.started + known.timeout < self._ctx.clock.time()
        return TIMED_OUT if known.timeout and known.started and over else ""

    def _lose_sight(self) -> None:
        """Told once: nothing can be asked about."""
        if self._out_of_reach:
            return
        self._out_of_reach = True
        names = [known.name for known in self.attempts.known.values() if known.live]
        self._feed.publish(self.attempts.unreachable(name) for name in names)

    def end(self) -> None:
        """End all watches."""
        self._feed.end()


def pools_of(options: EcsOptions) -> tuple[Pool, ...]:
    """A pool for each cluster: as much as may be here at a time."""
    secrets, embedded, pools = frozenset(options.secrets), bool(options.image), []
    for cluster in options.clusters:
        gpus = options.max_gpus if cluster == options.gpu_cluster else 0
        room = Share(options.max_cpus, options.max_memory, gpus, SLOTS)
        ids = tuple(f"gpu-{number}" for number in range(gpus))
        pools.append(Pool(cluster, room, gpu_ids=ids, embedded=embedded, secrets=secrets))
    return tuple(pools)
