"""From what ECS says of a task to what the contract knows. Pure.

Reason fields come before exit codes: a container that was killed for its memory may end with 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hatoba.v1 import common_pb2
from hatoba_plugins.aws.starting import start_failure
from hatoba_plugins.backends.ecs.names import STOPPED, TIMED_OUT
from hatoba_plugins.errors import BackendError, Denied, Fatal, Invalid, NoCapacity, Retry
from hatoba_plugins.values import Exit, ExitKind, Observation, Phase

CONTAINER = "main"
"""Name of the container that has the command."""
Task = Mapping[str, Any]

_PHASES = {
    "PROVISIONING": Phase.WAITING,
    "PENDING": Phase.STARTING,
    "ACTIVATING": Phase.STARTING,
    "RUNNING": Phase.RUNNING,
    "DEACTIVATING": Phase.RUNNING,
    "STOPPING": Phase.RUNNING,
    "DEPROVISIONING": Phase.RUNNING,
    "STOPPED": Phase.ENDED,
    "DELETED": Phase.ENDED,
}
_OUT_OF_MEMORY = ("OutOfMemoryError", "OutOfMemory:")
_TAKEN_BACK = ("SpotInterruption", "TerminationNotice")
_HOST_GONE = re.compile(r"Host EC2 \(instance [^)]*\) (terminated|stopped)")
_FAILED_TO_START = (
    "TaskFailedToStart",
    "CannotStartContainerError",
    "CannotCreateContainerError",
    "ContainerRuntimeError",
    "ContainerRuntimeTimeoutError",
    "DockerTimeoutError",
    "ResourceInitializationError",
    "InternalError",
)


def observation_of(name: str, task: Task) -> Observation:
    """What is seen of an attempt whose task this is."""
    phase = _PHASES.get(str(task.get("lastStatus", "")), Phase.EXISTS)
    ended = phase is Phase.ENDED
    host = str(task.get("containerInstanceArn") or "").rsplit("/", 1)[-1]
    run = str(task.get("taskArn", ""))
    if ended:
        return Observation(name, phase, exists=False, exit=exit_of(task), host=host, run=run)
    return Observation(name, phase, exists=True, host=host, run=run)


def exit_of(task: Task) -> Exit:
    """How a stopped task ended."""
    said = _said(task)
    container = main_container(task)
    reason = str(task.get("stoppedReason") or "")
    if any(word in said for word in _OUT_OF_MEMORY):
        return Exit(ExitKind.OUT_OF_MEMORY, message=said)
    if reason.startswith(TIMED_OUT):
        return Exit(ExitKind.RUN_TIMEOUT)
    if reason.startswith(STOPPED):
        return Exit(ExitKind.STOPPED)
    return _by_stop_code(task, said) or _by_exit_code(container.get("exitCode"), said)


def _by_stop_code(task: Task, said: str) -> Exit | None:
    """What the stop's code and reason tell; None: the exit code has to."""
    code = str(task.get("stopCode") or "")
    if code in _TAKEN_BACK:
        return Exit(ExitKind.PREEMPTED, message=said, spot=code == "SpotInterruption")
    if code == "InfrastructureHealth" or _HOST_GONE.search(said):
        return Exit(ExitKind.LOST, message=said)
    if _never_started(code, said):
        return Exit(start_failure(said), message=said)
    if code in ("UserInitiated", "ServiceSchedulerInitiated"):
        return Exit(ExitKind.STOPPED, message=f"somebody stopped its task: {said}")
    return None


def _never_started(code: str, said: str) -> bool:
    return code == "TaskFailedToStart" or said.startswith(("CannotPull", *_FAILED_TO_START))


def _by_exit_code(code: int | None, said: str) -> Exit:
    if code is None:
        return Exit(ExitKind.LOST, message=said)
    if 128 < code < 160:
        return Exit(ExitKind.SIGNALED, signal=code - 128)
    if code in (126, 127):
        return Exit((ExitKind.NOT_EXECUTABLE, ExitKind.NOT_FOUND)[code - 126], message=said)
    return Exit(ExitKind.EXITED, code)


def main_container(task: Task) -> Mapping[str, Any]:
    """The container with the command; empty before there is one."""
    containers = task.get("containers") or []
    named = [one for one in containers if one.get("name") == CONTAINER]
    return next(iter(named or containers), {})


def _said(task: Task) -> str:
    """What ECS says about the end: the container's reason before the task's."""
    reasons = [str(one.get("reason") or "") for one in task.get("containers") or []]
    told = [reason for reason in (*reasons, str(task.get("stoppedReason") or "")) if reason]
    return "; ".join(dict.fromkeys(told))


# -- what RunTask did not do -----------------------------------------------------------------------


