"""Putting an instance together whose devices dial AWS IoT, all or some of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from hatoba_plugins.aws import AwsClients, open_aws
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge.backend import EdgeBackend
from hatoba_plugins.backends.iot_edge.both import BothDevices
from hatoba_plugins.backends.iot_edge.calls import LIMITS, IotCalls
from hatoba_plugins.backends.iot_edge.listening import Listener
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.shadows import AwsIotDevices
from hatoba_plugins.backends.iot_edge.things import Things
from hatoba_plugins.backends.iot_edge.wishing import Wishes


@asynccontextmanager
async def opened(
    instance: str, options: EdgeOptions, ctx: BackendContext, here: EdgeBackend | None
) -> AsyncIterator[EdgeBackend]:
    """An instance that listens until the context ends; `here` is of the devices that dial us."""
    async with AsyncExitStack() as stack:
        calls = IotCalls(*await _clients(options, ctx, stack))
        things = Things(calls, options, options.fleet or ctx.cluster_id, ctx.clock)
        wishes = Wishes(calls, things, options, ctx)
        listener = Listener(calls, things, wishes, options, ctx)
        devices = AwsIotDevices(calls, things, wishes, listener)
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(listener.run(), name=f"{instance}:listener")
            try:
                yield _backend(devices, here, ctx)
            finally:
                listener.end()
                listening.cancel()


def _backend(devices: AwsIotDevices, here: EdgeBackend | None, ctx: BackendContext) -> EdgeBackend:
    if here is None:
        return EdgeBackend(devices, devices.health, LIMITS)
    both = BothDevices(here.devices, devices, ctx.dials, ctx.clock)
    return EdgeBackend(both, both.health, LIMITS, here.jobs)


async def _clients(
    options: EdgeOptions, ctx: BackendContext, stack: AsyncExitStack
) -> tuple[AwsClients, AwsClients]:
    services = ("iot", "iot-data", "sqs")
    aws = await stack.enter_async_context(open_aws(options, ctx, services))
    if not options.data_endpoint:
        return aws, aws
    there = replace(options, region=aws.region, endpoint=options.data_endpoint)
    return aws, await stack.enter_async_context(open_aws(there, ctx, ("iot-data",)))
