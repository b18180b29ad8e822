"""Whether calls are taken now: not before recovery is done, and no new work while draining."""

from __future__ import annotations

import asyncio
import enum

from hatoba_scheduler.errors import Reason, Unavailable

DRAIN_RETRY_SECONDS = 2.0


class Phase(enum.StrEnum):
    """Where the server stands between its start and its end; the words of `ServerStatus.phase`."""

    RECOVERING = "recovering"
    SERVING = "serving"
    DRAINING = "draining"


class Admission:
    """The server's phase, and how many unary calls are being answered."""

    def __init__(self, phase: Phase = Phase.SERVING) -> None:
        self.phase = phase
        self.in_flight = 0
        self._idle = asyncio.Event()

    def check(self, *, changes: bool) -> None:
        """Raise Unavailable unless a call may begin; `changes`: it is no mere read."""
        if self.phase is Phase.SERVING:
            return
        if self.phase is Phase.RECOVERING:
            raise Unavailable("the server is starting; try again soon", reason=Reason.STARTING)
        if changes:
            raise Unavailable(
                "the server is about to stop; try again soon",
                reason=Reason.DRAINING,
                retry_after=DRAIN_RETRY_SECONDS,
            )

    def enter(self) -> None:
        """A unary call begins."""
        self.in_flight += 1

    def leave(self) -> None:
        """A unary call has ended."""
        self.in_flight -= 1
        if not self.in_flight and self.phase is Phase.DRAINING:
            self._idle.set()

    async def drain(self) -> None:
        """Refuse what changes anything from now on; returns once no unary call is in flight."""
        self.phase = Phase.DRAINING
        if self.in_flight:
            await self._idle.wait()
