"""Lets what arrives together be carried out together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

QUIET_TURNS = 4
"""As many turns of the loop as a call needs from its arrival to here."""

SECONDS = 0.02
MOST = 500


class Gatherer(Generic[T]):
    """Hands items over in groups, in order.

    A group is closed when some turns of the loop have brought no more, so that a busy loop reads
    its calls first and commits once for all of them; on an idle one that is at once. At the latest
    it is closed after 20 ms, or with a weight of 500.
    """

    def __init__(self, hand_over: Callable[[list[T]], None]) -> None:
        self._hand_over = hand_over
        self._items: list[T] = []
        self._weight = 0
        self._seen = 0
        self._quiet = 0
        self._until = 0.0

    def add(self, item: T, weight: int = 1) -> None:
        """Hand `item` over soon."""
        self._items.append(item)
        self._weight += weight
        if len(self._items) > 1:
            return
        loop = asyncio.get_running_loop()
        self._seen, self._quiet, self._until = 1, 0, loop.time() + SECONDS
        loop.call_soon(self._turn, loop)

    def take(self) -> list[T]:
        """What has not been handed over; it will not be."""
        items, self._items, self._weight = self._items, [], 0
        return items

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        have = len(self._items)
        self._quiet = 0 if have > self._seen else self._quiet + 1
        self._seen = have
        if self._quiet < QUIET_TURNS and self._weight < MOST and loop.time() < self._until:
            loop.call_soon(self._turn, loop)
        elif self._items:
            self._hand_over(self.take())
