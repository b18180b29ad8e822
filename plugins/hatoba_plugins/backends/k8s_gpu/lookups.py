"""Questions to the API server, live: by name, by label, all that is ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.k8s_gpu import names
from hatoba_plugins.backends.k8s_gpu.board import Board
from hatoba_plugins.backends.k8s_gpu.client import Kube, Refusal
from hatoba_plugins.backends.k8s_gpu.objects import SeenJob, SeenPod, seen_job, seen_pod
from hatoba_plugins.backends.k8s_gpu.states import chosen
from hatoba_plugins.settling import Settling
from hatoba_plugins.values import Ref, WatchItem

_NOT_FOUND = 404


class Lookups:
    """What this installation has in a namespace."""

    def __init__(
        self, kube: Kube, ctx: BackendContext, board: Board, namespace: str, settles_after: float
    ) -> None:
        self._kube = kube
        self._ctx = ctx
        self._board = board
        self._namespace = namespace
        self.settling = Settling(ctx.clock, settles_after)
        self.jobs_path = f"/apis/batch/v1/namespaces/{namespace}/jobs"

    def core_path(self, kind: str) -> str:
        """Where objects of a core kind are."""
        return f"/api/v1/namespaces/{self._namespace}/{kind}"

    async def require_answer(self) -> None:
        """Have the API server answer. Raises Refusal, Unreached."""
        await self._ctx.budget("read")
        await self._kube.get(self.jobs_path, {"limit": "1", "labelSelector": self.ours()})

    def ours(self, **more: str) -> str:
        """The selector of what this installation made."""
        return names.selector({names.CLUSTER: self._ctx.cluster_id, **more})

    async def job(self, name: str) -> dict[str, Any] | None:
        """A Job by its name, whosever it is; None: there is none."""
        await self._ctx.budget("read")
        try:
            return await self._kube.get(f"{self.jobs_path}/{name}")
        except Refusal as refusal:
            if refusal.status == _NOT_FOUND and refusal.reason == "NotFound":
                return None
            raise

    async def find(self, ref: Ref) -> SeenJob | None:
        """The Job of an attempt, also of a gang's member; None: this installation has none."""
        named = _job_name(ref)
        told = await self.job(named or self._known_name(ref.name))
        job = seen_job(told) if told else None
        if job is not None and job.owner.cluster == self._ctx.cluster_id:
            return job if ref.name in job.members else None
        # A handle names the Job, a gang's as well: without that Job there is none.
        return None if told or named else await self._gang_of(ref.name)

    def ended_pod(self, name: str) -> SeenPod | None:
        """The pod of an attempt that has ended, as the watches told; None: they did not."""
        job = self._board.job_of(name)
        if job is None:
            return None
        index = job.members.index(name)
        pods = [one for one in self._board.pods_of(job.name) if one.index == index]
        pod = chosen(pods, job.finished)
        return pod if pod is not None and pod.ended else None

    def _known_name(self, member: str) -> str:
        job = self._board.job_of(member)
        return job.name if job else member

    async def _gang_of(self, member: str) -> SeenJob | None:
        """The gang that has a member of this name, by asking for all gangs."""
        query = {"labelSelector": f"{self.ours()},{names.ROLE}={names.ROLE_GANG}"}
        await self._ctx.budget("list")
        async with aclosing(self._kube.every(self.jobs_path, query)) as found:
            async for told in found:
                job = seen_job(told)
                if job is not None and member in job.members:
                    return job
        return None

    async def pods(self, job: str) -> list[SeenPod]:
        """Pods of a Job."""
        await self._ctx.budget("read")
        query = {"labelSelector": f"{names.JOB_NAME}={job}"}
        path = self.core_path("pods")
        async with aclosing(self._kube.every(path, query)) as found:
            return [seen_pod(told) async for told in found]

    async def every_job(self, cluster_id: str) -> list[SeenJob]:
        """All Jobs of an installation."""
        await self._ctx.budget("list")
        query = {"labelSelector": f"{names.CLUSTER}={cluster_id}"}
        async with aclosing(self._kube.every(self.jobs_path, query)) as found:
            return [job async for told in found if (job := seen_job(told))]

    async def every_pod(self, cluster_id: str) -> dict[str, list[SeenPod]]:
        """All pods of an installation, by their Job."""
        await self._ctx.budget("list")
        by_job: dict[str, list[SeenPod]] = {}
        query = {"labelSelector": f"{names.CLUSTER}={cluster_id}"}
        async with aclosing(self._kube.every(self.core_path("pods"), query)) as found:
            async for told in found:
                pod = seen_pod(told)
                by_job.setdefault(pod.job, []).append(pod)
        return by_job

    async def watch(self) -> AsyncIterator[WatchItem]:
        """The board's news, once it is open."""
        await self._board.opened.wait()
        feed = cast("AsyncGenerator[WatchItem, None]", self._board.feed.watch(self._board.now))
        async with aclosing(feed) as items:
            async for item in items:
                yield item


def _job_name(ref: Ref) -> str:
    """What the handle tells; empty without one."""
    return ref.handle.data.partition("/")[0] if ref.handle else ""
