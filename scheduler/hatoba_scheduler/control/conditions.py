"""What of a job's terms contradicts itself or could never hold, and what is only suspicious."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from hatoba.v1 import common_pb2, job_pb2
from hatoba_scheduler.control.terms import retry_policy, seconds
from hatoba_scheduler.convert import micros
from hatoba_scheduler.domain.records import Micros, RetryPolicy, RetryRule
from hatoba_scheduler.domain.states import CauseCode, Origin, RetryAction
from hatoba_scheduler.domain.timing import shown as shown_time
from hatoba_scheduler.errors import FieldViolation, shown

STOP_MARGIN = 30.0
"""Seconds by which a runner's own stop must come before it is taken for lost."""
_RARE = ("gang", "placement", "disconnect", "preemption", "start_after", "deadline", "retries")


def problems_of_terms(spec: job_pb2.JobSpec, now: Micros) -> list[FieldViolation]:
    """What of a specification's terms is wrong; in field order. Nothing for a plain job."""
    if not spec.replicas and not any(spec.HasField(name) for name in _RARE):  # type: ignore[arg-type]
        return []
    return [
        *_of_rules(spec.retries.rules),
        *_of_gang(spec),
        *_of_placement(spec.placement),
        *_of_times(spec, now),
        *_of_disconnect(spec.disconnect),
        *_of_preemption(spec.preemption),
    ]


def _violation(path: str, what: str, value: object, remedy: str, rule: str) -> FieldViolation:
    return FieldViolation(f"spec.{path}", what, rule, shown(value), remedy)


def _of_rules(rules: Iterable[common_pb2.RetryRule]) -> Iterator[FieldViolation]:
    for place, rule in enumerate(rules):
        path = f"retries.rules[{place}]"
        codes = [CauseCode(code) for code in rule.causes]
        if rule.exit_codes and codes and CauseCode.EXIT_CODE not in codes:
            yield _violation(
                f"{path}.exit_codes",
                "can never hold together with these causes: only EXIT_CODE has exit codes",
                ", ".join(code.name for code in codes),
                "add EXIT_CODE to the causes, or leave one of the two out",
                "retries.contradiction",
            )
        if rule.action == common_pb2.RETRY_ACTION_FAIL:
            yield from _of_failing(path, rule)
        factor = rule.mutate.memory_factor
        if 0 < factor < 1:
            yield _violation(
                f"{path}.mutate.memory_factor",
                "must be 1 to 16, or 0 to leave it",
                factor,
                "write for example 2",
                "retries.memory_factor",
            )


def _of_failing(path: str, rule: common_pb2.RetryRule) -> Iterator[FieldViolation]:
    """What a rule that retries nothing cannot have."""
    for name in ("limit", "mutate"):
        if rule.HasField(name):
            yield _violation(
                f"{path}.{name}",
                "is for rules that retry; this one fails",
                "FAIL",
                "leave it out, or make the action RETRY",
                "retries.contradiction",
            )


def _of_gang(spec: job_pb2.JobSpec) -> Iterator[FieldViolation]:
    if spec.replicas and spec.HasField("array"):
        yield _violation(
            "replicas",
            f"cannot be given together with an array of {spec.array.size}",
            spec.replicas,
            "leave one out: an array's tasks start alone, a gang's members together",
            "replicas.array",
        )
    if spec.HasField("gang") and spec.replicas <= 1:
        yield _violation(
            "gang",
            "is of jobs with several replicas",
            f"replicas {spec.replicas}",
            "set replicas to 2 or more, or leave gang out",
            "gang.alone",
        )


def _of_placement(placement: job_pb2.Placement) -> Iterator[FieldViolation]:
    for name, told in (("require", placement.require), ("prefer", placement.prefer)):
        for place, one in enumerate(told):
            yield from _of_requirement(f"placement.{name}[{place}].values", one)
    for selector in set(placement.near) & set(placement.apart_from):
        yield _violation(
            "placement.near",
            "is also in apart_from, so no host could ever do",
            selector,
            "leave it out of one of the two",
            "placement.contradiction",
        )


