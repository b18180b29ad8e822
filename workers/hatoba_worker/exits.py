"""How a command ended, in the words of the contract."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from hatoba.units import say_bytes
from hatoba.v1 import runner_pb2
from hatoba_worker.attempts import Attempt
from hatoba_worker.failures import AttemptFailed
from hatoba_worker.keeper.messages import Exit, FailureKind, SpawnFailed

Kind: TypeAlias = "runner_pb2.ExitKind.ValueType"

EXITED = runner_pb2.EXIT_KIND_EXITED
SIGNALED = runner_pb2.EXIT_KIND_SIGNALED
OUT_OF_MEMORY = runner_pb2.EXIT_KIND_OUT_OF_MEMORY
RUN_TIMEOUT = runner_pb2.EXIT_KIND_RUN_TIMEOUT
STOPPED = runner_pb2.EXIT_KIND_STOPPED
LOST = runner_pb2.EXIT_KIND_LOST
DISCONNECTED = runner_pb2.EXIT_KIND_DISCONNECTED
PREEMPTED = runner_pb2.EXIT_KIND_PREEMPTED
OUTPUT_FAILED = runner_pb2.EXIT_KIND_OUTPUT_FAILED
STAGING_FAILED = runner_pb2.EXIT_KIND_STAGING_FAILED

_TAKEN = "its platform asked it to end"
_FAILURES: dict[FailureKind, Kind] = {
    "not_found": runner_pb2.EXIT_KIND_NOT_FOUND,
    "not_executable": runner_pb2.EXIT_KIND_NOT_EXECUTABLE,
    "wrong_arch": runner_pb2.EXIT_KIND_IMAGE_ARCHITECTURE,
    "lost": LOST,
}


_LOST_PROCESS = "the keeper of its host died, and its processes with it"
_LOST_CONTAINER = "its container was ended or removed by its engine or an operator, not by itself"


@dataclass(frozen=True, slots=True)
class Ending:
    """What is committed about an end; `lines` when they are known already."""

    kind: Kind
    exit_code: int = 0
    signal: int = 0
    message: str = ""
    lines: tuple[str, ...] = field(default=())

    @property
    def good(self) -> bool:
        """Exit code 0."""
        return self.kind == EXITED and self.exit_code == 0


def of_failure(failure: AttemptFailed) -> Ending:
    """Nothing was started, or what came after failed."""
    return Ending(failure.kind, message=str(failure), lines=failure.lines)


def of_spawn(attempt: Attempt, failed: SpawnFailed) -> Ending:
    """The command could not be started."""
    if failed.kind == "tombstone":
        return not_started(attempt) if attempt.why else Ending(LOST, message=failed.message)
    return Ending(_FAILURES.get(failed.kind, STAGING_FAILED), message=failed.message[:4096])


def not_started(attempt: Attempt) -> Ending:
    """It was stopped before it began."""
    if attempt.why == "platform":
        return Ending(PREEMPTED, message=f"{_TAKEN} before it began")
    return Ending(STOPPED, message="stopped before it began")


def of_exit(attempt: Attempt, found: Exit | None) -> Ending:
    """The main process ended, or (None) nobody saw how."""
    if found is None:
        return Ending(LOST, message=_LOST_CONTAINER if attempt.contained else _LOST_PROCESS)
    if found.reason == "oom":
        return _out_of_memory(attempt, found)
    if found.reason in ("stop", "killed_by_us"):
        return _stopped(attempt, found)
    if found.failed is not None:
        return of_spawn(attempt, found.failed)
    if found.signal is not None:
        return Ending(SIGNALED, signal=found.signal)
    return Ending(EXITED, exit_code=found.exit_code or 0)


def _out_of_memory(attempt: Attempt, found: Exit) -> Ending:
    limit = attempt.launch.resources.memory_bytes
    peak = max(found.usage.maxrss, attempt.memory_peak)
    return Ending(
        OUT_OF_MEMORY,
        exit_code=found.exit_code or 0,
        signal=found.signal or 0,
        message=f"{say_bytes(peak)} at its peak, {say_bytes(limit)} are allowed",
    )


def _stopped(attempt: Attempt, found: Exit) -> Ending:
    code, signal = found.exit_code or 0, found.signal or 0
    if attempt.why == "timeout":
        limit = attempt.launch.timeout.ToTimedelta().total_seconds()
        message = f"{limit:g} s"
        return Ending(RUN_TIMEOUT, exit_code=code, signal=signal, message=message)
    if attempt.why == "away":
        limit = attempt.launch.stop_after.ToTimedelta().total_seconds()
        return Ending(DISCONNECTED, exit_code=code, signal=signal, message=f"{limit:g} s")
    if attempt.why == "platform":
        return Ending(PREEMPTED, exit_code=code, signal=signal, message=_TAKEN)
    message = "" if attempt.why else "its host was shut down"
    return Ending(STOPPED, exit_code=code, signal=signal, message=message)
