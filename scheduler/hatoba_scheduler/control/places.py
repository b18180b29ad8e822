"""What must be known of the places where jobs run when one of them ends."""

from __future__ import annotations

from typing import Protocol

from hatoba_scheduler.domain.records import Attempt, Job


class Places(Protocol):
    """All known places."""

    def most_memory(self, job: Job) -> int:
        """Bytes of the largest place where a job may go; 0: none is known."""
        ...

    def on_spot(self, attempt: Attempt) -> bool:
        """Whether an attempt was sent to capacity that its provider may take back."""
        ...


class NoPlaces:
    """While none is known."""

    def most_memory(self, job: Job) -> int:
        """See Places."""
        return 0

    def on_spot(self, attempt: Attempt) -> bool:
        """See Places."""
        return False


NO_PLACES = NoPlaces()
