"""Whether a new replica with GPUs finds a place beside the old ones, before it is asked for. Pure.

With all GPUs taken a roll-out that first starts the new one waits for ever: ECS never stops the old
one, and says only that it was unable to place a task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hatoba.v1 import common_pb2
from hatoba_plugins.values import Target

Instance = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Headroom:
    """GPUs that are free, instance by instance; None for `free`: the provider makes instances."""

    free: tuple[int, ...] | None

    def places(self, gpus: int) -> int:
        """How many replicas with so many GPUs find a place now."""
        if self.free is None:
            return 1_000_000
        return sum(free // gpus for free in self.free)


@dataclass(frozen=True, slots=True)
class Decision:
    """How to exchange: the target to plan with, and what to say about it."""

    target: Target
    problem: common_pb2.Cause | None = None


def headroom(instances: Iterable[Instance], *, scales: bool) -> Headroom:
    """From described container instances; `scales`: managed scaling adds some when needed."""
    if scales:
        return Headroom(None)
    free = [_free(one) for one in instances if one.get("status") == "ACTIVE"]
    return Headroom(tuple(free))


def _free(instance: Instance) -> int:
    if not instance.get("agentConnected", True):
        return 0
    for resource in instance.get("remainingResources") or []:
        if resource.get("name") == "GPU":
            return len(resource.get("stringSetValue") or []) or int(resource.get("integerValue", 0))
    return 0


def decide(target: Target, gpus: int, room: Headroom, *, stop_first: bool) -> Decision:
    """Exchange as asked while there is room for one more; else stop an old one first, or say no.

    Call it only where a replica is to be made. Stop-first needs an old one that may go.
    """
    if not gpus or room.places(gpus):
        return Decision(target)
    free = ", ".join(map(str, sorted(room.free or (), reverse=True))) or "none"
    facts = f"a new replica needs {gpus} GPUs on one instance; free on each: {free}"
    if stop_first:
        told = f"Stop-first: {facts}. An old replica is stopped before each new one starts."
        least = max(1, target.max_unavailable)
        return Decision(replace(target, max_unavailable=least, max_surge=0), _cause(told))
    told = (
        f'Refused: {facts}. Add an instance, or set gpu_exchange = "stop_first" to have an old'
        " replica stopped first."
    )
    return Decision(replace(target, max_surge=0), _cause(told))


def _cause(message: str) -> common_pb2.Cause:
    return common_pb2.Cause(
        code=common_pb2.CAUSE_CODE_NO_CAPACITY,
        origin=common_pb2.ORIGIN_CAPACITY,
        message=message,
        retryable=True,
    )
