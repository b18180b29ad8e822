"""What live attempts hold of hosts, kept up to date with every commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba_scheduler.domain.records import Attempt, Resources
from hatoba_scheduler.domain.states import Release


class Held(NamedTuple):
    """What attempts hold of one host together, and how many they are."""

    amount: Resources = Resources()
    gpus: frozenset[str] = frozenset()
    attempts: int = 0


@dataclass(slots=True)
class _OfHost:
    """A running sum: there may be thousands of attempts, and it is asked for at every end."""

    amounts: dict[str, Resources] = field(default_factory=dict)
    gpus: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sum: Resources = Resources()

    def hold(self, attempt: Attempt) -> None:
        if attempt.name in self.amounts:
            return
        self.amounts[attempt.name] = attempt.reserved
        self.sum = self.sum.plus(attempt.reserved)
        if attempt.gpus:
            self.gpus[attempt.name] = attempt.gpus

    def let_go(self, name: str) -> None:
        amount = self.amounts.pop(name, None)
        if amount is not None:
            self.sum = self.sum.minus(amount) if self.amounts else Resources()
            self.gpus.pop(name, None)


class Holdings:
    """Attempts that are not released, by host."""

    def __init__(self) -> None:
        self._hosts: dict[str, _OfHost] = {}

    def note(self, attempt: Attempt) -> None:
        """An attempt as it is now."""
        if not attempt.host:
            return
        of_host = self._hosts.setdefault(attempt.host, _OfHost())
        if attempt.release is Release.RELEASED:
            of_host.let_go(attempt.name)
        else:
            of_host.hold(attempt)

    def of(self, host: str) -> Held:
        """What a host gives to attempts."""
        known = self._hosts.get(host)
        if known is None:
            return Held()
        gpus = frozenset(gpu for each in known.gpus.values() for gpu in each)
        return Held(known.sum, gpus, len(known.amounts))
