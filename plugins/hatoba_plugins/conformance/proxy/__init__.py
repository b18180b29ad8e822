"""A proxy that breaks what passes: it stands between a backend and the real component.

The component runs as it is; what goes wrong on the way to it is made to go wrong on demand, and
what is asked of it is counted:

    async with FaultProxy.running("http://127.0.0.1:5000", Aws()) as proxy:
        backend = opened_with(endpoint=proxy.endpoint)
        proxy.lose_reply("submitjob")
        ...
        assert proxy.counts["submitjob"] == 1

A `Dialect` says how the component's calls are named and how it words its refusals; `Aws`,
`Kubernetes` and `Docker` are here, another one is a class of a few lines. Needs aiohttp. What is
signed together with the host's name (a provider's real endpoint) cannot be proxied; emulators can.
"""

from __future__ import annotations

from hatoba_plugins.conformance.proxy.dialects import (
    Aws,
    Call,
    Dialect,
    Docker,
    Kubernetes,
    Refusal,
    aws_refusal,
    docker_refusal,
    kubernetes_refusal,
)
from hatoba_plugins.conformance.proxy.server import FaultProxy, Json, Rewrite

__all__ = [
    "Aws",
    "Call",
    "Dialect",
    "Docker",
    "FaultProxy",
    "Json",
    "Kubernetes",
    "Refusal",
    "Rewrite",
    "aws_refusal",
    "docker_refusal",
    "kubernetes_refusal",
]
