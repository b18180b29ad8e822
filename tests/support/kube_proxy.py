"""The kit's proxy before a real API server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hatoba_plugins.conformance.proxy import FaultProxy, Kubernetes

EXPIRED = Kubernetes.version_expired


@asynccontextmanager
async def kube_proxy(upstream: str, authority: str) -> AsyncIterator[FaultProxy]:
    """One that listens on loopback until it is left; `authority` is the PEM of the server's."""
    trust = await asyncio.to_thread(ssl.create_default_context, cadata=authority)
    async with FaultProxy.running(upstream, Kubernetes(), trust=trust) as proxy:
        yield proxy
