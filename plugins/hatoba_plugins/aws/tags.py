"""The tags by which we know what is ours, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hatoba_plugins.values import LaunchRequest

CLUSTER = "hatoba:cluster"
JOB = "hatoba:job"
INDEX = "hatoba:index"
NUMBER = "hatoba:number"
ATTEMPT = "hatoba:attempt"
FENCE = "hatoba:fence"
SPEC = "hatoba:spec"
"""sha256 of what was asked for, in hex."""
RELEASED = "hatoba:released"
"""The core has let go of it; only its history is left."""


@dataclass(frozen=True, slots=True)
class AwsOwner:
    """Whose attempt an external object is."""

    name: str
    cluster_id: str
    job_uid: str
    index: int
    number: int
    fence: int


def owner_tags(request: LaunchRequest, cluster_id: str, spec: str) -> dict[str, str]:
    """What an attempt's object is tagged with; `spec` is the hash of its manifest."""
    return {
        CLUSTER: cluster_id,
        JOB: request.job_uid,
        INDEX: str(request.index),
        NUMBER: str(request.number),
        ATTEMPT: request.name,
        FENCE: str(request.fence),
        SPEC: spec,
    }


def owner_of(tags: Mapping[str, str]) -> AwsOwner | None:
    """Whose it is; None when its tags are not ours, or somebody changed them."""
    try:
        numbers = [int(tags[key]) for key in (INDEX, NUMBER, FENCE)]
        return AwsOwner(tags[ATTEMPT], tags[CLUSTER], tags[JOB], *numbers)
    except (KeyError, ValueError):
        return None


def listed(tags: Mapping[str, str], key: str = "key", value: str = "value") -> list[dict[str, str]]:
    """Tags as most services take them: a list of pairs."""
    return [{key: name, value: text} for name, text in sorted(tags.items())]


def mapped(tags: list[dict[str, str]], key: str = "key", value: str = "value") -> dict[str, str]:
    """The reverse of `listed`."""
    return {pair[key]: pair[value] for pair in tags}
