"""`iot-edge-arm`: devices that dial out, are often away, and converge to what is wanted of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hatoba_plugins.backend import API_VERSION, Backend, BackendContext, BackendType
from hatoba_plugins.backends.iot_edge.backend import EdgeBackend
from hatoba_plugins.backends.iot_edge.streams import StreamDevices
from hatoba_plugins.errors import Fatal
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import BackendOptions


@dataclass(frozen=True, slots=True)
class EdgeOptions(BackendOptions):
    """Devices bring their own settings; where they dial in is the server's `[devices]`."""


class EdgeType:
    """The type as it is registered."""

    name = "iot-edge-arm"
    api = API_VERSION
    options: type[BackendOptions] = EdgeOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open on the core's hub. Raises Fatal where devices have no port."""
        del instance, options
        if ctx.devices is None:
            raise Fatal(
                'devices have no port to dial: add [devices] with `listen = "0.0.0.0:7430"` to '
                "hatoba.toml"
            )
        yield EdgeBackend(StreamDevices(ctx.devices))


class EdgePlugin:
    """Registers `iot-edge-arm`."""

    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The one type."""
        return [EdgeType()]


plugin = EdgePlugin()
