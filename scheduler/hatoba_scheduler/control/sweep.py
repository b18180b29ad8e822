"""What is forgotten or made anew when it is old enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.auth.runner_keys import RunnerKeys
from hatoba_scheduler.domain.records import Micros
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


async def turn_keys(keys: RunnerKeys, clock: Clock, oldest: Callable[[], Micros]) -> None:
    """Once an hour, see whether runners' keys are to be newer; ends by cancellation.

    `oldest`: when the oldest thing began whose runner may still show a credential.
    """
    while True:
        try:
            now = round(clock.time() * 1e6)
            if await asyncio.to_thread(keys.rotate, now, min(now, oldest())):
                log.info("runner.keys.turned", newest=keys.newest.id)
        except OSError as error:
            log.warning("runner.keys.not_turned", error=str(error))
        await clock.sleep(EVERY)
