"""What is forgotten when it is old enough."""

from __future__ import annotations

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.errors import HatobaError
from hatoba_scheduler.store.base import Store

log = structlog.get_logger(__name__)

EVERY = 3600.0
REQUESTS_KEPT = 7 * 24 * 3600.0


async def sweep(store: Store, clock: Clock) -> None:
    """Once an hour, forget request keys that are older than a week; ends by cancellation."""
    while True:
        try:
            await store.forget_requests(round((clock.time() - REQUESTS_KEPT) * 1e6))
        except HatobaError as error:
            log.warning("sweep.failed", error=error.message)
        await clock.sleep(EVERY)
