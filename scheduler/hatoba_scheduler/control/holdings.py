"""What live attempts hold of hosts, kept up to date with every commit."""

from __future__ import annotations

from typing import NamedTuple

from hatoba_scheduler.domain.records import Attempt, Resources
from hatoba_scheduler.domain.states import Release


class Held(NamedTuple):
    """What attempts hold of one host together, and how many they are."""

    amount: Resources
    gpus: frozenset[str]
    attempts: int


class Holdings:
    """Attempts that are not released, by host."""

    def __init__(self) -> None:
        self._hosts: dict[str, dict[str, Attempt]] = {}

    def note(self, attempt: Attempt) -> None:
        """An attempt as it is now."""
        if not attempt.host:
            return
        of_host = self._hosts.setdefault(attempt.host, {})
        if attempt.release is Release.RELEASED:
            of_host.pop(attempt.name, None)
        else:
            of_host[attempt.name] = attempt

    def of(self, host: str) -> Held:
        """What a host gives to attempts."""
        attempts = self._hosts.get(host, {}).values()
        amount = Resources()
        for attempt in attempts:
            amount = amount.plus(attempt.reserved)
        gpus = frozenset(gpu for attempt in attempts for gpu in attempt.gpus)
        return Held(amount, gpus, len(attempts))
