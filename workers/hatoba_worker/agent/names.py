"""What a deployment is called on a device: its slot, which is a name that files may have."""

from __future__ import annotations

import re

_RESOURCE = re.compile(r"projects/([a-z0-9-]{1,64})/deployments/([a-z0-9-]{1,64})")
_SLOT = re.compile(r"([a-z0-9-]{1,64})\.([a-z0-9-]{1,64})")


def slot_name(deployment: str) -> str:
    """The slot `PROJECT.NAME` of `projects/PROJECT/deployments/NAME`. Raises ValueError."""
    found = _RESOURCE.fullmatch(deployment)
    if found is None:
        raise ValueError(f"not the name of a deployment: {deployment!r}")
    return f"{found[1]}.{found[2]}"


def resource_name(slot: str) -> str:
    """The deployment of a slot. Raises ValueError."""
    found = _SLOT.fullmatch(slot)
    if found is None:
        raise ValueError(f"not the name of a slot: {slot!r}")
    return f"projects/{found[1]}/deployments/{found[2]}"
