"""What is wanted of devices, put into their shadows: never an older generation over a newer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakValueDictionary

from hatoba.shadows import DOCUMENT, Json, generation_of, pack, size, wanted
from hatoba.v1 import device_pb2
from hatoba_plugins.aws import Unanswered
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge.calls import AT_ONCE, IotCalls
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.backends.iot_edge.things import Things
from hatoba_plugins.errors import BackendError, Invalid, Retry, Throttled
from hatoba_plugins.lanes import Lanes
from hatoba_plugins.values import Accepted, DeviceWish, RefusedWish, Superseded, WishOutcome

TRIES = 5
PAUSE = 0.25
"""Seconds before it is tried again, at most."""
THROTTLED = 1.0
"""Seconds to wait where AWS does not say how long."""
BELL: Json = {"hatoba": "what is wanted of this device is in its shadow"}


class Known(NamedTuple):
    """A shadow as it was seen or written last."""

    version: int
    generation: int


@dataclass(slots=True)
class _Packed:
    """Thousands are told the same, one after the other."""

    desired: device_pb2.DeviceDesired
    state: Json
    takes: int


class Wishes:
    """The `desire` of the role. What a shadow holds is remembered, so that to wish the same again
    needs no call.
    """

    def __init__(
        self, calls: IotCalls, things: Things, options: EdgeOptions, ctx: BackendContext
    ) -> None:
        self._calls = calls
        self._things = things
        self._options = options
        self._ctx = ctx
        self._known: dict[str, Known] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._lanes = Lanes(AT_ONCE)
        self._packed: _Packed | None = None

    async def desire(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """See DeviceBackend. Raises Unanswered where it is not known what became of a wish, once
        all others are decided.
        """
        turns: dict[str, list[DeviceWish]] = {}
        for wish in wishes:
            turns.setdefault(wish.device, []).append(wish)
        answers = await self._lanes.each(list(turns.values()), self._in_turn, "desire")
        by_device = {one[0].device: iter(one) for one in answers}
        return [next(by_device[wish.device]) for wish in wishes]

    async def _in_turn(self, wishes: Sequence[DeviceWish]) -> list[WishOutcome]:
        """Those of one device, in order."""
        lock = self._locks.setdefault(wishes[0].device, asyncio.Lock())
        async with lock:
            return [await self._one(wish) for wish in wishes]

    async def _one(self, wish: DeviceWish) -> WishOutcome:
        try:
            state = self._state(wish)
            if not await self._things.expects(wish.device):
                thing = self._things.thing_of(wish.device)
                raise Invalid(f"device {wish.device!r} has no thing {thing!r}: enroll it")
            return await self._want(wish, state)
        except Throttled as error:
            after = error.after or THROTTLED
            return RefusedWish(wish.device, Throttled(error.message, after=after))
        except BackendError as error:
            return RefusedWish(wish.device, error)

    def _state(self, wish: DeviceWish) -> Json:
        """What to write. Raises Invalid where it is too large."""
        packed = self._packed
        if packed is None or packed.desired is not wish.desired:
            desired = wish.desired
            every, records = self._options.alive_every, bool(self._options.queue)
            state = wanted(desired.generation, pack(desired), every, records=records)
            packed = self._packed = _Packed(desired, state, size(state))
        if packed.takes > DOCUMENT:
            raise Invalid(
                f"what is wanted of device {wish.device!r} takes {packed.takes:,} bytes in its "
                f"shadow, and AWS takes {DOCUMENT:,}: want fewer deployments of it, or shorter "
                "settings"
            )
        return packed.state

    async def _want(self, wish: DeviceWish, state: Json) -> WishOutcome:
        """Write it where it is newer. Raises BackendError when nothing happened, else
        Unanswered."""
        device, perhaps = wish.device, False
        try:
            for _ in range(TRIES):
                known = self._known.get(device) or await self._look(device)
                if wish.desired.generation < known.generation:
                    return Superseded(device, known.generation)
                if wish.desired.generation == known.generation:
                    return Accepted(device)
                try:
                    if await self._write(wish, state, known):
                        return Accepted(device)
                except Unanswered:
                    perhaps = True
                    self._known.pop(device, None)
                await self._ctx.clock.sleep(self._ctx.rng.uniform(0.0, PAUSE))
            raise Retry(f"the shadow of device {device!r} is changed again and again", after=1.0)
        except BackendError as error:
            if perhaps:
                raise Unanswered(error.message) from error
            raise

    async def _look(self, device: str) -> Known:
        """The shadow as it is, made where there is none."""
        thing, name = self._things.thing_of(device), self._options.shadow
        shadow = await self._calls.shadow(thing, name)
        if not shadow.version:
            await self._calls.place(thing, name)
            # Somebody else may have made it, and wanted something already.
            shadow = await self._calls.shadow(thing, name)
        try:
            known = self._known[device] = Known(shadow.version, generation_of(shadow))
        except ValueError as error:
            remedy = "delete that shadow, and it is made anew"
            raise Invalid(f"the shadow {name!r} of {thing!r}: {error}; {remedy}") from error
        return known

    async def _write(self, wish: DeviceWish, state: Json, known: Known) -> bool:
        """Whether it was still what is known. Raises BackendError, and Unanswered."""
        device, thing = wish.device, self._things.thing_of(wish.device)
        version = await self._calls.update(thing, self._options.shadow, state, known.version)
        if version is None:
            self._known.pop(device, None)
            return False
        self._known[device] = Known(version, wish.desired.generation)
        if self._options.jobs:
            await self._ring(device, known.generation, wish.desired.generation)
        return True

    # -- the doorbell ---------------------------------------------------------------------------

    async def _ring(self, device: str, before: int, generation: int) -> None:
        """Say by a job that there is something; no job of before is left to be taken up.

        The shadow says it all the same, so that nothing follows where it cannot be.
        """
        thing = self._things.thing_of(device)
        with suppress(BackendError, Unanswered):
            await self._calls.delete_job(job_name(thing, before))
            await self._calls.make_job(job_name(thing, generation), self._things.arn(device), BELL)

    # -- being watched --------------------------------------------------------------------------

    async def lost(self, device: str) -> bool:
        """Whether a shadow does not want any more what was written into it. Raises a
        BackendError."""
        before = self._known.get(device)
        if before is None:
            return False
        async with self._locks.setdefault(device, asyncio.Lock()):
            return (await self._look(device)).generation < before.generation

    async def look_again(self, device: str) -> None:
        """Its shadow was made anew."""
        async with self._locks.setdefault(device, asyncio.Lock()):
            self._known.pop(device, None)

    async def forget(self, device: str) -> None:
        """Nothing is wanted of it any more."""
        async with self._locks.setdefault(device, asyncio.Lock()):
            known = self._known.get(device)
            if self._options.jobs and known is not None:
                thing = self._things.thing_of(device)
                await self._calls.delete_job(job_name(thing, known.generation))
            self._known.pop(device, None)


def job_name(thing: str, generation: int) -> str:
    """The job that says that this generation is wanted of a thing."""
    digest = hashlib.sha256(thing.encode()).hexdigest()
    return f"hatoba-{digest[:32]}-{generation}"
