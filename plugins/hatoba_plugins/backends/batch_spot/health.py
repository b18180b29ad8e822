"""What queues and their compute environments say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hatoba_plugins.backends.batch_spot.calls import BatchCalls
from hatoba_plugins.backends.batch_spot.options import Queue
from hatoba_plugins.values import Health, HealthStatus

Described = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Survey:
    """How the queues are, and how many vCPUs each of them may have, by our names of them."""

    health: Health
    vcpus: Mapping[str, float]


async def survey(calls: BatchCalls, queues: Sequence[Queue]) -> Survey:
    """Ask. Raises a BackendError."""
    described = await calls.queues([one.queue for one in queues])
    names = {place["computeEnvironment"] for one in described for place in _order(one)}
    environments = await calls.environments(sorted(names)) if names else []
    return judged(queues, described, environments)


def judged(
    queues: Sequence[Queue], described: Sequence[Described], environments: Sequence[Described]
) -> Survey:
    """What that means."""
    by_arn = {one["computeEnvironmentArn"]: one for one in environments}
    by_name = {one["jobQueueName"]: one for one in described}
    by_name |= {one["jobQueueArn"]: one for one in described}
    troubles: list[str] = []
    vcpus = {queue.name: 0.0 for queue in queues}
    for queue in queues:
        found = by_name.get(queue.queue)
        if found is None:
            troubles.append(f"queue {queue.queue!r} does not exist in this account and region")
            continue
        places = [by_arn[arn] for arn in _arns(found) if arn in by_arn]
        vcpus[queue.name] = float(sum(_most(one) for one in places))
        troubles += _of_queue(found)
        troubles += [text for one in places for text in _of_place(one)]
    worst = HealthStatus.DEGRADED if described else HealthStatus.UNHEALTHY
    return Survey(Health(worst if troubles else HealthStatus.HEALTHY, "; ".join(troubles)), vcpus)


def _order(queue: Described) -> Sequence[Described]:
    return queue.get("computeEnvironmentOrder") or ()


def _arns(queue: Described) -> list[str]:
    return [place["computeEnvironment"] for place in _order(queue)]


def _most(environment: Described) -> int:
    return int((environment.get("computeResources") or {}).get("maxvCpus", 0))


def _of_queue(queue: Described) -> list[str]:
    name, said = queue["jobQueueName"], queue.get("statusReason") or ""
    troubles = []
    if queue.get("state") != "ENABLED":
        troubles.append(f"queue {name} takes no jobs: it is {queue.get('state')}")
    if queue.get("status") not in ("VALID", "UPDATING"):
        troubles.append(f"queue {name} is {queue.get('status')} {said}".rstrip())
    return troubles


def _of_place(environment: Described) -> list[str]:
    name, said = environment["computeEnvironmentName"], environment.get("statusReason") or ""
    troubles = []
    if environment.get("state") != "ENABLED":
        troubles.append(f"compute environment {name} starts nothing: {environment.get('state')}")
    if environment.get("status") not in ("VALID", "UPDATING"):
        troubles.append(
            f"compute environment {name} is {environment.get('status')} {said}".rstrip()
        )
    return troubles
