"""What Batch says of a job, in the contract's words. Pure.

Reasons come first and exit codes last: a reclaimed host and a container that used too much memory
both leave 137, and what never started leaves none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hatoba_plugins.runner import CLAIM_REFUSED
from hatoba_plugins.values import Exit, ExitKind, Observation, Phase

Detail = Mapping[str, Any]
OUR_STOP = "hatoba: stopped"
"""How the reason of our own terminations begins."""
TERMINAL = frozenset({"SUCCEEDED", "FAILED"})
STATUSES = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING", "SUCCEEDED", "FAILED")

_PHASES = {
    "SUBMITTED": Phase.WAITING,
    "PENDING": Phase.WAITING,
    "RUNNABLE": Phase.WAITING,
    "STARTING": Phase.STARTING,
    "RUNNING": Phase.RUNNING,
    "SUCCEEDED": Phase.ENDED,
    "FAILED": Phase.ENDED,
}
_SIGNAL_BASE = 128
_MAX_SIGNAL = 64

_RECLAIMED = re.compile(
    r"Host EC2 \(instance [^)]*\) (terminated|stopped)|spot interruption|Spot capacity", re.I
)
_OUT_OF_MEMORY = re.compile(r"OutOfMemory|out of memory|OOM", re.I)
_TIMED_OUT = re.compile(r"attempt duration exceeded timeout|attemptDurationSeconds", re.I)
_PULL_PASSES = re.compile(
    r"timeout|timed out|toomanyrequests|rate exceeded|50[0-9]|TLS handshake|connection reset"
    r"|i/o|EOF|no such host|temporary failure|context canceled",
    re.I,
)
_NO_COMMAND = re.compile(r"executable file not found|no such file or directory", re.I)
_NO_RIGHT = re.compile(r"permission denied|exec format error", re.I)
_NO_SECRET = re.compile(r"secret|ssm|parameter", re.I)
_CAPACITY = re.compile(r"^(CAPACITY|MISCONFIGURATION):")


def phase_of(status: str) -> Phase:
    """How far a status is; one that Batch may add one day says only that it is there."""
    return _PHASES.get(status, Phase.EXISTS)


def seen(name: str, detail: Detail) -> Observation:
    """What is seen of an attempt, from its job's details."""
    phase = phase_of(str(detail.get("status", "")))
    if phase is not Phase.ENDED:
        return Observation(name, phase, exists=True)
    return Observation(name, phase, exists=True, exit=exit_of(detail), runner_gone=True)


def refused_claim(detail: Detail) -> bool:
    """Whether it is a run that another one of the same name was ahead of."""
    return detail.get("status") == "FAILED" and _last(detail)[1] == CLAIM_REFUSED


def exit_of(detail: Detail) -> Exit:
    """How it ended; for statuses that end it."""
    if detail["status"] == "SUCCEEDED":
        return Exit(ExitKind.EXITED, 0)
    reason, code, container = _last(detail)
    said = "; ".join(text for text in (reason, container) if text)
    kind = _by_reason(detail, reason, container, code)
    if kind is not None:
        return Exit(kind, message=said)
    return _by_code(code, said)


def _by_reason(detail: Detail, reason: str, container: str, code: int | None) -> ExitKind | None:
    if _RECLAIMED.search(reason):
        return ExitKind.PREEMPTED
    if reason.startswith(OUR_STOP):
        return ExitKind.STOPPED
    if _TIMED_OUT.search(reason):
        return ExitKind.RUN_TIMEOUT
    if _OUT_OF_MEMORY.search(container):
        return ExitKind.OUT_OF_MEMORY
    if detail.get("isTerminated") or detail.get("isCancelled"):
        # By somebody else, or by the queue's own limit on how long a job may wait.
        return ExitKind.FAILED if _CAPACITY.search(reason) else ExitKind.STOPPED
    return _never_started(f"{container} {reason}", code)


def _never_started(said: str, code: int | None) -> ExitKind | None:
    """What kept a container from being started; None: it was."""
    if "CannotPull" in said:
        return ExitKind.FAILED if _PULL_PASSES.search(said) else ExitKind.ENVIRONMENT_FAILED
    if "ResourceInitializationError" in said:
        return ExitKind.SECRET_MISSING if _NO_SECRET.search(said) else ExitKind.FAILED
    if "CannotStart" in said or "CannotCreate" in said or "CannotRun" in said:
        return _never_ran(said)
    return None if code is not None else ExitKind.FAILED


def _never_ran(said: str) -> ExitKind:
    if "exec format error" in said:
        return ExitKind.ENVIRONMENT_FAILED
    if _NO_COMMAND.search(said):
        return ExitKind.NOT_FOUND
    return ExitKind.NOT_EXECUTABLE if _NO_RIGHT.search(said) else ExitKind.FAILED


def _by_code(code: int | None, said: str) -> Exit:
    if code is None:
        return Exit(ExitKind.FAILED, message=said or "Batch gives no reason")
    if _SIGNAL_BASE < code <= _SIGNAL_BASE + _MAX_SIGNAL:
        return Exit(ExitKind.SIGNALED, signal=code - _SIGNAL_BASE, message=said)
    return Exit(ExitKind.EXITED, code, message="" if "Essential container" in said else said)


def _last(detail: Detail) -> tuple[str, int | None, str]:
    """Reason, exit code and the container's reason of the last attempt; then of the job."""
    attempts = detail.get("attempts") or [{}]
    last, whole = attempts[-1], detail.get("container") or {}
    inner = last.get("container") or {}
    code = inner.get("exitCode", whole.get("exitCode"))
    reason = last.get("statusReason") or detail.get("statusReason") or ""
    # The job's own reason is the newer one when it was terminated from outside.
    if detail.get("isTerminated") or str(detail.get("statusReason", "")).startswith(OUR_STOP):
        reason = detail.get("statusReason") or reason
    return str(reason), code, str(inner.get("reason") or whole.get("reason") or "")


def log_stream(detail: Detail) -> str:
    """Its log stream; empty: it has none yet."""
    attempts = detail.get("attempts") or [{}]
    inner = (attempts[-1].get("container") or {}).get("logStreamName")
    return str(inner or (detail.get("container") or {}).get("logStreamName") or "")
