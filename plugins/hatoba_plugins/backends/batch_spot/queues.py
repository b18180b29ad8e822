"""Which queue an attempt goes to, and what the planner is told of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hatoba.v1 import job_pb2
from hatoba_plugins.backends.batch_spot.options import Queue
from hatoba_plugins.errors import Invalid
from hatoba_plugins.values import LaunchRequest, Pool, Share

SLOTS = 1_000_000
BOUNDLESS = 2**50
"""Bytes, where nobody said how large the largest instance is."""


def choose(request: LaunchRequest, queues: Sequence[Queue], on_demand_after: int) -> Queue:
    """The queue for an attempt. Raises Invalid when none will do.

    Spot unless the job wants it otherwise: one that prefers spot goes without after so many
    losses, one whose retry rule says so when the planner does. Where the planner put it rules among
    those that will do.
    """
    gpus = request.spec.resources.gpus
    able = [one for one in queues if one.gpus >= gpus]
    on_demand = wants_on_demand(request, able, on_demand_after)
    right = [one for one in able if one.spot is not on_demand]
    if request.spec.spot not in (job_pb2.SPOT_ONLY, job_pb2.SPOT_NEVER):
        right = right or able  # who configured one kind only means that one
    if not right:
        raise Invalid(_nowhere(gpus, on_demand=on_demand))
    planned = [one for one in right if one.name == request.placement.pool]
    return (planned or sorted(right, key=lambda one: (one.gpus, one.name)))[0]


def wants_on_demand(request: LaunchRequest, queues: Iterable[Queue], after: int) -> bool:
    """Whether this attempt is to be kept from spot capacity."""
    wanted = request.spec.spot
    if wanted in (job_pb2.SPOT_NEVER, job_pb2.SPOT_ONLY):
        return wanted == job_pb2.SPOT_NEVER
    there = {one.name for one in queues if not one.spot}
    if not there or not request.spot_losses:
        return False
    preferring = wanted == job_pb2.SPOT_PREFER and request.spot_losses >= after
    return preferring or request.placement.pool in there


def _nowhere(gpus: int, *, on_demand: bool) -> str:
    kind = "without spot" if on_demand else "of spot"
    with_gpus = f" with {gpus} GPUs" if gpus else ""
    return f"no queue {kind} capacity{with_gpus} is configured"


def pool_of(
    queue: Queue, vcpus: float, secrets: Iterable[str] = (), *, embedded: bool = False
) -> Pool:
    """A queue as the planner sees it; `vcpus` are what its compute environments may have,
    `embedded`: there is an image for jobs that name none.
    """
    labels = {**queue.labels, "spot": "true" if queue.spot else "false"}
    cpus = queue.cpus or vcpus
    total = Share(cpus, queue.memory or BOUNDLESS, queue.gpus, SLOTS)
    ids = tuple(map(str, range(queue.gpus)))
    known = frozenset(secrets)
    told = tuple(sorted(labels.items()))
    return Pool(queue.name, total, ids, told, embedded=embedded, secrets=known)
