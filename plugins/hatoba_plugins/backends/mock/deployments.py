"""The mock's deployment role."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from hatoba.v1 import common_pb2
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.mock.replicas import handle_of
from hatoba_plugins.backends.mock.world import MockWorld
from hatoba_plugins.errors import Unsupported
from hatoba_plugins.values import (
    Capabilities,
    DeploymentItem,
    Handle,
    LogChunk,
    NotYet,
    OwnedDeployment,
    Released,
    ReleaseOutcome,
    Target,
)


class MockDeployments:
    """One native call for each of ours; the world replaces replicas by itself."""

    def __init__(
        self,
        world: MockWorld,
        capabilities: Capabilities,
        ctx: BackendContext,
        architectures: Sequence[str],
    ) -> None:
        self._world = world
        self._capabilities = capabilities
        self._ctx = ctx
        self._architectures = architectures

    def architectures(self, needs: common_pb2.Resources) -> Sequence[str]:
        """As its options say."""
        return self._architectures

    async def apply(self, target: Target) -> Handle:
        """Give the target to the world."""
        if len(target.revisions) > 1 and not self._capabilities.canary:
            raise Unsupported("canary")
        await self._ctx.budget("apply")
        await self._world.apply(self._ctx.cluster_id, target)
        return handle_of(target.uid)

    def watch(self) -> AsyncIterator[DeploymentItem]:
        """Every deployment, Synced, then news."""
        return self._world.watch_deployments()

    async def retire(self, uid: str, replicas: Sequence[str]) -> None:
        """Let them drain."""
        await self._ctx.budget("retire")
        await self._world.retire(uid, replicas)

    async def remove(self, uid: str, handle: Handle | None) -> ReleaseOutcome:
        """Let all of it drain."""
        await self._ctx.budget("remove")
        left = await self._world.remove(uid)
        return Released(uid) if left is None else NotYet(uid, after=left)

    async def owned(self, cluster_id: str) -> AsyncIterator[OwnedDeployment]:
        """Everything with this label."""
        await self._ctx.budget("list")
        for one in await self._world.list_deployments():
            if one.cluster_id == cluster_id:
                yield one

    def replica_logs(self, replica: str, stream: str, tail_lines: int) -> AsyncIterator[LogChunk]:
        """It runs nothing, so nothing writes."""
        raise Unsupported("replica_logs")
