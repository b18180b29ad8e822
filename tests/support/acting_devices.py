"""Devices that take up what is wanted of them, and find some revisions bad, as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress

import grpc.aio
from device_reports import BAD
from hand_device import HandDevice, HandStream

from hatoba.v1 import common_pb2, device_pb2

FETCHING = device_pb2.SLOT_PHASE_FETCHING


class Actor:
    """One device. `bad` says why which revisions do not work there; those in `silent` it takes up,
    and then says no more.
    """

    def __init__(
        self,
        device: HandDevice,
        bad: Mapping[int, common_pb2.Cause],
        silent: Iterable[int] = (),
    ) -> None:
        self.device = device
        self.told: list[tuple[int, int]] = []
        """Revision and tries of all that came, in order."""
        self._bad = bad
        self._silent = set(silent)
        self._good = 0

    async def live(self) -> None:
        """Do as it is told, until cancelled, or the server ends the stream."""
        async with self.device.connected() as stream:
            with suppress(EOFError, grpc.aio.AioRpcError):
                while True:
                    await self._take(stream, await stream.desired())

    async def _take(self, stream: HandStream, desired: device_pb2.DeviceDesired) -> None:
        revision = 0
        for want in desired.wants:
            revision = want.revision
            self.told.append((want.revision, want.tries))
        if revision not in (0, self._good):
            await stream.report(desired, FETCHING, running=self._good)
        if revision in self._silent:
            return
        if revision in self._bad:
            cause = self._bad[revision]
            await stream.report(desired, BAD, running=self._good, cause=cause)
            return
        self._good = revision
        await stream.report(desired)


@asynccontextmanager
async def acting(actors: Iterable[Actor]) -> AsyncIterator[None]:
    """They live, until this is left."""
    async with asyncio.TaskGroup() as tasks:
        living = [tasks.create_task(one.live(), name=one.device.name) for one in actors]
        try:
            yield
        finally:
            for one in living:
                one.cancel()
