"""`k8s-gpu`: jobs and deployments in a namespace of a Kubernetes cluster."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hatoba_plugins.backend import API_VERSION, Backend, BackendContext, BackendType
from hatoba_plugins.backends.k8s_gpu.options import TYPE, K8sOptions
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import BackendOptions


class K8sType:
    """The type as it is registered. What drives Kubernetes is imported when it is opened."""

    name = TYPE
    api = API_VERSION
    options: type[BackendOptions] = K8sOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open one namespace of one cluster. Raises Fatal when it cannot be configured."""
        del instance
        assert isinstance(options, K8sOptions)
        module = await asyncio.to_thread(importlib.import_module, f"{__name__}.backend")
        async with module.opened(options, ctx) as backend:
            yield backend


class K8sPlugin:
    """Registers `k8s-gpu`."""

    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The one type."""
        return [K8sType()]


plugin = K8sPlugin()
