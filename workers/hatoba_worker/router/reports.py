"""Kept predictions on their way to the server: gathered, put on disk, sent until they are taken."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

import structlog
from google.protobuf.message import DecodeError

from hatoba.v1 import deployment_pb2
from hatoba_worker.router.keeping import Chooser, requests
from hatoba_worker.router.spool import Entry, Spool
from hatoba_worker.router.visits import Visit

log = structlog.get_logger(__name__)

EVERY = 1.0
MOST_VISITS = 5_000
MOST_BYTES = 16 << 20

Send = Callable[
    [deployment_pb2.ReportPredictionsRequest],
    Awaitable[deployment_pb2.ReportPredictionsResponse | None],
]
"""Delivers a batch; None when the server refuses it for good. Raises ServerAway."""


class ServerAway(Exception):
    """It could not be delivered now."""


class Reports:
    """A listener of visits. Memory and disk are bounded; what does not fit is counted in
    `dropped`."""

    def __init__(
        self,
        spool: Spool,
        chooser: Chooser,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._spool = spool
        self._chooser = chooser
        self._sleep = sleep
        self._waiting: deque[tuple[Visit, bool]] = deque()
        self._bytes = 0
        self._put = asyncio.Event()
        self.dropped = {"visits": 0, "batches": 0, "refused": 0}

    def __call__(self, visit: Visit) -> None:
        """Keep it if it is sampled or captured and a replica had it; else let its bodies go."""
        asked = visit.choice is not None and visit.call_began > 0
        captured = asked and self._chooser.wants_capture(visit)
        if not captured:
            visit.asked = visit.answered = None
        if captured or (asked and visit.trace.sampled):
            self._keep(visit, captured)

    def _keep(self, visit: Visit, captured: bool) -> None:
        weight = _weight(visit)
        if len(self._waiting) >= MOST_VISITS or self._bytes + weight > MOST_BYTES:
            visit.asked = visit.answered = None
            self.dropped["visits"] += 1
            return
        self._bytes += weight
        self._waiting.append((visit, captured))

    async def run(self) -> None:
        """Put what comes on disk until cancelled; what came last too."""
        try:
            await asyncio.to_thread(self._spool.open)
            while True:
                await self._sleep(EVERY)
                if self._waiting:
                    await asyncio.to_thread(self._store, self._take())
                    self._put.set()
        finally:
            if self._waiting:
                self._store(self._take())

    async def serve(self, send: Send) -> None:
        """Send what is on disk, in order, as long as the server takes it; raises ServerAway."""
        while True:
            self._put.clear()
            for entry in await asyncio.to_thread(self._spool.entries):
                await self._deliver(entry, send)
            await self._put.wait()

    async def _deliver(self, entry: Entry, send: Send) -> None:
        try:
            content = await asyncio.to_thread(entry.path.read_bytes)
        except FileNotFoundError:
            return
        reply = await send(request) if (request := _parsed(content)) else None
        if reply is None:
            self.dropped["batches"] += 1
        else:
            self.dropped["refused"] += reply.refused
        await asyncio.to_thread(entry.path.unlink, missing_ok=True)

    def _take(self) -> list[tuple[Visit, bool]]:
        taken = list(self._waiting)
        self._waiting.clear()
        self._bytes = 0
        return taken

    def _store(self, visits: list[tuple[Visit, bool]]) -> None:
        for request in requests(visits):
            try:
                self.dropped["batches"] += self._spool.put(
                    request.batch, request.SerializeToString()
                )
            except OSError as error:
                self.dropped["batches"] += 1
                log.warning("report.not_kept", error=str(error))


def _parsed(content: bytes) -> deployment_pb2.ReportPredictionsRequest | None:
    """The batch; None when a power cut left something else."""
    try:
        return deployment_pb2.ReportPredictionsRequest.FromString(content)
    except DecodeError:
        return None


def _weight(visit: Visit) -> int:
    bodies = (visit.asked, visit.answered)
    return 1_000 + sum(len(body.data) for body in bodies if body is not None)
