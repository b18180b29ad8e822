"""What Batch says of a job, in the contract's words. Pure.

Reasons come first and exit codes last: a reclaimed host and a container that used too much memory
both leave 137, and what never started leaves none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hatoba_plugins.aws.starting import start_failure
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
_SHELLS = {126: ExitKind.NOT_EXECUTABLE, 127: ExitKind.NOT_FOUND}
_SIGNAL_BASE = 128
_MAX_SIGNAL = 64

_RECLAIMED = re.compile(
    r"Host EC2 \(instance [^)]*\) (terminated|stopped)|spot interruption|Spot capacity", re.I
)
_OUT_OF_MEMORY = re.compile(r"^OutOfMemory|\bOOMKilled\b")
_TIMED_OUT = re.compile(r"attempt duration exceeded timeout|attemptDurationSeconds", re.I)
_UNSTARTED = re.compile(r"Cannot(Pull|Start|Create|Run)|ResourceInitializationError", re.I)
_CAPACITY = re.compile(r"^(CAPACITY|MISCONFIGURATION):")


def phase_of(status: str) -> Phase:
    """How far a status is; one that Batch may add one day says only that it is there."""
    return _PHASES.get(status, Phase.EXISTS)


def seen(name: str, detail: Detail) -> Observation:
    """What is seen of an attempt, from its job's details."""
    phase = phase_of(str(detail.get("status", "")))
    if phase is not Phase.ENDED:
        return Observation(name, phase, exists=True, run=run_of(detail))
    ended = exit_of(detail)
    return Observation(name, phase, True, ended, runner_gone=True, run=run_of(detail))


def run_of(detail: Detail) -> str:
    """Which run it is, as the runner in it knows it: the job's id."""
    return str(detail.get("jobId", ""))


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
    if kind is None and code is not None:
        return _by_code(code, said)
    return Exit(kind or ExitKind.FAILED, message=said or "Batch gives no reason")


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
    if code is None or _UNSTARTED.search(f"{container} {reason}"):
        return start_failure(f"{container} {reason}")
    return None


def _by_code(code: int, said: str) -> Exit:
    if _SIGNAL_BASE < code <= _SIGNAL_BASE + _MAX_SIGNAL:
        return Exit(ExitKind.SIGNALED, signal=code - _SIGNAL_BASE, message=said)
    if code in _SHELLS:
        return Exit(_SHELLS[code], message=said)
    return Exit(ExitKind.EXITED, code)


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
