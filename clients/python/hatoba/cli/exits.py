"""Exit codes of the command line. docs/cli.md holds this table; a test compares them."""

from __future__ import annotations

import enum

from hatoba import errors


class Exit(enum.IntEnum):
    """What the exit status of `hatoba` means."""

    OK = 0
    """Done; a job that was followed succeeded."""
    FAILURE = 1
    """The server refused, or something of ours went wrong."""
    USAGE = 2
    """The command line or a job file cannot be understood; nothing was sent."""
    NOT_FOUND = 3
    """What was named does not exist."""
    NOT_ALLOWED = 4
    """No token, a wrong or expired one, or its role may not do this."""
    UNAVAILABLE = 5
    """The server does not answer."""
    JOB_FAILED = 20
    """The job that was followed ended FAILED; its own exit code is printed."""
    JOB_CANCELLED = 21
    """The job that was followed ended CANCELLED."""
    JOB_TIMED_OUT = 22
    """The job that was followed ended TIMED_OUT."""
    JOB_UPSTREAM_FAILED = 23
    """The job that was followed ended UPSTREAM_FAILED: one it depends on did not succeed."""
    ROLLED_BACK = 24
    """The roll-out that was followed was rolled back, or failed."""
    DETACHED = 130
    """Ctrl-C: the following ended, the job goes on."""


OF_STATE = {
    "SUCCEEDED": Exit.OK,
    "FAILED": Exit.JOB_FAILED,
    "CANCELLED": Exit.JOB_CANCELLED,
    "TIMED_OUT": Exit.JOB_TIMED_OUT,
    "UPSTREAM_FAILED": Exit.JOB_UPSTREAM_FAILED,
}
OF_ERROR: dict[type[errors.HatobaError], Exit] = {
    errors.InvalidSpec: Exit.USAGE,
    errors.NotFound: Exit.NOT_FOUND,
    errors.NotAllowed: Exit.NOT_ALLOWED,
    errors.Unavailable: Exit.UNAVAILABLE,
    errors.DeadlineExceeded: Exit.UNAVAILABLE,
}


def of_error(error: errors.HatobaError) -> Exit:
    """The exit code of an error."""
    kinds = (OF_ERROR[kind] for kind in type(error).__mro__ if kind in OF_ERROR)
    return next(kinds, Exit.FAILURE)
