"""The device's connection to AWS IoT, opened again for ever: what is wanted of it is in a named
shadow, what it says goes into another one.

All that the broker says is a hint to look: notices come twice, late, out of order, or never. The
newest version of the shadow counts, and of what it wants the newest generation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping

import structlog

from hatoba import shadows
from hatoba.shadows import Json, Shadow
from hatoba.v1 import device_pb2
from hatoba_worker.agent.calls import Broken
from hatoba_worker.agent.mqtt import Connection, Message, connected
from hatoba_worker.agent.redial import End, Parts, Redialled
from hatoba_worker.agent.settings import AwsIot

log = structlog.get_logger(__name__)

ALIVE_EVERY = 1200.0
LOOK_EVERY = 20.0
RECORDS_EVERY, MUCH = 30.0, 32 << 10
"""Seconds between two pieces of what is kept, unless one had so many bytes: there is more then."""
LOST_AFTER = 120.0
"""Seconds after which a piece that was not answered is sent again."""
MOST_MESSAGE = 120 << 10
"""Bytes of a message; AWS takes no more than 128 KiB."""
FAREWELL = 3.0
"""Seconds that a goodbye may take."""


class MqttLink(Redialled):
    """Keeps one connection open. Nobody who has something to tell waits for it."""

    def __init__(
        self,
        parts: Parts,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(parts, sleep, rng, monotonic)
        self._id = ""
        """Of this link; empty: it has to say hello."""
        # Parts of a report that a former agent told must not pass for parts of one of now.
        self._turn = self._rng.getrandbits(30)
        self._seen = 0
        """Version of what is wanted."""
        self._alive = ALIVE_EVERY / 2
        self._sent_at = 0.0
        self._look = False
        """What is wanted is to be asked for."""
        self._wants_records = False
        self._sent, self._stored = 0, -1
        """Positions of records; -1: nobody said yet what is stored."""
        self._records_due = self._sent_records_at = 0.0

    @property
    def told(self) -> bool:
        """Whether the broker has the newest report."""
        return self._told

    # -- one connection -------------------------------------------------------------------------

    async def _dialled(self) -> End:
        thing = self._parts.shown.aws_iot
        try:
            async with connected(str(self._parts.tunnel.path), thing.thing) as client:
                await self._greet(client, thing)
                try:
                    return await self._live(client, thing)
                except asyncio.CancelledError:
                    await self._say_goodbye(client, thing)
                    raise
        finally:
            # What is on its way on a link that carries nothing is not waited for.
            await self._parts.tunnel.cut()

    async def _greet(self, client: Connection, thing: AwsIot) -> None:
        """Listen, and say who we are. Raises Broken."""
        await client.subscribe(heard_topics(thing))
        self._id, self._seen, self._told, self._look = "", 0, False, True
        self._wants_records, self._stored = False, -1
        await self._parts.shown.welcomed()
        await self._send_what_there_is(client, thing)
        await self._send(client, shadows.topic(thing.thing, thing.said, "get"), b"")
        self._heard_now()
        self._since = self._monotonic()
        self.connected, self.problem = True, ""
        log.info("link.connected", thing=thing.thing)
        self._parts.listener.linked(up=True)

    async def _live(self, client: Connection, thing: AwsIot) -> End:
        """Until it breaks. Raises Broken."""
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(self._read(client, thing), name="link reader")
            writing = tasks.create_task(self._write(client, thing), name="link writer")
            done, _ = await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
            for task in (reading, writing):
                task.cancel()
        return next(task.result() for task in done)

    async def _say_goodbye(self, client: Connection, thing: AwsIot) -> None:
        with contextlib.suppress(Broken, TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await self._publish(client, thing, thing.said, shadows.goodbye_state())

    # -- what is heard --------------------------------------------------------------------------

    async def _read(self, client: Connection, thing: AwsIot) -> End:
        try:
            async for message in client.messages():
                self._heard_now()
                if (end := await self._heard(message, thing)) is not None:
                    return end
        except Broken as error:
            return End(str(error))
        return End("the connection ended")

    async def _heard(self, message: Message, thing: AwsIot) -> End | None:
        topic = message.topic
        if topic == doorbell(thing):
            self._want_to_look()
            return None
        try:
            told = json.loads(message.payload)
            if topic == shadows.topic(thing.thing, thing.said, "update/rejected"):
                return End(f"AWS IoT refuses what this device says: {_refusal(told)}")
            if topic == shadows.topic(thing.thing, thing.said, "update/delta"):
                await self._judged(told)
            elif topic == shadows.topic(thing.thing, thing.said, "get/accepted"):
                await self._take_up(shadows.stored_of(shadows.shadow_of(told)))
            elif topic == shadows.topic(thing.thing, thing.shadow, "get/accepted"):
                await self._found(shadows.shadow_of(told))
            elif topic == shadows.topic(thing.thing, thing.shadow, "get/rejected"):
                # Nothing was wanted yet, as a rule; it is asked again.
                await self._learn(shadows.seconds(told.get("timestamp")))
            else:
                self._changed(shadows.shadow_of({**told, "state": {"desired": told["state"]}}))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("link.unreadable", topic=topic, error=str(error))
        return None

    async def _judged(self, told: Json) -> None:
        """The server takes a link for broken, and if it is this one we say hello again; or it has
        what was kept.
        """
        state = told["state"]
        if self._id and state.get("gone") == self._id:
            self._id = ""
            self._parts.wake.set()
        position = state.get("stored")
        if isinstance(position, int) and 0 <= self._stored < position:
            self._stored = position
            await self._parts.records.stored(position)
            self._parts.wake.set()

    async def _take_up(self, stored: int) -> None:
        """What the server has of what was kept, when a connection begins."""
        await self._parts.records.take_up(stored)
        self._sent = self._stored = stored
        self._parts.wake.set()

    async def _found(self, shadow: Shadow) -> None:
        """What there is now: an answer, so its time is the time."""
        await self._learn(shadow.time)
        self._seen = shadow.version
        self._take(shadow)

    async def _learn(self, date: float) -> None:
        # A disk that is full must not keep the device from being reached.
        with contextlib.suppress(OSError):
            if date and self._parts.clock.learn(date):
                await asyncio.to_thread(self._parts.clock.keep)

    def _changed(self, shadow: Shadow) -> None:
        if shadow.version > self._seen:
            self._seen = shadow.version
            self._take(shadow)

    def _take(self, shadow: Shadow) -> None:
        self._alive = shadows.alive_every(shadow, ALIVE_EVERY) / 2
        self._wants_records = shadows.wants_records(shadow)
        self._parts.wake.set()
        desired = shadows.set_of(shadow)
        if desired is not None:
            self._parts.listener.desired(desired)

    def _want_to_look(self) -> None:
        self._look = True
        self._parts.wake.set()

    # -- what is said ---------------------------------------------------------------------------

    async def _write(self, client: Connection, thing: AwsIot) -> End:
        try:
            while True:
                self._parts.beat()
                await self._send_what_there_is(client, thing)
                await self._wait()
        except Broken as error:
            return End(str(error))

    async def _send_what_there_is(self, client: Connection, thing: AwsIot) -> None:
        """Hello, how the device is, that it lives, and what is to be asked. Raises Broken."""
        if not self._id:
            await self._say_hello(client, thing)
        if self._report is not None and not self._told:
            await self._say_report(client, thing, self._report)
        await self._say_records(client, thing)
        if self._silence() >= self._alive:
            await self._publish(client, thing, thing.said, shadows.alive_state(self._id))
            # Who heard of no change may have missed it.
            self._look = True
        if self._look:
            self._look = False
            await self._send(client, shadows.topic(thing.thing, thing.shadow, "get"), b"")

    async def _say_hello(self, client: Connection, thing: AwsIot) -> None:
        link, hello = uuid.uuid4().hex, await self._parts.listener.hello()
        self._id, self._told = link, False
        await self._publish(client, thing, thing.said, shadows.hello_state(link, hello))

    async def _say_report(
        self, client: Connection, thing: AwsIot, report: device_pb2.DeviceReport
    ) -> None:
        self._turn += 1
        try:
            states = shadows.report_states(report, self._id, self._turn)
        except ValueError as error:
            log.error("link.report", error=str(error))
            states = []
        names = shadows.part_names(thing.said, len(states)) if states else []
        for name, state in zip(reversed(names), states, strict=True):
            await self._publish(client, thing, name, state)
        self._told = self._report is report

    async def _say_records(self, client: Connection, thing: AwsIot) -> None:
        """The next piece of what is kept, once the server has the one before. Raises Broken."""
        now = self._monotonic()
        if not self._wants_records or self._stored < 0 or not self._may_send_records(now):
            return
        records = await self._parts.records.next(self._sent)
        if records is None:
            return
        payload = shadows.compact({"records": shadows.pack(records)})
        if not self._parts.budget.affords(len(payload)):
            return
        self._sent = records.first + len(records.records) - 1
        self._records_due = now + (0.0 if len(payload) > MUCH else RECORDS_EVERY)
        self._sent_records_at = now
        if len(payload) > MOST_MESSAGE:
            log.warning("link.record_too_large", first=records.first, size=len(payload))
            self._stored = self._sent
            return
        await self._parts.budget.pay(len(payload))
        await self._send(client, shadows.records_topic(thing.thing), payload)

    def _may_send_records(self, now: float) -> bool:
        if self._stored < self._sent:
            if now - self._sent_records_at < LOST_AFTER:
                return False
            self._sent = self._stored
        return now >= self._records_due

    async def _publish(self, client: Connection, thing: AwsIot, shadow: str, state: Json) -> None:
        topic = shadows.topic(thing.thing, shadow, "update")
        await self._send(client, topic, shadows.compact({"state": state}))
        self._sent_at = self._monotonic()

    async def _send(self, client: Connection, topic: str, payload: bytes) -> None:
        # A budget that is used up may keep it waiting for a day.
        self._parts.beat.rest()
        await client.publish(topic, payload)
        self._parts.beat()

    def _silence(self) -> float:
        return self._monotonic() - self._sent_at

    async def _wait(self) -> None:
        left = max(0.0, self._alive - self._silence())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, LOOK_EVERY)):
                await self._parts.wake.wait()
        self._parts.wake.clear()


def heard_topics(thing: AwsIot) -> list[str]:
    """What a device listens to; AWS takes eight in one subscription."""
    return [
        shadows.topic(thing.thing, thing.shadow, "get/accepted"),
        shadows.topic(thing.thing, thing.shadow, "get/rejected"),
        shadows.topic(thing.thing, thing.shadow, "update/delta"),
        shadows.topic(thing.thing, thing.said, "update/delta"),
        shadows.topic(thing.thing, thing.said, "update/rejected"),
        shadows.topic(thing.thing, thing.said, "get/accepted"),
        doorbell(thing),
    ]


def doorbell(thing: AwsIot) -> str:
    """Where AWS IoT Jobs tells that there is a job, which says no more than to look."""
    return f"$aws/things/{thing.thing}/jobs/notify-next"


def _refusal(told: Mapping[str, object]) -> str:
    return f"{told.get('code', '?')} {told.get('message', '')}".strip()
