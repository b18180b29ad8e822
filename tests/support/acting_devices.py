"""Devices that take up what is wanted of them, and find some revisions bad, as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress

import grpc.aio
from hand_device import BAD, GOOD, HandDevice, HandStream

from hatoba.v1 import common_pb2, device_pb2

FETCHING = device_pb2.SLOT_PHASE_FETCHING
CRASHES = common_pb2.Cause(
    code=common_pb2.CAUSE_CODE_CRASH_LOOP,
    origin=common_pb2.ORIGIN_USER,
    message="It ended with exit code 1.",
)
PASSES = common_pb2.Cause(
    code=common_pb2.CAUSE_CODE_STAGING_FAILED,
    origin=common_pb2.ORIGIN_INFRASTRUCTURE,
    message="The disk is full.",
    retryable=True,
)


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
            await self._say(stream, desired, FETCHING)
        if revision in self._silent:
            return
        if revision in self._bad:
            await self._say(stream, desired, BAD, self._bad[revision])
            return
        self._good = revision
        await self._say(stream, desired, GOOD)

    async def _say(
        self,
        stream: HandStream,
        desired: device_pb2.DeviceDesired,
        phase: device_pb2.SlotPhase.ValueType,
        cause: common_pb2.Cause | None = None,
    ) -> None:
        report = device_pb2.DeviceReport(generation=desired.generation, settled=phase != FETCHING)
        for want in desired.wants:
            report.slots.add(
                deployment=want.deployment,
                revision=want.revision,
                tries=want.tries,
                phase=phase,
                running=self._good,
                cause=cause,
            )
        await stream.say(device_pb2.DeviceItem(report=report))


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
