"""Loops that no failure of a backend or of the store ends."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from hatoba_plugins.backend import Clock
from hatoba_scheduler.errors import HatobaError

log = structlog.get_logger(__name__)

AGAIN = 1.0
"""Seconds until a loop that failed begins again."""


async def forever(
    loop: Callable[[], Coroutine[Any, Any, None]], clock: Clock, kind: str, backend: str
) -> None:
    """Run it again and again; `kind` says in the log what it is about."""
    not_stored, failed = f"{kind}.not_stored", f"{kind}.loop.failed"
    while True:
        try:
            await loop()
        except HatobaError as error:
            log.warning(not_stored, backend=backend, error=error.message)
        except Exception:
            log.exception(failed, backend=backend)
        await clock.sleep(AGAIN)
