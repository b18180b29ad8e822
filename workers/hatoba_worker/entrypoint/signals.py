"""Signals from the first moment on: what comes while the rest is still imported is kept.

It imports nothing that takes time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)
_early: list[int] = []


def listen() -> None:
    """Do not die of what asks us to end; to be called before anything that takes time."""
    for number in ENDING:
        signal.signal(number, _note)


def _note(number: int, _frame: FrameType | None) -> None:
    _early.append(number)


def on_end(asked: Callable[[], None]) -> None:
    """Call `asked` from the running loop when we are asked to end, or were already."""
    import asyncio

    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, asked)
    if _early:
        loop.call_soon(asked)
