"""Putting an instance together whose devices dial AWS IoT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from hatoba_plugins.aws import AwsClients, open_aws
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge.backend import EdgeBackend
from hatoba_plugins.backends.iot_edge.calls import LIMITS, IotCalls
from hatoba_plugins.backends.iot_edge.listening import Listener
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.shadows import AwsIotDevices
from hatoba_plugins.backends.iot_edge.things import Things
from hatoba_plugins.backends.iot_edge.wishing import Wishes


@asynccontextmanager
async def opened(
    instance: str, options: EdgeOptions, ctx: BackendContext
) -> AsyncIterator[EdgeBackend]:
    """An instance that listens until the context ends."""
    async with AsyncExitStack() as stack:
        calls = IotCalls(*await _clients(options, ctx, stack))
        things = Things(calls, options, ctx.cluster_id, ctx.clock)
        wishes = Wishes(calls, things, options, ctx)
        listener = Listener(calls, things, wishes, options, ctx)
        devices = AwsIotDevices(calls, things, wishes, listener)
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listener.run(), name=f"{instance}:listener")
            try:
                yield EdgeBackend(devices, devices.health, LIMITS)
            finally:
                listener.end()
                listening.cancel()


async def _clients(
    options: EdgeOptions, ctx: BackendContext, stack: AsyncExitStack
) -> tuple[AwsClients, AwsClients]:
    services = ("iot", "iot-data", "sqs")
    aws = await stack.enter_async_context(open_aws(options, ctx, services))
    if not options.data_endpoint:
        return aws, aws
    there = replace(options, region=aws.region, endpoint=options.data_endpoint)
    return aws, await stack.enter_async_context(open_aws(there, ctx, ("iot-data",)))
