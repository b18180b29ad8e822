"""What a service's description says of its roll-out. Pure.

A service that is steady says nothing yet: after a roll-back it is steady on what it had before. It
is as wanted only when the definition that runs is the one that was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hatoba.v1 import common_pb2

Service = Mapping[str, Any]


class ServiceState(Enum):
    """How a service stands to what was asked of it."""

    ABSENT = "absent"
    STARTING = "starting"
    PROGRESSING = "progressing"
    READY = "ready"
    DEGRADED = "degraded"
    """It was ready; tasks of it are missing now."""
    ROLLED_BACK = "rolled_back"
    """It is, or will be, steady on a definition that is not the wanted one."""
    FAILED = "failed"
    """It starts no more tasks."""
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A service's state, and what ECS says about it."""

    state: ServiceState
    reason: str = ""
    failed_tasks: int = 0


_GONE = {
    "DRAINING": ServiceState.STOPPING,
    "INACTIVE": ServiceState.STOPPED,
}
_BREAKER = re.compile(r"circuit breaker", re.IGNORECASE)
_ROLL_BACK = re.compile(r"roll(ed|ing)?[ -]?back", re.IGNORECASE)
_NO_ROOM = re.compile(r"unable to place a task|capacity is unavailable|was unable to place", re.I)
_CHURN = re.compile(
    r"unable to consistently start tasks|is not able to start|failed to launch", re.I
)
_QUOTA = re.compile(r"you've reached the limit|limit on the number of", re.I)


def verdict(service: Service | None, wanted: str) -> Verdict:
    """How a service stands to `wanted`, the ARN of a task definition."""
    if service is None:
        return Verdict(ServiceState.ABSENT)
    if gone := _GONE.get(str(service.get("status"))):
        return Verdict(gone)
    deployments = service.get("deployments") or []
    primary: Mapping[str, Any] = next((d for d in deployments if d.get("status") == "PRIMARY"), {})
    if str(service.get("taskDefinition")) != wanted or _is_rolling_back(primary):
        return _other_definition(service, deployments, primary, wanted)
    return _by_rollout(service, primary)


def _is_rolling_back(primary: Mapping[str, Any]) -> bool:
    return bool(_ROLL_BACK.search(str(primary.get("rolloutStateReason") or "")))


def _other_definition(
    service: Service, deployments: Sequence[Mapping[str, Any]], primary: Mapping[str, Any], to: str
) -> Verdict:
    """It runs something else: because of a roll-back, or because it was never told."""
    failed = [d for d in deployments if d.get("rolloutState") == "FAILED"]
    ours = next((d for d in failed if d.get("taskDefinition") == to), None)
    reasons = [str(d.get("rolloutStateReason") or "") for d in (*failed, primary)]
    if ours is None and not any(_ROLL_BACK.search(one) for one in reasons):
        return Verdict(ServiceState.PROGRESSING, "another definition runs still")
    if primary.get("rolloutState") == "FAILED":
        return Verdict(ServiceState.FAILED, _reason(service, reasons), _failures(failed))
    return Verdict(ServiceState.ROLLED_BACK, _reason(service, reasons), _failures(failed))


def _by_rollout(service: Service, primary: Mapping[str, Any]) -> Verdict:
    desired, running = int(service.get("desiredCount", 0)), int(service.get("runningCount", 0))
    reason, failures = str(primary.get("rolloutStateReason") or ""), _failures([primary])
    rollout = primary.get("rolloutState")
    if rollout == "FAILED":
        return Verdict(ServiceState.FAILED, reason, failures)
    if rollout == "COMPLETED":
        state = ServiceState.READY if running >= desired else ServiceState.DEGRADED
        return Verdict(state, reason, failures)
    started = int(primary.get("runningCount", 0)) > 0
    state = ServiceState.PROGRESSING if started else ServiceState.STARTING
    return Verdict(state, reason, failures)


def _failures(deployments: Sequence[Mapping[str, Any]]) -> int:
    return max((int(d.get("failedTasks", 0)) for d in deployments), default=0)


def _reason(service: Service, reasons: Sequence[str]) -> str:
    breaker = [one for one in reasons if _BREAKER.search(one)]
    told = breaker or [one for one in reasons if one] or event_messages(service)[:1]
    return next(iter(told), "")


def event_messages(service: Service) -> list[str]:
    """What a service tells of itself, newest first."""
    return [str(event.get("message") or "") for event in service.get("events") or []]


def trouble(service: Service) -> common_pb2.Cause | None:
    """Why the newest word of a service says that it starts no tasks; None: it does not say so."""
    newest = next(iter(event_messages(service)), "")
    if _NO_ROOM.search(newest):
        return _cause(common_pb2.CAUSE_CODE_NO_CAPACITY, common_pb2.ORIGIN_CAPACITY, newest)
    if _QUOTA.search(newest):
        return _cause(common_pb2.CAUSE_CODE_NO_CAPACITY, common_pb2.ORIGIN_POLICY, newest)
    if _CHURN.search(newest):
        return _cause(common_pb2.CAUSE_CODE_CRASH_LOOP, common_pb2.ORIGIN_USER, newest)
    return None


def broken_off(told: Verdict, revision: int, last: common_pb2.Cause | None) -> common_pb2.Cause:
    """What a failed or rolled back roll-out means for a revision; `last` is why a task ended."""
    rolled_back = told.state is ServiceState.ROLLED_BACK
    what = "rolled back" if rolled_back else "gave up"
    because = f" Its last task: {last.message}" if last is not None else ""
    reason = f" ({told.reason.rstrip('.')})" if told.reason else ""
    cause = _cause(
        common_pb2.CAUSE_CODE_CRASH_LOOP,
        last.origin if last is not None else common_pb2.ORIGIN_USER,
        f"The circuit breaker of ECS {what} revision {revision}{reason}.{because}",
    )
    cause.retryable = False
    cause.evidence["rollout"] = told.state.value
    cause.evidence["failed_tasks"] = str(told.failed_tasks)
    if last is not None and last.HasField("exit_code"):
        cause.exit_code = last.exit_code
    return cause


def _cause(
    code: common_pb2.CauseCode.ValueType, origin: common_pb2.Origin.ValueType, message: str
) -> common_pb2.Cause:
    return common_pb2.Cause(code=code, origin=origin, message=message[:1024], retryable=True)
