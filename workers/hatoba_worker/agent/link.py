"""The device's stream to the server, opened again for ever, whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc
import grpc.aio
import structlog

from hatoba.streams import open_stream
from hatoba.v1 import device_pb2, device_pb2_grpc
from hatoba_worker.agent.calls import Broken, next_message, typed
from hatoba_worker.agent.library import Way
from hatoba_worker.agent.redial import End, Parts, Redialled

log = structlog.get_logger(__name__)

# A NAT on the way forgets an idle connection after some minutes.
OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.http2.max_pings_without_data", 0),
    # How long one try may take, the tunnel's hand-shake included.
    ("grpc.min_reconnect_backoff_ms", 40_000),
    # What is large has a connection of its own, only while there is something.
    ("grpc.client_idle_timeout_ms", 60_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 << 20),
]
GREETING = 45.0
ALIVE_EVERY = 30.0
LOOK_EVERY = 20.0

Call: TypeAlias = grpc.aio.StreamStreamCall[
    device_pb2.DeviceServiceConnectRequest, device_pb2.DeviceServiceConnectResponse
]
Response = device_pb2.DeviceServiceConnectResponse


class Link(Redialled):
    """Keeps one stream open. Nobody who has something to tell waits for it."""

    def __init__(
        self,
        parts: Parts,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(parts, sleep, rng, monotonic)
        self._alive = ALIVE_EVERY / 2
        self._sent_at = 0.0
        self._sent = self._stored = 0
        """Positions of records."""

    async def _dialled(self) -> End:
        shown, target = self._parts.shown, self._parts.tunnel.target
        if shown.renews_first():
            await shown.renew_by_proof()
            return End("a new certificate came", pause=None)
        async with (
            grpc.aio.insecure_channel(target, options=OPTIONS) as control,
            grpc.aio.insecure_channel(target, options=OPTIONS) as bulk,
        ):
            stub = device_pb2_grpc.DeviceServiceStub(control)
            async with open_stream(stub.Connect(metadata=shown.metadata)) as call:
                await self._greet(call)
                self._way = Way(bulk, shown.metadata)
                self._parts.listener.linked(up=True)
                return await self._live(call, control)

    # -- one stream -----------------------------------------------------------------------------

    async def _greet(self, call: Call) -> None:
        """Say who we are, and be welcomed. Raises Broken."""
        hello = device_pb2.DeviceItem(hello=await self._parts.listener.hello())
        # Of a call that has ended reading says why.
        with contextlib.suppress(asyncio.InvalidStateError, TimeoutError):
            async with asyncio.timeout(GREETING):
                await call.write(device_pb2.DeviceServiceConnectRequest(items=[hello]))
        first = await next_message(call, Response, GREETING)
        if first is None or not first.items or not first.items[0].HasField("welcome"):
            raise Broken("the server did not greet")
        await self._welcomed(first.items[0].welcome)
        for order in first.items[1:]:
            await self._heard(order)

    async def _welcomed(self, welcome: device_pb2.DeviceWelcome) -> None:
        parts = self._parts
        # A disk that is full must not keep the device from being reached.
        with contextlib.suppress(OSError):
            if welcome.HasField("time") and parts.clock.learn(welcome.time.ToMicroseconds() / 1e6):
                await asyncio.to_thread(parts.clock.keep)
        with contextlib.suppress(OSError):
            await parts.shown.welcomed()
        await parts.records.take_up(welcome.stored)
        self._sent = self._stored = welcome.stored
        every = welcome.alive_every.ToTimedelta().total_seconds() or ALIVE_EVERY
        self._alive, self._told = every / 2, False
        self._heard_now()
        self._since = self._monotonic()
        self.connected, self.problem = True, ""
        log.info("link.connected", device=parts.shown.device, server=welcome.version)

    async def _live(self, call: Call, control: grpc.aio.Channel) -> End:
        """Until the server ends it, or another certificate is to be shown."""
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(call), name="link reader")
            writing = tasks.create_task(self._write(call), name="link writer")
            young = tasks.create_task(
                self._parts.shown.keep_young(control, self._sleep), name="certificates"
            )
            await asyncio.wait((reading, young), return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, writing, young):
                task.cancel()
        if reading.cancelled():
            return End("another certificate is shown", pause=None)
        return reading.result()

    async def _read(self, call: Call) -> End:
        try:
            with typed():
                while (message := await next_message(call, Response, None)) is not None:
                    self._heard_now()
                    for order in message.items:
                        if order.HasField("going_away"):
                            return self._gone(order)
                        await self._heard(order)
        except Broken as error:
            return End(str(error), error.unknown)
        return End("the server ended the stream")

    def _gone(self, order: device_pb2.DeviceOrder) -> End:
        after = order.going_away.after.ToTimedelta().total_seconds()
        return End("the server is about to stop", pause=after * self._rng.uniform(1.0, 1.5))

    async def _heard(self, order: device_pb2.DeviceOrder) -> None:
        match order.WhichOneof("item"):
            case "desired":
                self._parts.listener.desired(order.desired)
            case "work":
                self._parts.listener.work()
            case "stored":
                self._stored = max(self._stored, order.stored.position)
                await self._parts.records.stored(self._stored)
                self._parts.wake.set()

    # -- what is sent ---------------------------------------------------------------------------

    async def _write(self, call: Call) -> None:
        self._sent_at = self._monotonic()
        with contextlib.suppress(Broken), typed():
            while True:
                self._parts.beat()
                items = await self._items()
                if not items and self._silence() >= self._alive:
                    items = [device_pb2.DeviceItem(alive=device_pb2.DeviceAlive())]
                if items:
                    await self._send(call, items)
                else:
                    await self._wait()

    async def _send(self, call: Call, items: list[device_pb2.DeviceItem]) -> None:
        # A budget that is used up may keep it waiting for a day.
        self._parts.beat.rest()
        await call.write(device_pb2.DeviceServiceConnectRequest(items=items))
        self._sent_at = self._monotonic()

    def _silence(self) -> float:
        return self._monotonic() - self._sent_at

    async def _wait(self) -> None:
        left = max(0.0, self._alive - self._silence())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, LOOK_EVERY)):
                await self._parts.wake.wait()
        self._parts.wake.clear()

    async def _items(self) -> list[device_pb2.DeviceItem]:
        """What is to be sent now: how the device is, then what it kept."""
        items = []
        if self._report is not None and not self._told:
            self._told = True
            items.append(device_pb2.DeviceItem(report=self._report))
        records = await self._records()
        if records is not None:
            items.append(device_pb2.DeviceItem(records=records))
        return items

    async def _records(self) -> device_pb2.DeviceRecords | None:
        """The next ones, once the server has those before."""
        if self._stored < self._sent:
            return None
        records = await self._parts.records.next(self._sent)
        if records is None or not self._parts.budget.affords(records.ByteSize()):
            return None
        await self._parts.budget.pay(records.ByteSize())
        self._sent = records.first + len(records.records) - 1
        return records