def _of_requirement(path: str, one: job_pb2.LabelRequirement) -> Iterator[FieldViolation]:
    listed = one.operator in (
        job_pb2.LABEL_OPERATOR_UNSPECIFIED,
        job_pb2.LABEL_OPERATOR_IN,
        job_pb2.LABEL_OPERATOR_NOT_IN,
    )
    if listed and not one.values:
        yield _violation(
            path,
            "must have at least one value with IN and NOT_IN",
            one.key,
            f"add a value, or ask whether {one.key!r} EXISTS",
            "placement.values",
        )
    if not listed and one.values:
        yield _violation(
            path,
            "has no meaning with EXISTS and NOT_EXISTS",
            ", ".join(one.values),
            "leave the values out, or use IN or NOT_IN",
            "placement.values",
        )


def _of_times(spec: job_pb2.JobSpec, now: Micros) -> Iterator[FieldViolation]:
    start, deadline = micros(spec.start_after), micros(spec.deadline)
    for name, told, stamp in (
        ("start_after", start, spec.start_after),
        ("deadline", deadline, spec.deadline),
    ):
        if spec.HasField(name) and not told:  # type: ignore[arg-type]
            yield _no_time(name, stamp)
    if deadline and deadline <= now:
        yield _violation(
            "deadline",
            f"is past: it is {shown_time(now)}",
            shown_time(deadline),
            "give a time to come",
            "deadline.past",
        )
    elif deadline and deadline <= start:
        yield _violation(
            "deadline",
            f"is not after its start_after, {shown_time(start)}",
            shown_time(deadline),
            "start earlier, or end later",
            "deadline.start",
        )


def _no_time(name: str, stamp: Timestamp) -> FieldViolation:
    return _violation(
        name,
        "must be a time between 1970 and 9999",
        f"{stamp.seconds} s",
        "write for example 2026-12-01T08:00:00Z",
        "time.range",
    )


def _of_disconnect(disconnect: job_pb2.Disconnect) -> Iterator[FieldViolation]:
    stop, lost = seconds(disconnect.stop_after), seconds(disconnect.lost_after)
    if not lost:
        return
    if not stop:
        yield _violation(
            "disconnect.lost_after",
            "needs stop_after: what is taken for lost must have stopped itself before",
            f"{lost:g} s",
            f"set stop_after to {max(1.0, lost - STOP_MARGIN):g} s or less",
            "disconnect.stop_after",
        )
    elif lost < stop + STOP_MARGIN:
        yield _violation(
            "disconnect.lost_after",
            f"must be at least {STOP_MARGIN:g} s more than stop_after, {stop:g} s",
            f"{lost:g} s",
            f"set it to {stop + STOP_MARGIN:g} s or more",
            "disconnect.margin",
        )


def _of_preemption(preemption: job_pb2.Preemption) -> Iterator[FieldViolation]:
    if preemption.never and preemption.HasField("max") and preemption.max:
        yield _violation(
            "preemption.max",
            "contradicts never",
            preemption.max,
            "leave one out",
            "preemption.contradiction",
        )


# -- suspicious ---------------------------------------------------------------------------------


def warnings_of_terms(spec: job_pb2.JobSpec) -> list[str]:
    """What is accepted, and is probably not what was meant; one sentence each."""
    if not spec.HasField("retries"):
        return []
    policy = retry_policy(spec.retries)
    return [*_of_back_off(policy), *_of_idle_rules(policy, spec)]


def _of_back_off(policy: RetryPolicy) -> Iterator[str]:
    if policy.backoff > policy.max_backoff:
        yield (
            f"The first back-off of {policy.backoff:g} s is longer than max_backoff, "
            f"{policy.max_backoff:g} s, which counts."
        )


def _of_idle_rules(policy: RetryPolicy, spec: job_pb2.JobSpec) -> Iterator[str]:
    """Rules that never change anything."""
    caught = 0
    for number, rule in enumerate(policy.rules, 1):
        if caught:
            yield f"Retry rule {number} never speaks: rule {caught} before it holds always."
            continue
        if not (rule.causes or rule.origins or rule.exit_codes):
            caught = number
        if _pays_nothing(rule, policy):
            yield (
                f"Retry rule {number} retries nothing: the budget for user errors is 0 and the "
                "rule has no limit of its own; give it one."
            )
        if rule.mutate.memory_factor > 1 and not spec.resources.memory_bytes:
            yield (
                f"Retry rule {number} multiplies the memory, and the job asks for none; "
                "say what it needs in resources.memory_bytes."
            )


def _pays_nothing(rule: RetryRule, policy: RetryPolicy) -> bool:
    users = rule.origins == (Origin.USER,) or bool(rule.exit_codes)
    paid = policy.user or rule.limit is not None
    return rule.action is RetryAction.RETRY and users and not paid
