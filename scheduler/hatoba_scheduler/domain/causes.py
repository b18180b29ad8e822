"""What endings mean: from how a command ended to a cause with origin and retry advice."""

from __future__ import annotations

import signal as signals
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from hatoba_scheduler.domain.records import Cause, Usage
from hatoba_scheduler.domain.states import AttemptState, CauseCode, Origin

_USER = Origin.USER
_INFRA = Origin.INFRASTRUCTURE


class ExitKind(Enum):
    """How a command ended, as its runner or backend saw it."""

    EXITED = 1
    SIGNALED = 2
    OUT_OF_MEMORY = 3
    NOT_FOUND = 4
    NOT_EXECUTABLE = 5
    RUN_TIMEOUT = 6
    STOPPED = 7
    ENVIRONMENT_FAILED = 8
    STAGING_FAILED = 9
    OUTPUT_FAILED = 10
    SECRET_MISSING = 11
    LOST = 12
    INPUT_CHANGED = 13
    PREEMPTED = 14
    BACKEND_FAILED = 15
    DISCONNECTED = 16
    IMAGE_MISSING = 17
    IMAGE_DENIED = 18
    IMAGE_ARCHITECTURE = 19
    IMAGE_UNREACHABLE = 20
    DEVICE_FAULT = 21


class Ending(NamedTuple):
    """How an attempt ended; `code` with EXITED, `signal` with SIGNALED."""

    kind: ExitKind
    code: int = 0
    signal: int = 0
    message: str = ""
    last_log_lines: tuple[str, ...] = ()
    usage: Usage = Usage()
    spot: bool = False
    """With PREEMPTED: its provider took spot capacity back."""

    @property
    def good(self) -> bool:
        """The command said that all went well."""
        return self.kind is ExitKind.EXITED and self.code == 0


class _Verdict(NamedTuple):
    code: CauseCode
    origin: Origin
    state: AttemptState
    retryable: bool
    sentence: str


_FAILED = AttemptState.FAILED
_VERDICTS: dict[ExitKind, _Verdict] = {
    ExitKind.EXITED: _Verdict(
        CauseCode.EXIT_CODE, _USER, _FAILED, True, "The command ended with exit code {code}."
    ),
    ExitKind.SIGNALED: _Verdict(
        CauseCode.SIGNAL, _USER, _FAILED, True, "The command was ended by signal {signal}."
    ),
    ExitKind.OUT_OF_MEMORY: _Verdict(
        CauseCode.OUT_OF_MEMORY,
        _USER,
        _FAILED,
        True,
        "The command used more memory than its limit.",
    ),
    ExitKind.NOT_FOUND: _Verdict(
        CauseCode.COMMAND_NOT_FOUND, _USER, _FAILED, False, "The command was not found."
    ),
    ExitKind.NOT_EXECUTABLE: _Verdict(
        CauseCode.COMMAND_NOT_EXECUTABLE, _USER, _FAILED, False, "The command is not executable."
    ),
    ExitKind.RUN_TIMEOUT: _Verdict(
        CauseCode.RUN_TIMEOUT,
        _USER,
        AttemptState.TIMED_OUT,
        False,
        "The command ran longer than its timeout.",
    ),
    ExitKind.STOPPED: _Verdict(
        CauseCode.PREEMPTED,
        Origin.PREEMPTION,
        AttemptState.PREEMPTED,
        True,
        "The command was stopped and nobody had cancelled it.",
    ),
    ExitKind.ENVIRONMENT_FAILED: _Verdict(
        CauseCode.ENVIRONMENT_FAILED, _USER, _FAILED, False, "The environment could not be built."
    ),
    ExitKind.STAGING_FAILED: _Verdict(
        CauseCode.STAGING_FAILED, _INFRA, _FAILED, True, "Code or inputs could not be brought in."
    ),
    ExitKind.OUTPUT_FAILED: _Verdict(
        CauseCode.OUTPUT_FAILED, _INFRA, _FAILED, True, "Outputs could not be brought out."
    ),
    ExitKind.SECRET_MISSING: _Verdict(
        CauseCode.SECRET_MISSING, _USER, _FAILED, False, "A secret is not known where it ran."
    ),
    ExitKind.INPUT_CHANGED: _Verdict(
        CauseCode.INPUT_CHANGED, _USER, _FAILED, False, "An input is not what it was recorded as."
    ),
    ExitKind.LOST: _Verdict(
        CauseCode.LOST,
        _INFRA,
        AttemptState.LOST,
        True,
        "It is gone, and nobody saw how it ended.",
    ),
    ExitKind.PREEMPTED: _Verdict(
        CauseCode.PREEMPTED,
        Origin.PREEMPTION,
        AttemptState.PREEMPTED,
        True,
        "Its place was taken away.",
    ),
    ExitKind.DISCONNECTED: _Verdict(
        CauseCode.DISCONNECTED,
        _INFRA,
        _FAILED,
        True,
        "Its runner ended it, which was without the server for too long.",
    ),
    ExitKind.BACKEND_FAILED: _Verdict(
        CauseCode.BACKEND_FAILED, _INFRA, _FAILED, True, "The backend could not run it."
    ),
    ExitKind.IMAGE_MISSING: _Verdict(
        CauseCode.IMAGE_MISSING, _USER, _FAILED, False, "Its image does not exist."
    ),
    ExitKind.IMAGE_DENIED: _Verdict(
        CauseCode.IMAGE_DENIED, _USER, _FAILED, False, "Its image is not given to where it ran."
    ),
    ExitKind.IMAGE_ARCHITECTURE: _Verdict(
        CauseCode.IMAGE_ARCHITECTURE,
        _USER,
        _FAILED,
        False,
        "Its image is for another architecture.",
    ),
    ExitKind.IMAGE_UNREACHABLE: _Verdict(
        CauseCode.IMAGE_UNREACHABLE, _INFRA, _FAILED, True, "Its image could not be pulled."
    ),
    ExitKind.DEVICE_FAULT: _Verdict(
        CauseCode.DEVICE_FAULT, _INFRA, _FAILED, True, "A device of its host failed."
    ),
}


