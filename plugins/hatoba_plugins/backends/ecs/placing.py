"""Where tasks run: the parts of a request that RunTask and CreateService share. Pure."""

from __future__ import annotations

from typing import Any

from hatoba_plugins.backends.ecs.options import EcsOptions


def placing(options: EcsOptions, gpus: int) -> dict[str, Any]:
    """Capacity and network of what needs so many GPUs."""
    return _capacity(options, gpus) | _network(options)


def _capacity(options: EcsOptions, gpus: int) -> dict[str, Any]:
    if options.launch_type:
        return {"launchType": options.launch_type}
    provider = options.provider_for(gpus)
    if not provider:
        return {}
    return {"capacityProviderStrategy": [{"capacityProvider": provider, "weight": 1}]}


def _network(options: EcsOptions) -> dict[str, Any]:
    if options.network != "awsvpc":
        return {}
    own: dict[str, Any] = {"subnets": list(options.subnets)}
    if options.security_groups:
        own["securityGroups"] = list(options.security_groups)
    if options.public_address:
        own["assignPublicIp"] = "ENABLED"
    return {"networkConfiguration": {"awsvpcConfiguration": own}}
