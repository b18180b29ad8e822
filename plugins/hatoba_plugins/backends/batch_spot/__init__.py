"""`batch-spot`: jobs on AWS Batch, on spot capacity unless a job wants it otherwise.

The SDK is imported when an instance is opened, and not before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hatoba_plugins.backend import API_VERSION, Backend, BackendContext, BackendType
from hatoba_plugins.backends.batch_spot.backend import opened
from hatoba_plugins.backends.batch_spot.options import BatchOptions
from hatoba_plugins.spec import hookimpl
from hatoba_plugins.values import BackendOptions


class BatchType:
    """The type as it is registered."""

    name = "batch-spot"
    api = API_VERSION
    options: type[BackendOptions] = BatchOptions

    @asynccontextmanager
    async def open(
        self, instance: str, options: BackendOptions, ctx: BackendContext
    ) -> AsyncIterator[Backend]:
        """Open one instance. Raises Denied and Invalid for credentials and a region that cannot be,
        Retry where nobody answers.
        """
        del instance
        assert isinstance(options, BatchOptions)
        async with opened(options, ctx) as backend:
            yield backend


class BatchPlugin:
    """Registers `batch-spot`."""

    @hookimpl
    def hatoba_backend_types(self) -> list[BackendType]:
        """The one type."""
        return [BatchType()]


plugin = BatchPlugin()
