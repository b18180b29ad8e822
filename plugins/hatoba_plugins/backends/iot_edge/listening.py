"""What devices tell through AWS IoT, as it is heard here.

Devices write shadows. How does a server hear of it that is no device itself, and has no certificate
but credentials of AWS? By one of two ways, neither of which needs more than HTTPS and IAM:

* A queue: rules of AWS IoT put what the shadow service tells of each change
  (`.../shadow/name/hatoba-said/update/documents`), and AWS's events of connections, into one SQS
  queue, which is read here. It keeps for days what comes while the server is away, brings it within
  a second, and costs by what happens, not by how many devices there are. An MQTT subscription of
  the server (over WebSockets, signed) would lose what comes between two sessions, is limited to
  some hundred messages a second, and needs a client that nothing else here needs.
* Without a queue all shadows are read again and again.

Either way a shadow is the truth. Messages of the queue come twice, late and out of order: what is
older than the version that is known is history. What is lost on the way is found by a sweep that
reads every shadow by and by.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import cast

from hatoba.shadows import Shadow, stored_state
from hatoba.v1 import device_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge.calls import AT_ONCE, IotCalls, Letter
from hatoba_plugins.backends.iot_edge.far import FarDevice, Heard
from hatoba_plugins.backends.iot_edge.letters import Kept, Presence, Word, word_of
from hatoba_plugins.backends.iot_edge.news import NewsFeed
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.reading import Reader, read
from hatoba_plugins.backends.iot_edge.things import Things
from hatoba_plugins.backends.iot_edge.wishing import Wishes
from hatoba_plugins.errors import BackendError, Conflict, Retry
from hatoba_plugins.lanes import Lanes
from hatoba_plugins.values import DeviceKept, DeviceNews, DeviceWent

EARS = 2
"""So many read the queue beside each other: while one works, another listens."""
TICK = 1.0
"""Seconds between two looks at who is suspected, at most."""
AGAIN = 1.0
QUICK = 0.5
"""Seconds within which a queue that waits gives no empty answer."""
AFTER_A_SYNC = 2.0
"""Seconds in which all shadows are not read a second time."""
Round = Callable[[], Awaitable[None]]


class Listener:
    """The `reports` of the role, and who is there."""

    def __init__(
        self,
        calls: IotCalls,
        things: Things,
        wishes: Wishes,
        options: EdgeOptions,
        ctx: BackendContext,
    ) -> None:
        self._calls = calls
        self._things = things
        self._wishes = wishes
        self._options = options
        self._ctx = ctx
        self._reader = Reader(calls, things, options)
        self._devices: dict[str, FarDevice] = {}
        self._feed = NewsFeed(self._known)
        self._lanes = Lanes(AT_ONCE)
        self._synced = asyncio.Event()
        self._synced_at = 0.0
        self._missed = False
        self._kept: dict[str, device_pb2.DeviceRecords] = {}
        """Of each device the newest piece: it sends the next once this one is stored."""
        self._kept_more = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._tick = min(TICK, options.away_after / 2)

    @property
    def trouble(self) -> str:
        """Why nothing is heard just now; empty: all is well."""
        return "; ".join(self._troubles.values())

    async def reports(self) -> AsyncIterator[DeviceNews]:
        """See DeviceBackend. Nothing is told before every shadow was read."""
        await self._synced.wait()
        async with aclosing(cast("AsyncGenerator[DeviceNews, None]", self._feed.watch())) as news:
            async for one in news:
                yield one

    def _known(self) -> Iterable[DeviceNews]:
        return (news for device in self._devices.values() for news in device.known())

    def end(self) -> None:
        """End all reports."""
        self._feed.end()

    def drop(self, device: str) -> None:
        """Nothing is to be heard of this one any more."""
        far = self._devices.pop(device, None)
        self._kept.pop(device, None)
        self._feed.forget(device)
        if far is not None and far.there:
            self._feed.publish([DeviceWent(device)])

    # -- rounds ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Listen, until cancelled."""
        while not self._synced.is_set():
            await self._try("sync", self._sync)
        ears = [self._hear] * EARS if self._options.queue else [self._poll]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._forever("tend", self._tend), name="iot-edge:tend")
            for number, ear in enumerate(ears):
                tasks.create_task(
                    self._forever(f"hear-{number}", ear), name=f"iot-edge:hear-{number}"
                )

    async def _forever(self, name: str, act: Round) -> None:
        while True:
            await self._try(name, act)

    async def _try(self, name: str, act: Round) -> None:
        """One round; after one that failed a pause."""
        try:
            await act()
        except (BackendError, Unanswered) as error:
            self._troubles[name] = str(error)
            wait = getattr(error, "after", None) or AGAIN
            await self._ctx.clock.sleep(wait * self._ctx.rng.uniform(0.5, 1.0))
        else:
            self._troubles.pop(name, None)

    async def _sync(self) -> None:
        """Read every device's shadow."""
        await self._list()
        await self._lanes.each(list(self._devices), self._read, "read")
        self._synced_at = self._now()
        self._synced.set()

    async def _poll(self) -> None:
        await self._ctx.clock.sleep(self._options.poll_every)
        await self._sync()

    async def _list(self) -> Collection[str]:
        """Find devices that are new, which are told, and those that somebody else has removed."""
        listed = {device async for device in self._things.listed()}
        new = listed - self._devices.keys()
        self._devices |= {device: FarDevice(device) for device in new}
        for device in self._devices.keys() - listed:
            # It may have been made meanwhile, and listings are behind.
            self._things.drop(device)
            with suppress(Conflict):
                if await self._things.has(device):
                    continue
            self.drop(device)
        return new

    # -- the queue ------------------------------------------------------------------------------

    async def _hear(self) -> None:
        """Read what has come. What AWS cannot be asked about now comes again by itself."""
        asked = self._now()
        letters = await self._calls.letters(self._options.queue)
        if not letters and self._now() < asked + QUICK:
            # It has nothing and does not wait for it, though the template's queue does.
            await self._ctx.clock.sleep(AGAIN)
        taken: list[Letter] = []
        failed: BackendError | None = None
        for letter in letters:
            try:
                await self._open(letter)
                taken.append(letter)
            except BackendError as error:
                failed = error
        await self._calls.taken(self._options.queue, taken)
        if failed is not None:
            raise failed

    async def _open(self, letter: Letter) -> None:
        try:
            word = word_of(letter.body)
        except ValueError:
            # Nobody but our rules writes there; who knows what this was to say.
            self._missed = True
            return
        if word is None:
            return
        device = self._things.device_of(word.thing)
        far = self._devices.get(device)
        if isinstance(word, Kept):
            if far is not None:
                self._keep(device, word)
        elif isinstance(word, Presence):
            if far is not None:
                far.hint(word, self._now() + self._options.away_after)
        elif far is not None:
            await self._hear_word(far, word)
        elif device:
            await self._hear_stranger(device)

    def _keep(self, device: str, kept: Kept) -> None:
        records = read(kept.records, device_pb2.DeviceRecords)
        if records is not None:
            self._kept[device] = records
            self._kept_more.set()

    async def records(self) -> AsyncIterator[DeviceKept]:
        """See BringsRecords."""
        while True:
            while self._kept:
                device = next(iter(self._kept))
                yield DeviceKept(device, self._kept.pop(device))
            self._kept_more.clear()
            await self._kept_more.wait()

    async def stored(self, device: str, position: int) -> None:
        """See BringsRecords. Raises a BackendError."""
        thing = self._things.thing_of(device)
        try:
            await self._calls.update(thing, self._options.said, stored_state(position))
        except Unanswered as error:
            raise Retry(str(error), after=AGAIN) from error

    async def _hear_word(self, far: FarDevice, word: Word) -> None:
        if word.shadow.version > far.said.version:
            self._take(far, await self._reader.heard(far.name, word.shadow))

    async def _hear_stranger(self, device: str) -> None:
        """The first word of a new device, or the last one of a former: its shadow says which."""
        with suppress(Conflict):
            if await self._things.has(device):
                self._devices.setdefault(device, FarDevice(device))
                await self._read(device)

    def _take(self, far: FarDevice, heard: Heard, *, anew: bool = False) -> None:
        if self._devices.get(far.name) is far:
            self._feed.publish(far.hear(heard, self._now(), anew=anew))

    # -- shadows --------------------------------------------------------------------------------

    async def _read(self, device: str) -> None:
        if far := self._devices.get(device):
            await self._look(far)

    async def _look(self, far: FarDevice) -> Shadow:
        """Read a device's shadow, whatever came of it before."""
        before = far.said.version
        shadow = await self._reader.shadow(far.name)
        heard = await self._reader.heard(far.name, shadow)
        # Versions only grow, until a shadow has been gone for some days.
        self._take(far, heard, anew=shadow.version < before)
        far.looked = self._now()
        if shadow.spoke and shadow.time:
            far.heard = far.looked - max(0.0, shadow.time - shadow.spoke)
        return shadow

    # -- who is there ---------------------------------------------------------------------------

    async def _tend(self) -> None:
        """Look at who may have gone, and at a few of all the others."""
        await self._ctx.clock.sleep(self._tick)
        now, every = self._now(), self._options.alive_every
        suspects = [far for far in self._devices.values() if far.suspect(now, every)]
        await self._lanes.each(suspects, self._judge, "judge")
        await self._sweep(now)
        if self._missed and now - self._synced_at >= AFTER_A_SYNC:
            await self._sync()
            self._missed = False
            self._feed.gap()

    async def _judge(self, far: FarDevice) -> None:
        """Look again at one that seems to have gone. That it went is written down, for the next
        start of the server, and for the device: if it is there all the same, it says so."""
        shadow = await self._look(far)
        if not far.suspect(self._now(), self._options.alive_every):
            return
        if shadow.version != far.said.version:
            return  # it said something just now
        gone = {"desired": {"gone": far.said.link}}
        thing = self._things.thing_of(far.name)
        version = await self._calls.update(thing, self._options.said, gone, shadow.version)
        if version is not None:
            verdict = replace(far.said, version=version, gone=far.said.link)
            self._take(far, Heard(verdict))
            far.suspicion = None

    async def _sweep(self, now: float) -> None:
        """Read the shadows that were not read for longest, as many as are due in a tick."""
        every = self._options.sweep_every
        share = math.ceil(len(self._devices) * self._tick / every)
        due = [far for far in self._devices.values() if now - far.looked >= every]
        due.sort(key=lambda far: far.looked)
        lost = await self._lanes.each(due[:share], self._check, "sweep")
        if now - self._synced_at >= every:
            await self._lanes.each(list(await self._list()), self._read, "read")
            self._synced_at = now
        if any(lost):
            # The core wishes everything again.
            self._feed.gap()

    async def _check(self, far: FarDevice) -> bool:
        """Whether what was wanted of it is not wanted any more."""
        await self._look(far)
        return await self._wishes.lost(far.name)

    def _now(self) -> float:
        return self._ctx.clock.monotonic()
