"""Many devices lose their server at once: they come back apart from each other, and soon: a
hundred, a thousand in the full round. `make bench` has ten thousand.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from hand_device import HandDevice
from waiting import until

from hatoba.v1 import device_pb2
from hatoba_worker.agent.redial import FIRST_WAIT, SPREAD, Backoff

if TYPE_CHECKING:
    from tests.integration.devices.conftest import DeviceYard

SHORT, FULL = 100, 1_000
BACK_SECONDS = 60.0
ANSWERS_WITHIN = 2.0
IN_ONE_SECOND = 0.4
"""Of all devices, at most, that come back in any one second."""


class Member:
    """A device that dials as agents do."""

    def __init__(self, device: HandDevice, rng: random.Random) -> None:
        self.came: list[float] = []
        """When it was welcome, monotonic seconds."""
        self._device = device
        self._backoff = Backoff(rng)

    async def live(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with self._device.connected() as stream:
                    self._backoff.reset()
                    self.came.append(time.monotonic())
                    await stream.ended()
            except (grpc.aio.AioRpcError, EOFError, TimeoutError):
                pass
            await asyncio.sleep(self._backoff.next())


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_many_devices_come_back_apart_from_each_other(
    yard: DeviceYard, full_round: bool
) -> None:
    size = FULL if full_round else SHORT
    members = await herd(yard, size)
    async with asyncio.TaskGroup() as tasks, AsyncExitStack() as ends:
        for one in members:
            ends.callback(tasks.create_task(one.live()).cancel)
        await until(lambda: all(one.came for one in members))
        began, slowest = time.monotonic(), 0.0
        await yard.server.restart()
        while not all(one.came[-1] > began for one in members):
            asked = time.monotonic()
            await yard.wire.call(device_pb2.ListDevicesRequest(), device_pb2.ListDevicesResponse)
            slowest = max(slowest, time.monotonic() - asked)
            await asyncio.sleep(0.1)
            assert time.monotonic() - began < BACK_SECONDS
    times = sorted(one.came[-1] - began for one in members)
    most = max(sum(at <= other < at + 1.0 for other in times) for at in times)
    print(
        f"back after {times[0]:.1f} to {times[-1]:.1f} s, at most {most} in a second, "
        f"calls were answered within {slowest:.2f} s"
    )
    assert most <= IN_ONE_SECOND * size
    assert times[-1] - times[0] > (SPREAD - FIRST_WAIT) / 2
    assert slowest < ANSWERS_WITHIN


async def herd(yard: DeviceYard, size: int) -> list[Member]:
    """So many devices."""
    token, rng, members = await yard.token(uses=size), random.Random(7), []
    for number in range(size):
        device = HandDevice(installation=f"installation-{number}")
        await device.enroll(yard.server.address, token, f"d{number}")
        members.append(Member(device, rng))
    return members