DEVICE_FAULTS = (
    "uncorrectable ecc error",
    "cuda_error_ecc_uncorrectable",
    "uncorrectable nvlink error",
    "cuda_error_nvlink_uncorrectable",
    "hiperroreccnotcorrectable",
    "gpu has fallen off the bus",
    "nvrm: xid",
)
"""What drivers and libraries print when a GPU itself failed, in small letters.

A closed list, and a short one: most CUDA errors are the program's own.
"""


_RECLAIMED = _Verdict(
    CauseCode.SPOT_RECLAIMED,
    Origin.PREEMPTION,
    AttemptState.PREEMPTED,
    True,
    "The provider took its capacity back.",
)
"""Of what was preempted on spot capacity."""


def faulty_line(lines: Iterable[str]) -> str:
    """The newest log line that tells of a failed device; empty: there is none."""
    told = [line for line in lines if any(words in line.lower() for words in DEVICE_FAULTS)]
    return told[-1].strip() if told else ""


def signal_name(number: int) -> str:
    """`SIGKILL (9)` for 9; the bare number where it has no name."""
    try:
        return f"{signals.Signals(number).name} ({number})"
    except ValueError:
        return str(number)


def human_bytes(count: int) -> str:
    """`1.5 GiB` for 1610612736; `unknown` for 0."""
    if count <= 0:
        return "unknown"
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def judge(ending: Ending, gpus: bool = False) -> tuple[AttemptState, Cause | None]:
    """The state an ending leads to and its cause; None for a good one.

    Only of what had `gpus` a log line may tell that one of them failed.
    """
    if ending.good:
        return AttemptState.SUCCEEDED, None
    if gpus and ending.kind in (ExitKind.EXITED, ExitKind.SIGNALED):
        line = faulty_line(ending.last_log_lines)
        if line:
            return AttemptState.FAILED, _device_fault(ending, line)
    reclaimed = ending.kind is ExitKind.PREEMPTED and ending.spot
    verdict = _RECLAIMED if reclaimed else _VERDICTS[ending.kind]
    sentence = verdict.sentence.format(
        code=ending.code,
        signal=signal_name(ending.signal),
    )
    detail = ending.message.rstrip(".")
    message = f"{sentence.rstrip('.')}: {detail}." if detail else sentence
    return verdict.state, Cause(
        verdict.code,
        verdict.origin,
        message,
        verdict.retryable,
        exit_code=ending.code if ending.kind is ExitKind.EXITED else None,
        signal=ending.signal if ending.kind is ExitKind.SIGNALED else None,
        evidence=_evidence(ending.usage),
        last_log_lines=ending.last_log_lines,
    )


