"""What endings mean."""

from __future__ import annotations

import pytest

from hatoba_scheduler.domain.causes import (
    Ending,
    ExitKind,
    cancelled,
    human_bytes,
    judge,
    lost,
    refused,
    sibling_failed,
    signal_name,
    upstream_failed,
)
from hatoba_scheduler.domain.records import Usage
from hatoba_scheduler.domain.states import AttemptState, CauseCode, Origin

A = AttemptState
C = CauseCode
K = ExitKind
O = Origin  # noqa: E741 - read in a table


@pytest.mark.parametrize(
    ("kind", "state", "code", "origin", "retryable"),
    [
        (K.EXITED, A.FAILED, C.EXIT_CODE, O.USER, True),
        (K.SIGNALED, A.FAILED, C.SIGNAL, O.USER, True),
        (K.OUT_OF_MEMORY, A.FAILED, C.OUT_OF_MEMORY, O.USER, True),
        (K.NOT_FOUND, A.FAILED, C.COMMAND_NOT_FOUND, O.USER, False),
        (K.NOT_EXECUTABLE, A.FAILED, C.COMMAND_NOT_EXECUTABLE, O.USER, False),
        (K.RUN_TIMEOUT, A.TIMED_OUT, C.RUN_TIMEOUT, O.USER, False),
        (K.STOPPED, A.PREEMPTED, C.PREEMPTED, O.PREEMPTION, True),
        (K.ENVIRONMENT_FAILED, A.FAILED, C.ENVIRONMENT_FAILED, O.USER, False),
        (K.STAGING_FAILED, A.FAILED, C.STAGING_FAILED, O.INFRASTRUCTURE, True),
        (K.OUTPUT_FAILED, A.FAILED, C.OUTPUT_FAILED, O.INFRASTRUCTURE, True),
        (K.SECRET_MISSING, A.FAILED, C.SECRET_MISSING, O.USER, False),
        (K.INPUT_CHANGED, A.FAILED, C.INPUT_CHANGED, O.USER, False),
        (K.LOST, A.LOST, C.LOST, O.INFRASTRUCTURE, True),
        (K.PREEMPTED, A.PREEMPTED, C.PREEMPTED, O.PREEMPTION, True),
        (K.BACKEND_FAILED, A.FAILED, C.BACKEND_FAILED, O.INFRASTRUCTURE, True),
    ],
)
def test_each_ending_has_a_cause(
    kind: ExitKind, state: AttemptState, code: CauseCode, origin: Origin, retryable: bool
) -> None:
    found, cause = judge(Ending(kind, code=1, signal=9))
    assert cause is not None
    assert found is state
    assert (cause.code, cause.origin, cause.retryable) == (code, origin, retryable)
    assert cause.message.endswith(".")
    assert "{" not in cause.message


def test_the_table_above_has_all_of_them() -> None:
    for kind in ExitKind:
        assert judge(Ending(kind, code=1))[1] is not None


def test_exit_code_0_is_success_and_nothing_else_is() -> None:
    assert judge(Ending(K.EXITED)) == (A.SUCCEEDED, None)
    for kind in set(ExitKind) - {K.EXITED}:
        assert judge(Ending(kind, code=0))[0] is not A.SUCCEEDED


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (Ending(K.EXITED, 7), "The command ended with exit code 7."),
        (Ending(K.SIGNALED, signal=9), "The command was ended by signal SIGKILL (9)."),
        (Ending(K.SIGNALED, signal=99), "The command was ended by signal 99."),
        (
            Ending(K.OUT_OF_MEMORY, message="1.5 GiB at its peak, 1 GiB are allowed"),
            "The command used more memory than its limit: 1.5 GiB at its peak, 1 GiB are allowed.",
        ),
        (
            Ending(K.NOT_FOUND, message="{braces} stay as they are"),
            "The command was not found: {braces} stay as they are.",
        ),
    ],
)
def test_its_sentence_has_the_figure(ending: Ending, message: str) -> None:
    cause = judge(ending)[1]
    assert cause is not None
    assert cause.message == message


def test_figures_are_kept_where_they_mean_something() -> None:
    usage = Usage(memory_peak_bytes=5, memory_limit_by="rlimit")
    _, exited = judge(Ending(K.EXITED, 3, usage=usage, last_log_lines=("a", "b")))
    _, killed = judge(Ending(K.SIGNALED, signal=15))
    assert exited is not None
    assert killed is not None
    assert (exited.exit_code, exited.signal) == (3, None)
    assert (killed.exit_code, killed.signal) == (None, 15)
    assert exited.evidence == (("memory_peak_bytes", "5"), ("memory_limit_by", "rlimit"))
    assert (exited.last_log_lines, killed.evidence) == (("a", "b"), ())


def test_causes_that_no_command_has() -> None:
    assert cancelled("ana", "too slow").message == "Cancelled by ana: too slow."
    assert cancelled("ana", "").message == "Cancelled by ana."
    assert upstream_failed("prep-1", "FAILED").code is C.UPSTREAM_FAILED
    assert sibling_failed(3).message.startswith("Task 3 failed")
    assert not refused(C.REFUSED_INVALID, O.USER, "No.").retryable
    gone = lost("Gone.", C.HOST_LOST)
    assert (gone.code, gone.origin, gone.retryable) == (C.HOST_LOST, O.INFRASTRUCTURE, True)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "unknown"),
        (1, "1 B"),
        (1536, "1.5 KiB"),
        (5 << 20, "5 MiB"),
        (1 << 30, "1 GiB"),
        (3 << 40, "3 TiB"),
    ],
)
def test_bytes_in_words(count: int, words: str) -> None:
    assert human_bytes(count) == words


def test_signals_in_words() -> None:
    assert (signal_name(15), signal_name(64 + 1)) == ("SIGTERM (15)", "65")


FAULT = "RuntimeError: CUDA error: uncorrectable ECC error encountered"


@pytest.mark.parametrize(
    ("kind", "gpus", "lines", "code"),
    [
        (K.EXITED, True, (FAULT, "exit"), C.DEVICE_FAULT),
        (K.SIGNALED, True, ("NVRM: Xid (PCI:0000:65:00): 79, GPU has fallen",), C.DEVICE_FAULT),
        (K.EXITED, False, (FAULT,), C.EXIT_CODE),
        (K.OUT_OF_MEMORY, True, (FAULT,), C.OUT_OF_MEMORY),
        (K.EXITED, True, ("CUDA error: device-side assert triggered",), C.EXIT_CODE),
        (K.EXITED, True, ("CUDA out of memory. Tried to allocate 2 GiB",), C.EXIT_CODE),
    ],
)
def test_a_failed_device_is_known_by_what_it_says_and_only_where_there_is_one(
    kind: ExitKind, gpus: bool, lines: tuple[str, ...], code: CauseCode
) -> None:
    _, cause = judge(Ending(kind, code=1, signal=6, last_log_lines=lines), gpus=gpus)
    assert cause is not None
    assert cause.code is code
    assert (cause.origin is O.INFRASTRUCTURE) == (code is C.DEVICE_FAULT)


def test_a_failed_device_is_told_with_its_line() -> None:
    ending = Ending(K.EXITED, code=1, last_log_lines=("begin", FAULT))
    _, cause = judge(ending, gpus=True)
    assert cause is not None
    assert cause.message == (
        f"A GPU failed: the command ended with exit code 1, and its log says {FAULT!r}."
    )
    assert ("log_line", FAULT) in cause.evidence
