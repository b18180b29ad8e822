"""Jobs on Batch: written ahead by the core, submitted once, found again by their names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from hatoba.runs import run_mark
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.aws.tags import RELEASED
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.batch_spot.book import Known, Marks
from hatoba_plugins.backends.batch_spot.calls import BatchCalls
from hatoba_plugins.backends.batch_spot.definitions import Definitions
from hatoba_plugins.backends.batch_spot.health import survey
from hatoba_plugins.backends.batch_spot.lookup import Named
from hatoba_plugins.backends.batch_spot.manifest import Manifest, manifest
from hatoba_plugins.backends.batch_spot.options import BatchOptions, Queue
from hatoba_plugins.backends.batch_spot.queues import choose, pool_of
from hatoba_plugins.backends.batch_spot.states import (
    OUR_STOP,
    TERMINAL,
    Detail,
    refused_claim,
    run_of,
    seen,
)
from hatoba_plugins.backends.batch_spot.watching import Sweeper
from hatoba_plugins.checks import require_kind
from hatoba_plugins.errors import BackendError, Conflict, Denied, Fatal, Invalid, Retry
from hatoba_plugins.runner import runner_environment
from hatoba_plugins.settling import Settling
from hatoba_plugins.values import (
    Absent,
    Ambiguous,
    Capabilities,
    CapacitySnapshot,
    FindOutcome,
    Found,
    Handle,
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
    StopResult,
    Unsure,
    WatchItem,
)

HANDLE_VERSION = 1
SUBMITS = 16
"""Submits that are under way at once."""


class BatchJobs:
    """The job role."""

    def __init__(
        self,
        ctx: BackendContext,
        options: BatchOptions,
        calls: BatchCalls,
        sweeper: Sweeper,
        capabilities: Capabilities,
    ) -> None:
        self._ctx = ctx
        self._options = options
        self._calls = calls
        self._sweeper = sweeper
        self._pools: tuple[Pool, ...] = ()
        self._capabilities = capabilities
        self._queues = options.pools()
        self._book = sweeper.book
        self._lookup = sweeper.lookup
        self._definitions = Definitions(calls)
        self._settling = Settling(ctx.clock, options.settles_after)
        self._stopped = Marks()
        self._turns = asyncio.Semaphore(SUBMITS)
        # So that the second launch of a name finds the first. Submits are the bottleneck anyway.
        self._one_group = asyncio.Lock()

    @property
    def _fenced(self) -> bool:
        return self._options.runner == "image"

    # -- launching ------------------------------------------------------------------------------

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """Look all of them up, then submit what is not there, some at once."""
        require_kind(group, self._capabilities)
        async with self._one_group:
            there = await self._lookup.named(member.name for member in group.members)
            async with asyncio.TaskGroup() as calls:
                launches = [
                    calls.create_task(
                        self._launch(member, there[member.name]), name=f"launch-{member.name}"
                    )
                    for member in group.members
                ]
        return [launch.result() for launch in launches]

    async def _launch(self, request: LaunchRequest, there: Named) -> LaunchOutcome:
        try:
            if there.one is not None:
                return await self._adopt(request.name, there)
            if there.others:
                raise _conflict(request.name, there.others[0])
            if request.name in self._stopped:
                raise Fatal("it was stopped before it was launched")
            return await self._submit(request)
        except BackendError as error:
            return Refused(request.name, error)
        except Unanswered as error:
            return Ambiguous(request.name, str(error))

    async def _submit(self, request: LaunchRequest) -> LaunchOutcome:
        queue = choose(request, self._queues, self._options.on_demand_after)
        wanted = self._manifest(request, queue)
        async with self._turns:
            definition = await self._definitions.ensure(wanted)
            self._settling.asked(request.name)
            try:
                parameters = wanted.submit | {"jobDefinition": definition}
                job_id = await self._calls.submit(parameters)
            except Invalid as error:
                if "definition" in error.message.lower():
                    self._definitions.forget(wanted)
                    raise Retry(error.message, after=1.0) from error
                raise
        return Launched(request.name, _handle(job_id))

    def _manifest(self, request: LaunchRequest, queue: Queue) -> Manifest:
        environment = runner_environment(self._ctx, request) if self._fenced else {}
        return manifest(request, self._options, queue.queue, environment, self._ctx.cluster_id)

    async def _adopt(self, name: str, there: Named) -> LaunchOutcome:
        detail = there.one
        assert detail is not None
        self._sweeper.take(detail)
        self._settling.seen(name)
        await self._end_surplus(there)
        return Launched(name, _handle(detail["jobId"]), seen(name, detail).phase)

    async def _end_surplus(self, there: Named) -> None:
        """Of several without a runner all but one are ended; a claim lets but one of them run."""
        if self._fenced:
            return
        for detail in there.surplus:
            if detail["status"] not in TERMINAL:
                await self._calls.terminate(detail["jobId"], f"{OUR_STOP}, it was doubled")

    # -- looking --------------------------------------------------------------------------------

    async def find(self, refs: Sequence[Ref]) -> list[FindOutcome]:
        """Live, by name; what is not there may still appear for a while after a submit."""
        there = await self._lookup.named(ref.name for ref in refs)
        return [await self._found(ref.name, there[ref.name]) for ref in refs]

    async def _found(self, name: str, there: Named) -> FindOutcome:
        if there.one is not None:
            self._sweeper.take(there.one)
            self._settling.seen(name)
            await self._end_surplus(there)
            return Found(name, _handle(there.one["jobId"]), seen(name, there.one).phase)
        after = self._settling.settled_in(name)
        if after > 0 and not there.others:
            return Unsure(name, after)
        return Absent(name)

    async def detail(self, ref: Ref) -> Detail | None:
        """What Batch says of one; None: it is not there."""
        if ref.handle is not None:
            return (await self._calls.describe([ref.handle.data])).get(ref.handle.data)
        return (await self._lookup.named([ref.name]))[ref.name].one

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """By handle where there is one; none is reachable while Batch is not."""
        try:
            return await self._observe(refs)
        except BackendError:
            return [
                Observation(ref.name, Phase.EXISTS, exists=True, reachable=False) for ref in refs
            ]

    async def _observe(self, refs: Sequence[Ref]) -> list[Observation]:
        by_id = {ref.name: ref.handle.data for ref in refs if ref.handle is not None}
        details = await self._calls.describe(by_id.values())
        found = {name: details.get(job) for name, job in by_id.items()}
        unsure = [ref for ref in refs if self._by_name(ref, found.get(ref.name))]
        named = await self._lookup.named(ref.name for ref in unsure) if unsure else {}
        found |= {ref.name: named[ref.name].of_run(ref.mark) for ref in unsure}
        return [self._observation(ref.name, found.get(ref.name)) for ref in refs]

    def _by_name(self, ref: Ref, detail: Detail | None) -> bool:
        """Whether the handle does not tell of the run that is asked for."""
        if detail is None:
            return ref.handle is None or bool(ref.mark)
        if ref.mark:
            return run_mark(run_of(detail)) != ref.mark
        return self._fenced and refused_claim(detail)

    def _observation(self, name: str, detail: Detail | None) -> Observation:
        if detail is None:
            if self._settling.settled_in(name) > 0:
                return Observation(name, Phase.EXISTS, exists=True, reachable=False)
            self._book.drop(name)
            return Observation(name, Phase.GONE, exists=False)
        self._settling.seen(name)
        known = self._sweeper.take(detail)
        told = known.seen if known else seen(name, detail)
        # Released: only its history is left.
        return told if known else replace(told, exists=False)

    async def watch(self) -> AsyncIterator[WatchItem]:
        """Room, everything that is not released, Synced, then what sweeps find new."""
        vcpus = (await survey(self._calls, self._queues)).vcpus
        secrets, embedded = self._options.secrets, bool(self._options.image)
        self._pools = tuple(
            pool_of(one, vcpus[one.name], secrets, embedded=embedded) for one in self._queues
        )
        async for _ in self._sweeper.list_all():
            pass
        async with aclosing(self._sweeper.feed.watch(self._now)) as news:  # type: ignore[type-var]
            async for item in news:
                yield item

    def _now(self) -> Iterator[WatchItem]:
        yield CapacitySnapshot(self._pools, elastic=True, as_of=self._ctx.clock.time())
        yield from [known.seen for known in self._book.all()]

    async def list_owned(self, cluster_id: str) -> AsyncIterator[Owned]:
        """Everything with our tags that is not released."""
        if cluster_id != self._ctx.cluster_id:
            return
        async for known in self._sweeper.list_all():
            owner = known.owner
            yield Owned(
                owner.name,
                owner.cluster_id,
                owner.job_uid,
                owner.index,
                owner.number,
                _handle(known.job_id),
                not known.active,
                self._pool_of(known),
            )

    def _pool_of(self, known: Known) -> str:
        for one in self._queues:
            if one.queue in (known.queue, known.queue.rpartition("/")[2]):
                return one.name
        return ""

    # -- ending ---------------------------------------------------------------------------------

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """SIGTERM at once, and SIGKILL `term_seconds` later, is Batch's way. Where the grace is
        longer the runner is told by the server, and Batch ends only what is left in the end.
        """
        strange = [ref.name for ref in refs if self._book.get(ref.name) is None]
        there = await self._lookup.named(strange) if strange else {}
        for named in there.values():
            for detail in named.ours:
                self._sweeper.take(detail)
        return [await self._stop(ref, grace, there.get(ref.name)) for ref in refs]

    async def _stop(self, ref: Ref, grace: float, there: Named | None) -> StopResult:
        known = self._book.get(ref.name)
        if known is not None:
            await self._terminate(known, grace)
            return StopResult(ref.name, True)
        if there is not None and there.ours:
            return StopResult(ref.name, True)
        self._stopped.add(ref.name)
        # While a submit of ours may still land it is not denied: we are asked again.
        return StopResult(ref.name, self._settling.under_way(ref.name))

    async def _terminate(self, known: Known, grace: float) -> None:
        if not known.active:
            return
        later = grace - self._options.term_seconds
        if self._fenced and known.seen.phase is Phase.RUNNING and later > 0:
            known.terminate_at = known.terminate_at or self._ctx.clock.monotonic() + later
            return
        await self._calls.terminate(known.job_id, f"{OUR_STOP} by its scheduler")

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """Nothing of an ended job can be taken away; a tag says that it is let go of."""
        seen_now = await self._observe(refs)
        return [await self._release(one) for one in seen_now]

    async def _release(self, told: Observation) -> ReleaseOutcome:
        name = told.name
        if not told.exists:
            return Released(name)
        known = self._book.get(name)
        if told.phase < Phase.ENDED or not told.reachable or known is None:
            return NotYet(name, self._options.sweep_every)
        # A role that may not tag: what is listed anew after a restart is let go of anew.
        with suppress(Denied, Invalid):
            await self._calls.tag(known.arn, {RELEASED: "true"})
        self._book.let_go(known.job_id)
        return Released(name)


def _handle(job_id: str) -> Handle:
    return Handle(HANDLE_VERSION, job_id)


def _conflict(name: str, other: Detail) -> Conflict:
    evidence = f"job {other['jobId']} has other tags: {dict(other.get('tags') or {})}"
    return Conflict(f"a job named {name} exists and is not ours", evidence=evidence)
