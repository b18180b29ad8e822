"""Putting an instance together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from hatoba_plugins.aws import open_aws
from hatoba_plugins.aws.logs import CloudWatchLogs
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.ecs.backend import EcsBackend, capabilities_of
from hatoba_plugins.backends.ecs.calls import EcsCalls
from hatoba_plugins.backends.ecs.deployments import EcsDeployments
from hatoba_plugins.backends.ecs.fleet import Fleet
from hatoba_plugins.backends.ecs.jobs import EcsJobs
from hatoba_plugins.backends.ecs.options import EcsOptions


@asynccontextmanager
async def opened(
    instance: str, options: EcsOptions, ctx: BackendContext
) -> AsyncIterator[EcsBackend]:
    """An instance whose polls end with the context."""
    async with open_aws(options, ctx, _services(options)) as aws:
        known = replace(options, region=aws.region)
        calls = EcsCalls(aws)
        jobs = EcsJobs(aws, calls, known, ctx, capabilities_of(known))
        logs = CloudWatchLogs(aws, ctx.clock, known.log_group) if known.log_group else None
        deployments = EcsDeployments(Fleet(aws, calls, known, ctx), known, ctx, logs)
        async with asyncio.TaskGroup() as polls:
            running = [
                polls.create_task(jobs.poll_forever(), name=f"{instance}:jobs"),
                polls.create_task(deployments.poll_forever(), name=f"{instance}:deployments"),
            ]
            try:
                yield EcsBackend(jobs, deployments, calls, known, logs)
            finally:
                jobs.end()
                deployments.end()
                for task in running:
                    task.cancel()


def _services(options: EcsOptions) -> tuple[str, ...]:
    return ("ecs", "ec2", "elbv2", *(("logs",) if options.log_group else ()))
