"""Keeps what queues used in the past, so that shares outlive a restart."""

from __future__ import annotations

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.domain.planning.model import QueueKey
from hatoba_scheduler.domain.planning.planner import Planner
from hatoba_scheduler.errors import HatobaError
from hatoba_scheduler.store.base import Store

EVERY = 60.0
LEAST = 0.0005
"""Shares that differ by less are the same."""
log = structlog.get_logger(__name__)


class ShareKeeper:
    """Stores the planner's averages each minute, and gives them back at start."""

    def __init__(self, planner: Planner, store: Store, clock: Clock) -> None:
        self._planner = planner
        self._store = store
        self._clock = clock
        self._stored: dict[QueueKey, float] = {}

    async def recover(self) -> None:
        """Give the planner what was stored."""
        usage = await self._store.queue_usage()
        self._planner.restore_usage(usage)
        self._stored = {key: share for key, (share, _) in usage.items()}

    async def run(self) -> None:
        """Store it each minute; ends by cancellation."""
        while True:
            await self._clock.sleep(EVERY)
            usage = self._planner.usage()
            fresh = {key: value for key, value in usage.items() if self._is_news(key, value[0])}
            if not fresh:
                continue
            try:
                await self._store.put_queue_usage(fresh)
            except HatobaError as error:
                log.warning("shares.not_stored", error=error.message)
                continue
            self._stored.update((key, share) for key, (share, _) in fresh.items())

    def _is_news(self, key: QueueKey, share: float) -> bool:
        """Whether it is far enough from what is stored to be worth a write."""
        return abs(share - self._stored.get(key, 0.0)) > LEAST
