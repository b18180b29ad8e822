"""What asyncio's time limits lack."""

from __future__ import annotations

import asyncio


def lapse(scope: asyncio.Timeout) -> None:
    """Have a time limit end now. Again is the same: asyncio refuses to end what is ending."""
    if not scope.expired():
        scope.reschedule(asyncio.get_running_loop().time())