def _device_fault(ending: Ending, line: str) -> Cause:
    how = f"signal {signal_name(ending.signal)}"
    if ending.kind is ExitKind.EXITED:
        how = f"exit code {ending.code}"
    return Cause(
        CauseCode.DEVICE_FAULT,
        _INFRA,
        f"A GPU failed: the command ended with {how}, and its log says {line[:200]!r}.",
        True,
        evidence=(("log_line", line[:500]), *_evidence(ending.usage)),
        last_log_lines=ending.last_log_lines,
    )


def _evidence(usage: Usage) -> tuple[tuple[str, str], ...]:
    facts = []
    if usage.memory_peak_bytes:
        facts.append(("memory_peak_bytes", str(usage.memory_peak_bytes)))
    if usage.memory_limit_by:
        facts.append(("memory_limit_by", usage.memory_limit_by))
    if usage.image:
        facts.append(("image", usage.image))
    return tuple(facts)


def cancelled(actor: str, reason: str) -> Cause:
    """Somebody ended it."""
    why = f": {reason}" if reason else ""
    return Cause(CauseCode.CANCELLED, Origin.POLICY, f"Cancelled by {actor}{why}.", False)


def upstream_failed(name: str, state: str) -> Cause:
    """A job it depends on did not succeed."""
    return Cause(
        CauseCode.UPSTREAM_FAILED,
        Origin.POLICY,
        f"{name}, which it depends on, ended {state}.",
        False,
    )


def none_succeeded(name: str, state: str) -> Cause:
    """Of the jobs of which one had to succeed all ended without; this one last."""
    return Cause(
        CauseCode.UPSTREAM_FAILED,
        Origin.POLICY,
        f"None of the jobs of which one had to succeed did; {name}, the last, ended {state}.",
        False,
    )


def past_deadline(deadline: str) -> Cause:
    """Its deadline came before its end."""
    return Cause(
        CauseCode.DEADLINE, Origin.POLICY, f"It had not ended at its deadline, {deadline}.", False
    )


def queued_too_long(seconds: float) -> Cause:
    """It found no place in the time that it may queue."""
    return Cause(
        CauseCode.QUEUE_TIMEOUT,
        Origin.POLICY,
        f"No task of it started within its max_queue_time of {seconds:g} s.",
        False,
    )


def sibling_failed(index: int | None) -> Cause:
    """A task of the same array (None: one of them) failed and the array fails fast."""
    which = "A task" if index is None else f"Task {index}"
    return Cause(
        CauseCode.SIBLING_FAILED,
        Origin.POLICY,
        f"{which} failed and the array was submitted with fail_fast.",
        False,
    )


def refused(code: CauseCode, origin: Origin, message: str) -> Cause:
    """The backend refused it; nothing ran."""
    return Cause(code, origin, message, False)


def declared_gone(host: str, actor: str, reason: str) -> Cause:
    """An operator said that the machine is gone for good."""
    return Cause(
        CauseCode.DECLARED_GONE,
        Origin.INFRASTRUCTURE,
        f"Host {host!r} was declared gone by {actor}: {reason.rstrip('.')}.",
        True,
    )


def device_gone(device: str, why: str) -> Cause:
    """A device is none of ours any more, so that what is for it alone can run nowhere."""
    message = f"Device {device!r} {why}, and it runs nowhere else."
    return Cause(CauseCode.DECLARED_GONE, Origin.INFRASTRUCTURE, message, False)


def model_refused(message: str, lines: tuple[str, ...] = ()) -> Cause:
    """A model that it logged cannot be registered."""
    return Cause(CauseCode.MODEL_REFUSED, Origin.USER, message, False, last_log_lines=lines)


def lost(message: str, code: CauseCode = CauseCode.LOST) -> Cause:
    """It is proven gone without an outcome."""
    return Cause(code, Origin.INFRASTRUCTURE, message, True)