def refusal(failure: Mapping[str, Any]) -> BackendError:
    """One of the `failures` of a RunTask that was answered with 200: nothing was started."""
    reason = str(failure.get("reason") or "")
    said = f"ecs:RunTask: {reason} {failure.get('detail') or ''}".strip()
    word = reason.upper()
    if word.startswith("RESOURCE") or "CAPACITY" in word or "NO ACTIVE" in word:
        return NoCapacity(f"{said}: no instance of the cluster has this free")
    if word.startswith("AGENT"):
        return Retry(f"{said}: the instance's agent is not connected")
    if word.startswith(("ATTRIBUTE", "MEMBEROF", "LOCATION")):
        return Invalid(f"{said}: no instance of the cluster has what the definition requires")
    if "NOT AUTHORIZED" in word or "ACCESSDENIED" in word:
        return Denied(said)
    if word.startswith(("MISSING", "INACTIVE")):
        return Fatal(f"{said}: the cluster or its instance is gone")
    return Retry(said or "ecs:RunTask answered with neither a task nor a failure")


# -- why a replica ended ---------------------------------------------------------------------------

_CAUSES = {
    ExitKind.EXITED: (common_pb2.CAUSE_CODE_EXIT_CODE, common_pb2.ORIGIN_USER),
    ExitKind.SIGNALED: (common_pb2.CAUSE_CODE_SIGNAL, common_pb2.ORIGIN_USER),
    ExitKind.OUT_OF_MEMORY: (common_pb2.CAUSE_CODE_OUT_OF_MEMORY, common_pb2.ORIGIN_USER),
    ExitKind.STOPPED: (common_pb2.CAUSE_CODE_LOST, common_pb2.ORIGIN_INFRASTRUCTURE),
    ExitKind.PREEMPTED: (common_pb2.CAUSE_CODE_SPOT_RECLAIMED, common_pb2.ORIGIN_PREEMPTION),
    ExitKind.LOST: (common_pb2.CAUSE_CODE_HOST_LOST, common_pb2.ORIGIN_INFRASTRUCTURE),
    ExitKind.IMAGE_MISSING: (common_pb2.CAUSE_CODE_IMAGE_MISSING, common_pb2.ORIGIN_USER),
    ExitKind.IMAGE_DENIED: (common_pb2.CAUSE_CODE_IMAGE_DENIED, common_pb2.ORIGIN_USER),
    ExitKind.IMAGE_ARCHITECTURE: (
        common_pb2.CAUSE_CODE_IMAGE_ARCHITECTURE,
        common_pb2.ORIGIN_USER,
    ),
    ExitKind.IMAGE_UNREACHABLE: (
        common_pb2.CAUSE_CODE_IMAGE_UNREACHABLE,
        common_pb2.ORIGIN_INFRASTRUCTURE,
    ),
    ExitKind.NOT_FOUND: (common_pb2.CAUSE_CODE_COMMAND_NOT_FOUND, common_pb2.ORIGIN_USER),
    ExitKind.NOT_EXECUTABLE: (
        common_pb2.CAUSE_CODE_COMMAND_NOT_EXECUTABLE,
        common_pb2.ORIGIN_USER,
    ),
    ExitKind.SECRET_MISSING: (common_pb2.CAUSE_CODE_SECRET_MISSING, common_pb2.ORIGIN_USER),
}
_HOPELESS = (
    ExitKind.IMAGE_MISSING,
    ExitKind.IMAGE_DENIED,
    ExitKind.IMAGE_ARCHITECTURE,
    ExitKind.NOT_FOUND,
    ExitKind.SECRET_MISSING,
)
_SENTENCES = {
    ExitKind.EXITED: "It ended with exit code {0.code}",
    ExitKind.SIGNALED: "It was ended by signal {0.signal}",
    ExitKind.OUT_OF_MEMORY: "It used more memory than it asked for",
    ExitKind.PREEMPTED: "The provider took its capacity back",
}


def replica_cause(task: Task) -> common_pb2.Cause:
    """Why a replica's task ended, in the contract's words."""
    end = exit_of(task)
    infrastructure = common_pb2.CAUSE_CODE_BACKEND_FAILED, common_pb2.ORIGIN_INFRASTRUCTURE
    code, origin = _CAUSES.get(end.kind, infrastructure)
    sentence = _SENTENCES.get(end.kind, "Its task ended").format(end)
    message = f"{sentence}: {end.message}." if end.message else f"{sentence}."
    cause = common_pb2.Cause(
        code=code,
        origin=origin,
        message=message[:1024],
        retryable=end.kind not in _HOPELESS,
        evidence={"task": str(task.get("taskArn", "")), "stop_code": str(task.get("stopCode", ""))},
    )
    if end.kind is ExitKind.EXITED:
        cause.exit_code = end.code
    if end.kind is ExitKind.SIGNALED:
        cause.signal = end.signal
    return cause
