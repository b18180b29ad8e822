"""Jobs: launch, observe, stop, release. What is asked goes to the API server; what changes comes by
the two watches.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu import names
from hatoba_plugins.backends.k8s_gpu.attach import Doors
from hatoba_plugins.backends.k8s_gpu.board import Board
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal, Unreached
from hatoba_plugins.backends.k8s_gpu.lookups import Lookups
from hatoba_plugins.backends.k8s_gpu.manifest import Made, Maker, owned_by
from hatoba_plugins.backends.k8s_gpu.objects import SeenJob, SeenPod, seen_job
from hatoba_plugins.backends.k8s_gpu.states import observed, verdict
from hatoba_plugins.checks import require_kind
from hatoba_plugins.errors import BackendError, Conflict, Fatal, Invalid, Retry
from hatoba_plugins.lanes import Lanes
from hatoba_plugins.values import (
    Ambiguous,
    Capabilities,
    Exit,
    ExitKind,
    GroupKind,
    Handle,
    Launched,
    LaunchGroup,
    LaunchOutcome,
    LaunchRequest,
    NotYet,
    Observation,
    Phase,
    Ref,
    Refused,
    Released,
    ReleaseOutcome,
    StopResult,
    WatchItem,
)

T = TypeVar("T")
HANDLE_VERSION = 1
MARKS = 100_000
"""Stops of what was not there that are remembered, to refuse a late launch."""
GONE_SOON = 0.3
LAUNCHES_FIRST = 30.0
"""Seconds for which what has ended is left alone while launches are under way: a deletion costs the
cluster as much as a run does, and nobody waits for it.
"""
HELD_AGAIN = 2.0
OTHERS_WITHIN = 30.0
"""Seconds after which a gang's Job goes that not all of its members are let go of."""
RUNNERS_SHARE = 60
"""Seconds that the runner of what is stopped has to tell of it, beyond the command's grace."""
STOPPED = Exit(ExitKind.STOPPED)
_LAUNCHES = Capabilities(gangs=True)


