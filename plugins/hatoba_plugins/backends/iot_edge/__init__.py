"""`iot-edge-arm`: devices that dial out, are often away, and converge to what is wanted of them.

What talks to AWS is imported when an instance is opened whose devices dial AWS IoT.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hatoba_plugins.backend import API_VERSION, Backend, BackendContext, BackendType
from hatoba_plugins.backends.hosts.jobs import HostJobs
from hatoba_plugins.backends.iot_edge.backend import OF_JOBS, EdgeBackend
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.streams import StreamDevices
from hatoba_plugins.errors import Fatal
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import BackendOptions


class EdgeType:
    """The type as it is registered."""

    name = "iot-edge-arm"
    api = API_VERSION
    options: type[BackendOptions] = EdgeOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open on the core's hub, on AWS IoT, or on both. Raises Fatal where devices have no port,
        Denied and Invalid for what AWS cannot be reached with."""
        if not isinstance(options, EdgeOptions):
            raise TypeError(
                f"iot-edge-arm is opened with EdgeOptions, not {type(options).__name__}"
            )
        here = EdgeBackend(_streams(ctx), jobs=_jobs(ctx)) if options.dialled else None
        if here is not None and not options.by_aws:
            yield here
            return
        where = "hatoba_plugins.backends.iot_edge.opening"
        opening: Any = await asyncio.to_thread(importlib.import_module, where)
        async with opening.opened(instance, options, ctx, here) as backend:
            yield backend


def _streams(ctx: BackendContext) -> StreamDevices:
    """Raises Fatal."""
    if ctx.devices is None:
        raise Fatal(
            'devices have no port to dial: add [devices] with `listen = "0.0.0.0:7443"` to '
            "hatoba.toml"
        )
    return StreamDevices(ctx.devices)


def _jobs(ctx: BackendContext) -> HostJobs | None:
    return HostJobs(ctx.device_jobs, OF_JOBS) if ctx.device_jobs is not None else None


class EdgePlugin:
    """Registers `iot-edge-arm`."""

    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The one type."""
        return [EdgeType()]


plugin = EdgePlugin()
