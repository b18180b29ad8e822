"""What will go wrong with the next calls to the mock's world."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum

from hatoba_plugins.backends.mock.script import FaultKind
from hatoba_plugins.errors import BackendError, Retry, Throttled

OPERATIONS = ("create", "describe", "terminate", "delete", "list", "apply", "retire", "remove")
"""Native calls of the mock's world; also the names of its budgets."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `error` with REFUSED; `seconds` with a delay."""

    kind: FaultKind
    seconds: float = 0.0
    error: BackendError | None = None


class Trouble(StrEnum):
    """What is wrong with a service for as long as it is there."""

    HANGS = "hangs"
    """It never answers."""
    THROTTLES = "throttles"
    """It wants to be called less often."""
    FAILS = "fails"
    """It says that it failed, and did nothing."""


TROUBLES = {
    Trouble.HANGS: Fault(FaultKind.HANGS),
    Trouble.THROTTLES: Fault(FaultKind.REFUSED, error=Throttled("too many calls", after=0.2)),
    Trouble.FAILS: Fault(FaultKind.REFUSED, error=Retry("internal error", after=0.2)),
}


class Faults:
    """Faults in the order they were asked for; each hits one call."""

    def __init__(self) -> None:
        self._coming: dict[str, deque[tuple[str, Fault]]] = {name: deque() for name in OPERATIONS}
        self._standing: Fault | None = None
        self._every = 1
        self._calls: Counter[str] = Counter()

    def stand(self, trouble: Trouble, every: int) -> None:
        """Have each `every`-th call of every operation go wrong from now on, for good."""
        self._standing = TROUBLES[trouble]
        self._every = every

    def add(self, operation: str, fault: Fault, *, times: int = 1, name: str = "") -> None:
        """Have the next calls of an operation go wrong; only those about `name`, where given."""
        self._coming[operation].extend([(name, fault)] * times)

    def take(self, operation: str, name: str = "") -> Fault | None:
        """The fault that hits this call, if one does."""
        coming = self._coming[operation]
        for entry in coming:
            if entry[0] in ("", name):
                coming.remove(entry)
                return entry[1]
        self._calls[operation] += 1
        return self._standing if self._calls[operation] % self._every == 0 else None