class KubeJobs:
    """Its job role."""

    def __init__(
        self,
        kube: Kube,
        ctx: BackendContext,
        maker: Maker,
        board: Board,
        lookups: Lookups,
        lanes: Lanes,
        shunned: Callable[[], Sequence[str]],
        doors: Doors,
    ) -> None:
        self.exec = doors.exec
        self.forward = doors.forward
        self._kube = kube
        self._ctx = ctx
        self._maker = maker
        self._board = board
        self._lookups = lookups
        self._shunned = shunned
        self._lanes = lanes
        self._marks: OrderedDict[str, None] = OrderedDict()
        self._releases: OrderedDict[str, tuple[float, set[str]]] = OrderedDict()
        """By uid of a Job that has ended: since when which of its members are let go of."""
        self._launching = 0
        self._held: dict[str, float] = {}
        """By attempt: since when its release has waited for launches."""

    # -- launch ---------------------------------------------------------------------------------

    async def launch(self, group: LaunchGroup) -> list[LaunchOutcome]:
        """One Job for each single attempt, and one for a whole gang."""
        require_kind(group, _LAUNCHES)
        self._launching += 1
        try:
            if group.kind is GroupKind.GANG:
                return await self._launch_gang(group.members)
            return await self._lanes.each(group.members, self._launch)
        finally:
            self._launching -= 1

    async def _launch(self, request: LaunchRequest) -> LaunchOutcome:
        try:
            self._require_unmarked(request)
            made = _manifest(lambda: self._maker.single(request, self._shunned()))
            job = await self._create(made)
        except BackendError as error:
            return Refused(request.name, error)
        except (Refusal, Unreached) as error:
            return Ambiguous(request.name, str(error))
        return Launched(request.name, handle_of(job))

    async def _launch_gang(self, members: Sequence[LaunchRequest]) -> list[LaunchOutcome]:
        if not members:
            return []
        try:
            for one in members:
                self._require_unmarked(one)
            made = _manifest(lambda: self._maker.gang(members, self._shunned()))
            job = await self._create(made)
            if job.half:
                job = await self._complete(job, made)
        except BackendError as error:
            return [Refused(one.name, error) for one in members]
        except (Refusal, Unreached) as error:
            return [Ambiguous(one.name, str(error)) for one in members]
        return [Launched(one.name, handle_of(job)) for one in members]

    def _require_unmarked(self, request: LaunchRequest) -> None:
        if request.name in self._marks:
            raise Fatal("it was stopped before it was launched")

    async def _create(self, made: Made) -> SeenJob:
        """Create the Job, or take the one that an earlier call created."""
        await self._ctx.budget("create")
        self._lookups.settling.asked(made.name)
        try:
            told = await self._kube.create(self._lookups.jobs_path, made.job)
        except Refusal as refusal:
            if refusal.status == 409 and refusal.reason == "AlreadyExists":
                return await self._adopt(made)
            if error := refusal.error():
                self._lookups.settling.seen(made.name)
                raise error from refusal
            raise
        except Unreached as error:
            if not error.sent:
                self._lookups.settling.seen(made.name)
                raise Retry(str(error)) from error
            raise
        self._lookups.settling.seen(made.name)
        job = seen_job(told)
        assert job is not None, "it has the labels that it was made with"
        return job

    async def _adopt(self, made: Made) -> SeenJob:
        found = await self._lookups.job(made.name)
        if found is None:
            raise Unreached(f"{made.name} exists and cannot be read", sent=True)
        self._lookups.settling.seen(made.name)
        known = seen_job(found)
        if known is None or known.owner.cluster != self._ctx.cluster_id or known.spec != made.spec:
            labels = found["metadata"].get("labels") or {}
            evidence = f"Job {made.name} (uid {found['metadata']['uid']}) has the labels {labels}"
            raise Conflict(
                f"a Job {made.name!r} exists and is not this attempt's", evidence=evidence
            )
        return known

    async def _complete(self, job: SeenJob, made: Made) -> SeenJob:
        """Create what a gang needs beside its Job, and let its pods come. What cannot be leaves
        nothing; what stops half-way is taken up by the next launch.
        """
        try:
            await self._create_for(job, made)
        except Refusal as refusal:
            if (error := refusal.error()) is None:
                raise
            await self._delete(job)
            raise error from refusal
        return await self._begin(made.name)

    async def _begin(self, name: str) -> SeenJob:
        """Its pods may come, unless it was stopped: a stop that comes at the same time wins."""
        while True:
            told = await self._lookups.job(name)
            job = seen_job(told) if told else None
            if told is None or job is None or job.verdict or job.deleting:
                raise Fatal("it was stopped before it was launched")
            if not job.half:
                return job
            await self._ctx.budget("patch")
            patch = _beginning(job, told["metadata"]["resourceVersion"])
            await self._absent_is_fine(self._kube.patch(f"{self._lookups.jobs_path}/{name}", patch))

    async def _create_for(self, job: SeenJob, made: Made) -> None:
        """What a gang needs beside its Job; the cluster removes it together with the Job."""
        for kind, manifest in (("services", made.service), ("secrets", made.secret)):
            if manifest is None:
                continue
            await self._ctx.budget("create")
            try:
                await self._kube.create(self._lookups.core_path(kind), owned_by(manifest, job.uid))
            except Refusal as refusal:
                if refusal.status != 409:
                    raise

    # -- observe --------------------------------------------------------------------------------

    async def observe(self, refs: Sequence[Ref]) -> list[Observation]:
        """From the watches while the API server answers; it alone is asked of what they lack."""
        if not refs:
            return []
        try:
            await self._lookups.require_answer()
            known = {ref.name: self._board.told(ref.name, ref.mark) for ref in refs}
            unknown = [ref for ref in refs if known[ref.name] is None]
            asked = await self._lanes.each(unknown, self._observe)
        except (Refusal, Unreached):
            return [_out_of_reach(ref.name) for ref in refs]
        known |= {one.name: one for one in asked}
        return [seen for ref in refs if (seen := known[ref.name])]

    async def _observe(self, ref: Ref) -> Observation:
        found = await self._lookups.find(ref)
        if found is not None and found.half:
            return _out_of_reach(ref.name)
        if found is None:
            if self._lookups.settling.under_way(ref.name):
                return _out_of_reach(ref.name)
            return Observation(ref.name, Phase.GONE, exists=False)
        pods = await self._lookups.pods(found.name)
        return observed(found, found.members.index(ref.name), pods, ref.mark)

    def watch(self) -> AsyncIterator[WatchItem]:
        """Room, everything there is, Synced, then news; begins once both watches have listed."""
        return self._lookups.watch()

    # -- stop -----------------------------------------------------------------------------------

    async def stop(self, refs: Sequence[Ref], grace: float) -> list[StopResult]:
        """Note on the Job how it is to end and keep pods from coming, then end those there are."""
        return await self._lanes.each(refs, lambda ref: self._stop(ref, grace))

    async def _stop(self, ref: Ref, grace: float) -> StopResult:
        job = await asked(self._lookups.find(ref))
        if job is None:
            return self._mark(ref)
        await asked(self.end(job, STOPPED, grace))
        return StopResult(ref.name, known=True)

    def _mark(self, ref: Ref) -> StopResult:
        self._marks[ref.name] = None
        while len(self._marks) > MARKS:
            self._marks.popitem(last=False)
        return StopResult(ref.name, known=False)

    async def end(self, job: SeenJob, told: Exit, grace: float) -> None:
        """End a Job such that it will be told to have ended like this, whoever is there to see it.

        What has ended by itself stays so.
        """
        pods = await self._lookups.pods(job.name)
        if job.finished or (pods and all(pod.ended for pod in pods)):
            return
        if not job.verdict:
            await self._ctx.budget("patch")
            await self._absent_is_fine(
                self._kube.patch(f"{self._lookups.jobs_path}/{job.name}", _ending(job, told))
            )
        seconds = max(1, math.ceil(grace))
        if job.runner == "pod":
            seconds += RUNNERS_SHARE
        for pod in pods:
            if not pod.over:
                await self._kill(pod, seconds)

    async def _kill(self, pod: SeenPod, seconds: int) -> None:
        await self._ctx.budget("delete")
        options = {"gracePeriodSeconds": seconds, "preconditions": {"uid": pod.uid}}
        path = f"{self._lookups.core_path('pods')}/{pod.name}"
        await self._absent_is_fine(self._kube.delete(path, options))

    # -- release --------------------------------------------------------------------------------

    async def release(self, refs: Sequence[Ref]) -> list[ReleaseOutcome]:
        """Delete Jobs that ended, and be content once they and their pods are gone."""
        return await self._lanes.each(refs, self._release)

    async def _release(self, ref: Ref) -> ReleaseOutcome:
        if self._board.leaves(ref.name):
            return NotYet(ref.name, GONE_SOON)
        if self._waits_for_launches(ref.name):
            return NotYet(ref.name, HELD_AGAIN)
        job = await asked(self._lookups.find(ref))
        if job is None:
            left = await asked(self._lookups.pods(ref.name))
            return NotYet(ref.name, GONE_SOON) if left else Released(ref.name)
        if not job.deleting:
            if not await asked(self._all_ended(job)) or not self._let_go(job, ref.name):
                return NotYet(ref.name, 1.0)
            await asked(self._delete(job))
        return NotYet(ref.name, GONE_SOON)

    def _waits_for_launches(self, name: str) -> bool:
        """Whether others are being launched; what was held for long, or is unknown, is not."""
        if self._launching and self._board.job_of(name) is not None:
            now = self._ctx.clock.monotonic()
            if now - self._held.setdefault(name, now) < LAUNCHES_FIRST:
                return True
        self._held.pop(name, None)
        return False

    def _let_go(self, job: SeenJob, member: str) -> bool:
        """Whether all members are let go of, or one is for long: with the Job go the logs."""
        now = self._ctx.clock.monotonic()
        since, members = self._releases.setdefault(job.uid, (now, set()))
        members.add(member)
        if members.issuperset(job.members) or now - since >= OTHERS_WITHIN:
            del self._releases[job.uid]
            return True
        while len(self._releases) > MARKS:
            self._releases.popitem(last=False)
        return False

    async def _all_ended(self, job: SeenJob) -> bool:
        """Whether all its members have; those of a gang go together."""
        told = [self._board.told(member) for member in job.members]
        if all(one is not None and one.phase is Phase.ENDED for one in told):
            return True
        pods = await self._lookups.pods(job.name)
        seen = [observed(job, index, pods) for index in range(len(job.members))]
        return all(one.phase is Phase.ENDED for one in seen)

    async def _delete(self, job: SeenJob) -> None:
        await self._ctx.budget("delete")
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": job.uid}}
        path = f"{self._lookups.jobs_path}/{job.name}"
        await self._absent_is_fine(self._kube.delete(path, options))

    # -- shared ---------------------------------------------------------------------------------

    async def _absent_is_fine(self, call: Awaitable[Any]) -> None:
        """A call on something that may be gone, or be somebody else's by now."""
        try:
            await call
        except Refusal as refusal:
            if refusal.status not in (404, 409):
                raise


