"""Why a backend did not do what it was asked: a closed family.

Each of these promises that nothing happened. Whatever else ends a call, cancellation and time-out
included, means that perhaps it did, and the core asks `find` before it does anything more.
"""

from __future__ import annotations


class BackendError(Exception):
    """Nothing happened. `after` is when trying again may help, in seconds, where that is known."""

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.after = after


class Retry(BackendError):
    """A passing trouble of the backend; try again after a while. Charged to nobody."""


class NoCapacity(BackendError):
    """There is no room now. Waited for, never counted as a failure."""


class Throttled(BackendError):
    """It wants to be called less often."""


class Invalid(BackendError):
    """The specification can never run here."""


class Denied(BackendError):
    """The backend's credentials may not do this."""


class Fatal(BackendError):
    """The backend cannot do this and will not recover by itself."""


class Conflict(BackendError):
    """Something of this name exists and is not ours; `evidence` says what."""

    def __init__(self, message: str, *, evidence: str = "") -> None:
        super().__init__(message)
        self.evidence = evidence


class Unsupported(BackendError):
    """An optional ability that this instance lacks was asked for; `capability` names it."""

    def __init__(self, capability: str) -> None:
        super().__init__(f"this backend has no {capability}")
        self.capability = capability


class Stale(BackendError):
    """A newer generation of this deployment was taken in before, or it was removed."""
