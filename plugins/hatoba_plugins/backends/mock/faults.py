"""What will go wrong with the next calls to the mock's world."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from hatoba_plugins.backends.mock.script import FaultKind
from hatoba_plugins.errors import BackendError

OPERATIONS = ("create", "describe", "terminate", "delete", "list", "apply", "retire", "remove")
"""Native calls of the mock's world; also the names of its budgets."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. `error` with REFUSED; `seconds` with a delay."""

    kind: FaultKind
    seconds: float = 0.0
    error: BackendError | None = None


class Faults:
    """Faults in the order they were asked for; each hits one call."""

    def __init__(self) -> None:
        self._coming: dict[str, deque[tuple[str, Fault]]] = {name: deque() for name in OPERATIONS}

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
        return None
