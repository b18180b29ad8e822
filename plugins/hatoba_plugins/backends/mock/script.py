"""What an attempt on the mock does and what goes wrong with it, from the job's specification.

backend_options:
  mock: {run_for: 2.5, exit_code: 3}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import Enum
from math import isfinite
from typing import get_type_hints

from hatoba.v1 import job_pb2
from hatoba_plugins import errors
from hatoba_plugins.checks import own_options
from hatoba_plugins.values import Exit, ExitKind, Problem

KEY = "mock"
GONE = "gone"
"""Outcome of an object that vanishes when its time is up."""

_OUTCOMES = sorted([*(kind.value for kind in ExitKind), GONE])
_SIGNAL_OF_A_KILL = 9


class FaultKind(Enum):
    """What can go wrong with one call."""

    REFUSED = "refused"
    """Nothing happens, and the error says so."""
    REPLY_LOST = "reply_lost"
    """It happens, and the connection breaks before the reply."""
    REPLY_DELAYED = "reply_delayed"
    """It happens, and the reply comes after `seconds`."""
    REPLY_DOUBLED = "reply_doubled"
    """The call arrives twice."""
    HANGS = "hangs"
    """Nothing happens and no reply comes."""
    LANDS_LATE = "lands_late"
    """No reply comes, and it happens after `seconds`, whoever waits or not."""


ERRORS: dict[str, type[errors.BackendError]] = {
    error.__name__: error
    for error in (
        errors.Retry,
        errors.NoCapacity,
        errors.Throttled,
        errors.Invalid,
        errors.Denied,
        errors.Fatal,
        errors.Conflict,
        errors.Unsupported,
        errors.Stale,
    )
}
_CHOICES = {
    "outcome": _OUTCOMES,
    "on_stop": ["exit", "ignore"],
    "launch_fault": ["", *(kind.value for kind in FaultKind)],
    "error": sorted(ERRORS),
}


@dataclass(frozen=True)
class Script:
    """One attempt's life and faults. Times are seconds on the backend's clock."""

    waits_for: float = 0.0
    """In the queue after there was room."""
    starts_in: float = 0.0
    run_for: float = 0.0
    outcome: str = ExitKind.EXITED.value
    """An ExitKind's value, or `gone`."""
    exit_code: int = 0
    message: str = ""
    on_stop: str = "exit"
    """`ignore`: only the end of the grace ends it."""
    release_not_yet: int = 0
    """How many releases are answered NotYet."""
    hidden_for: float = 0.0
    """Look-ups, lists and watches show it only so long after its creation."""
    unreachable_for: float = 0.0
    """From its start on."""
    deleted_after: float = 0.0
    """Somebody deletes it so long after its creation; 0: nobody does."""
    doubled_run: bool = False
    """The provider starts it twice."""
    launch_fault: str = ""
    """A FaultKind's value, for its first `fault_times` launches."""
    fault_times: int = 1
    fault_seconds: float = 1.0
    error: str = "Retry"
    """With the fault `refused`: a BackendError's class name."""

    def exit(self) -> Exit:
        """How it ends when its time is up."""
        if self.outcome == ExitKind.SIGNALED.value:
            return Exit(ExitKind.SIGNALED, signal=_SIGNAL_OF_A_KILL, message=self.message)
        return Exit(ExitKind(self.outcome), code=self.exit_code, message=self.message)

    def as_dict(self) -> dict[str, object]:
        """What differs from the default, for the ledger."""
        default = asdict(Script())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


def script_of(spec: job_pb2.JobSpec) -> Script:
    """The script in a specification. ValueError names what is wrong with it."""
    problems = script_problems(spec)
    if problems:
        raise ValueError(f"{problems[0].field}: {problems[0].message}")
    types = get_type_hints(Script)
    return Script(**{name: types[name](value) for name, value in own_options(spec, KEY).items()})


def script_problems(spec: job_pb2.JobSpec) -> list[Problem]:
    """What is wrong with the script in a specification."""
    try:
        given = own_options(spec, KEY)
    except ValueError as error:
        return [Problem(f"backend_options.{KEY}", str(error))]
    return [
        Problem(f"backend_options.{KEY}.{name}", problem)
        for name, value in given.items()
        if (problem := _problem(name, value))
    ]


def _problem(name: str, value: object) -> str:
    wanted = get_type_hints(Script).get(name)
    if wanted is None:
        known = ", ".join(field.name for field in fields(Script))
        return f"unknown; known are {known}"
    if wanted in (int, float):
        good = isinstance(value, float) and isfinite(value) and value >= 0
        whole = wanted is float or (isinstance(value, float) and value.is_integer())
        words = "a whole number" if wanted is int else "seconds"
        return "" if good and whole else f"must be {words}, 0 or more"
    if not isinstance(value, wanted):
        return "must be true or false" if wanted is bool else "must be text"
    choices = _CHOICES.get(name, [value])
    return "" if value in choices else f"must be one of {', '.join(map(str, choices))}"
