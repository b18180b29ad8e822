"""`ecs`: models behind services, and jobs as tasks, on Amazon ECS.

What talks to AWS is imported when an instance is opened.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from hatoba_plugins.backend import API_VERSION, Backend, BackendContext, BackendType
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import BackendOptions


class EcsType:
    """The type as it is registered."""

    name = "ecs"
    api = API_VERSION
    options: type[BackendOptions] = EcsOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open one instance. Raises Denied and Invalid for what it cannot be opened with."""
        if not isinstance(options, EcsOptions):
            raise TypeError(f"ecs is opened with EcsOptions, not {type(options).__name__}")
        where = "hatoba_plugins.backends.ecs.opening"
        opening: Any = await asyncio.to_thread(importlib.import_module, where)
        async with opening.opened(instance, options, ctx) as backend:
            yield backend


class EcsPlugin:
    """Registers `ecs`."""

    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The one type."""
        return [EcsType()]


plugin = EcsPlugin()
