"""Why a replica does not serve, in the words of the contract."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.units import say_bytes
from hatoba.v1 import common_pb2, runner_pb2, worker_pb2
from hatoba_worker.failures import AttemptFailed
from hatoba_worker.keeper.messages import Exit, SpawnFailed

LOOP = 3
"""So many ends in a row, without a good minute between them, are a crash loop."""
PREDICTIONS = ("example_refused", "golden_refused")
"""What a model server says of itself that it never gets over, or not by itself."""
_MOST_MESSAGE = 1024
_USER = common_pb2.ORIGIN_USER
_INFRA = common_pb2.ORIGIN_INFRASTRUCTURE

_FAILURES = {
    runner_pb2.EXIT_KIND_ENVIRONMENT_FAILED: (common_pb2.CAUSE_CODE_ENVIRONMENT_FAILED, _USER),
    runner_pb2.EXIT_KIND_SECRET_MISSING: (common_pb2.CAUSE_CODE_SECRET_MISSING, _USER),
    runner_pb2.EXIT_KIND_STAGING_FAILED: (common_pb2.CAUSE_CODE_STAGING_FAILED, _INFRA),
}
_SPAWNS = {
    "not_found": common_pb2.CAUSE_CODE_COMMAND_NOT_FOUND,
    "not_executable": common_pb2.CAUSE_CODE_COMMAND_NOT_EXECUTABLE,
    "wrong_arch": common_pb2.CAUSE_CODE_IMAGE_ARCHITECTURE,
}


def of_failure(failure: AttemptFailed) -> common_pb2.Cause:
    """It could not be brought in."""
    code, origin = _FAILURES.get(failure.kind, (common_pb2.CAUSE_CODE_STAGING_FAILED, _INFRA))
    return _cause(code, origin, f"It could not be brought in: {failure}.", failure.lines)


def of_spawn(failed: SpawnFailed) -> common_pb2.Cause:
    """Its process or container could not be started."""
    code = _SPAWNS.get(failed.kind, common_pb2.CAUSE_CODE_STAGING_FAILED)
    return _cause(code, _INFRA, f"Its process could not be started: {failed.message}.")


def of_exit(
    found: Exit | None, spec: worker_pb2.ReplicaSpec, lines: Sequence[str], ends: int
) -> common_pb2.Cause:
    """It ended by itself, the `ends`-th time in a row; None: nobody saw how."""
    cause = _of_one(found, spec, lines)
    if ends >= LOOP and cause.origin == _USER:
        cause.message = f"{cause.message.rstrip('.')}, {ends} times in a row by now."
        cause.evidence["ends_in_a_row"] = str(ends)
        if cause.code != common_pb2.CAUSE_CODE_OUT_OF_MEMORY:
            cause.code = common_pb2.CAUSE_CODE_CRASH_LOOP
    return cause


def _of_one(
    found: Exit | None, spec: worker_pb2.ReplicaSpec, lines: Sequence[str]
) -> common_pb2.Cause:
    if found is None:
        by = "container engine" if spec.serving.environment.image else "keeper"
        text = f"The {by} of its host ended, and the replica with it."
        return _cause(common_pb2.CAUSE_CODE_LOST, _INFRA, text, lines)
    if found.failed is not None:
        return of_spawn(found.failed)
    if found.oom:
        limit = spec.resources.memory_bytes
        text = f"It used {say_bytes(found.usage.maxrss)}, {say_bytes(limit)} are allowed."
        return _cause(common_pb2.CAUSE_CODE_OUT_OF_MEMORY, _USER, text, lines)
    if found.signal is not None:
        text = f"It was ended by signal {found.signal}."
        cause = _cause(common_pb2.CAUSE_CODE_SIGNAL, _USER, text, lines)
        cause.signal = found.signal
        return cause
    text = f"It ended with exit code {found.exit_code or 0}."
    cause = _cause(common_pb2.CAUSE_CODE_EXIT_CODE, _USER, text, lines)
    cause.exit_code = found.exit_code or 0
    return cause


def hung(why: str, lines: Sequence[str]) -> common_pb2.Cause:
    """It lives and does not answer: it was ended by force."""
    text = f"It did not answer and was killed: {why}."
    return _cause(common_pb2.CAUSE_CODE_NOT_READY, _USER, text, lines)


def not_ready(kind: str, why: str, lines: Sequence[str]) -> common_pb2.Cause:
    """It lives and is not ready."""
    if kind in PREDICTIONS:
        text = f"It runs and its predictions fail: {why}."
        cause = _cause(common_pb2.CAUSE_CODE_PREDICTIONS_FAIL, _USER, text, lines)
        # The same model answers the same elsewhere and later.
        cause.retryable = kind != "golden_refused"
        return cause
    return _cause(common_pb2.CAUSE_CODE_NOT_READY, _USER, f"It is not ready: {why}.", lines)


def _cause(
    code: common_pb2.CauseCode.ValueType,
    origin: common_pb2.Origin.ValueType,
    message: str,
    lines: Sequence[str] = (),
) -> common_pb2.Cause:
    if len(message) > _MOST_MESSAGE:
        message = f"{message[: _MOST_MESSAGE - 1]}…"
    return common_pb2.Cause(
        code=code, origin=origin, message=message, retryable=True, last_log_lines=lines
    )