def handle_of(job: SeenJob) -> Handle:
    """The Job's name and uid."""
    return Handle(HANDLE_VERSION, f"{job.name}/{job.uid}")


async def asked(call: Awaitable[T]) -> T:
    """A call for which it does not matter whether it happened: it is made again. Raises
    BackendError.
    """
    try:
        return await call
    except Refusal as refusal:
        raise refusal.error() or Retry(refusal.message, after=refusal.after) from refusal
    except Unreached as error:
        raise Retry(str(error)) from error


def _manifest(make: Callable[[], Made]) -> Made:
    try:
        return make()
    except ValueError as error:
        raise Invalid(str(error)) from error


def _beginning(job: SeenJob, version: str) -> dict[str, Any]:
    """Of a Job as it was at this version; one that Kueue admits begins when Kueue says so."""
    about = {"annotations": {names.HALF: None}, "resourceVersion": version}
    return {"metadata": about} if job.queued else {"metadata": about, "spec": {"suspend": False}}


def _ending(job: SeenJob, told: Exit) -> dict[str, Any]:
    """Of a Job that Kueue admits the suspension is Kueue's."""
    patch: dict[str, Any] = {"metadata": {"annotations": {names.VERDICT: verdict(told)}}}
    if not job.queued:
        patch["spec"] = {"suspend": True}
    return patch


def _out_of_reach(name: str) -> Observation:
    return Observation(name, Phase.EXISTS, exists=True, reachable=False)
