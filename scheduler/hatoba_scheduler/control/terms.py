"""From a specification to the terms of a job: everything beyond the ordinary, as records."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration

from hatoba.v1 import common_pb2, job_pb2
from hatoba_scheduler.convert import micros, requirements_of
from hatoba_scheduler.domain.planning.rooms import ENGINE
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    ANYWHERE,
    PLAIN,
    LabelRequirement,
    Placement,
    RetryMutation,
    RetryPolicy,
    RetryRule,
    Terms,
)
from hatoba_scheduler.domain.states import (
    CauseCode,
    GangPolicy,
    Operator,
    Origin,
    RetryAction,
    Spot,
    Strategy,
)

POLICY = RetryPolicy()
GANG_TIMEOUT = 600.0
_RUNS_IMAGES = LabelRequirement(ENGINE, Operator.EXISTS)
_RARE = (
    "gang",
    "placement",
    "start_after",
    "deadline",
    "max_queue_time",
    "timeout",
    "disconnect",
    "preemption",
    "devices",
)


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return float(duration.seconds) + duration.nanos / 1e9


def task_count(spec: job_pb2.JobSpec) -> int:
    """How many tasks a job has: those of its array, one a device, or the members of its gang."""
    return len(spec.devices.names) or spec.array.size or spec.replicas or 1


def terms_of(
    spec: job_pb2.JobSpec, backends: tuple[str, ...] = (), inherited: Ranges | None = None
) -> Terms:
    """The terms that a specification asks for."""
    image = spec.environment.image
    plain = not (spec.replicas > 1 or spec.spot or backends or inherited or image)
    if plain and not any(spec.HasField(name) for name in _RARE):  # type: ignore[arg-type]
        return PLAIN
    gang, preemption = spec.gang, spec.preemption
    return Terms(
        gang=spec.replicas > 1,
        gang_policy=GangPolicy(gang.policy or GangPolicy.FAIL),
        gang_timeout=seconds(gang.start_timeout) or GANG_TIMEOUT,
        placement=_place_of(spec),
        start_after=micros(spec.start_after),
        deadline=micros(spec.deadline),
        max_queue_time=seconds(spec.max_queue_time),
        timeout=seconds(spec.timeout),
        stop_after=seconds(spec.disconnect.stop_after),
        lost_after=seconds(spec.disconnect.lost_after),
        never_preempt=preemption.never,
        max_preemptions=preemption.max if preemption.HasField("max") else PLAIN.max_preemptions,
        preempt_grace=seconds(preemption.grace) if preemption.HasField("grace") else -1.0,
        spot=Spot(spec.spot or Spot.ALLOW),
        backends=backends,
        inherited=inherited or Ranges(),
        devices=tuple(spec.devices.names),
    )


def _place_of(spec: job_pb2.JobSpec) -> Placement:
    """Where it says that it may go, and where what it needs is at all."""
    place = placement_of(spec.placement) if spec.HasField("placement") else ANYWHERE
    if not spec.environment.image:
        return place
    return place._replace(require=(*place.require, _RUNS_IMAGES))


def placement_of(told: job_pb2.Placement) -> Placement:
    """Where tasks may go."""
    return Placement(
        requirements_of(told.require),
        requirements_of(told.prefer),
        Strategy(told.strategy or Strategy.SPREAD),
        _selectors(told.apart_from),
        _selectors(told.near),
        told.apart,
    )


def _selectors(told: Iterable[str]) -> tuple[tuple[str, str], ...]:
    parts = (text.partition("=") for text in told)
    return tuple(sorted((key, value) for key, _, value in parts))


def retry_policy(told: common_pb2.RetryPolicy) -> RetryPolicy:
    """A retry policy, defaults filled in."""
    return RetryPolicy(
        told.user if told.HasField("user") else POLICY.user,
        told.infrastructure if told.HasField("infrastructure") else POLICY.infrastructure,
        told.preemption if told.HasField("preemption") else POLICY.preemption,
        seconds(told.backoff) if told.HasField("backoff") else POLICY.backoff,
        seconds(told.max_backoff) if told.HasField("max_backoff") else POLICY.max_backoff,
        tuple(_rule(rule) for rule in told.rules),
    )


def _rule(told: common_pb2.RetryRule) -> RetryRule:
    mutate = told.mutate
    return RetryRule(
        tuple(CauseCode(code) for code in told.causes),
        tuple(Origin(origin) for origin in told.origins),
        tuple(told.exit_codes),
        RetryAction(told.action or RetryAction.RETRY),
        told.limit if told.HasField("limit") else None,
        RetryMutation(
            mutate.memory_factor,
            mutate.memory_max_bytes,
            mutate.other_host,
            mutate.on_demand_after,
        ),
    )
