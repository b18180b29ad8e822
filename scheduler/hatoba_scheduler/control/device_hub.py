"""The server's side of all devices' streams.

A device has one stream. What is wanted of it is one document, so that a slow stream holds the
newest alone; and so does whoever watches, of what each device says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from hatoba.v1 import device_pb2
from hatoba_plugins.backend import Clock
from hatoba_plugins.values import DeviceCame, DeviceNews, DeviceTold, DeviceWent, Synced
from hatoba_scheduler.domain.devices import GRPC
from hatoba_scheduler.errors import Aborted, HatobaError, PermissionDenied, Unavailable

log = structlog.get_logger(__name__)

Order = device_pb2.DeviceOrder
Response = device_pb2.DeviceServiceConnectResponse
MISSED = 3
"""So many signs of life may be missed."""
AFTER_STOP = 2.0
"""Seconds that devices of a server which stops wait at least before they dial again."""
ENDED_IN_A_SECOND = 2_000
"""It takes a while until it has ended so many streams."""


def _nobody() -> None:
    """Who serves a stream does not listen yet."""


def _idle(device: str) -> bool:
    """There are no jobs for devices."""
    del device
    return False


@dataclass(eq=False, slots=True)
class DeviceSession:
    """One stream. What is to be sent waits here: of each kind the newest. There are as many of them
    as there are devices, so that nothing is kept in a larger form than it has to be.
    """

    device: str
    installation: str
    boot_id: str
    hello: bytes
    """What it said of itself, serialised."""
    peer: str
    heard: float
    generation: int = 0
    """That of `report`."""
    report: bytes = b""
    """What it said last, serialised; empty: nothing yet."""
    ended: HatobaError | None = None
    farewell: float = 0.0
    """The end is the server's own: told before it, with the seconds to wait at least, so that not
    all come again at once, and to nobody."""
    clone_of: DeviceSession | None = None
    """Another machine that showed the same certificate a moment ago."""
    _desired: Response | None = None
    _stored: int = 0
    _work: bool = False
    _wake: Callable[[], None] = _nobody

    def listen(self, wake: Callable[[], None]) -> None:
        """Have `wake` called whenever there is something to be sent, or the stream is to end."""
        self._wake = wake
        waits = self._desired is not None or self._stored or self._work
        if waits or self.ended is not None:
            wake()

    def want(self, desired: Response) -> None:
        """Send this, which tells what is wanted, in place of what waits."""
        self._desired = desired
        self._wake()

    def stored(self, position: int) -> None:
        """Records up to here are durable."""
        self._stored = position
        self._wake()

    def work(self) -> None:
        """There are jobs for it."""
        self._work = True
        self._wake()

    def end(self, error: HatobaError) -> None:
        """End the stream with this."""
        self.ended = self.ended or error
        self._wake()

    def take(self) -> Response | None:
        """What is to be sent next, if anything."""
        if self._desired is not None:
            desired, self._desired = self._desired, None
            return desired
        if self._work:
            self._work = False
            return Response(items=[Order(work=device_pb2.DeviceWork())])
        if not self._stored:
            return None
        stored = device_pb2.DeviceRecordsStored(position=self._stored)
        self._stored = 0
        return Response(items=[Order(stored=stored)])


class DeviceHub:
    """See `hatoba_plugins.backend.DeviceHub`."""

    def __init__(self, clock: Clock, alive_every: float) -> None:
        self.alive_every = alive_every
        self._clock = clock
        self._sessions: dict[str, DeviceSession] = {}
        self._watchers: set[_Watcher] = set()
        self._closed = False
        self.works: Callable[[str], bool] = _idle
        """Whether there are jobs for a device."""
        self._cut: dict[str, str] = {}
        """The boot of the machine whose stream another one of the same device ended last."""
        self._sent = device_pb2.DeviceDesired()
        self._message = Response()
        """The message of what was sent last."""

    # -- streams --------------------------------------------------------------------------------

    def open(self, hello: device_pb2.DeviceHello, peer: str) -> DeviceSession:
        """A device came; a stream that it had before ends. Raises Unavailable when stopping."""
        if self._closed:
            raise going_away()
        session = DeviceSession(
            hello.device,
            hello.installation,
            hello.boot_id,
            hello.SerializeToString(),
            peer,
            self._clock.monotonic(),
        )
        if self.works(hello.device):
            session.work()
        former = self._sessions.get(hello.device)
        self._sessions[hello.device] = session
        if former is not None:
            self._fence(former, session)
        self._tell(DeviceCame(hello.device, hello, GRPC))
        return session

    def _fence(self, former: DeviceSession, session: DeviceSession) -> None:
        another = f"device {session.device!r} has opened another stream, from {session.peer}"
        former.end(Aborted(another))
        before, now = former, session
        # A machine that was cut and comes again as it was did not boot anew: there are two.
        returns = now.boot_id != before.boot_id and now.boot_id == self._cut.get(session.device)
        if before.installation != now.installation or returns:
            session.clone_of = former
        self._cut[session.device] = before.boot_id

    def heard(self, session: DeviceSession) -> None:
        """A sign of life."""
        session.heard = self._clock.monotonic()

    def told(self, session: DeviceSession, report: device_pb2.DeviceReport) -> None:
        """A device says how it is; of an older stream, or generation, it is history."""
        late = report.generation < session.generation
        if self._sessions.get(session.device) is session and not late:
            session.generation, session.report = report.generation, report.SerializeToString()
            self._tell(DeviceTold(session.device, report))

    def left(self, session: DeviceSession) -> None:
        """A stream ended."""
        if self._sessions.get(session.device) is session:
            del self._sessions[session.device]
            self._tell(DeviceWent(session.device))

    async def run(self) -> None:
        """End streams on which nothing comes any more, until cancelled."""
        while True:
            await self._clock.sleep(self.alive_every)
            oldest = self._clock.monotonic() - MISSED * self.alive_every
            for session in list(self._sessions.values()):
                if session.heard < oldest:
                    seconds = MISSED * self.alive_every
                    session.end(Unavailable(f"nothing came from the device for {seconds:g} s"))

    def close(self) -> None:
        """End all streams: the server stops. Devices come again by and by."""
        self._closed = True
        after = AFTER_STOP + len(self._sessions) / ENDED_IN_A_SECOND
        for session in self._sessions.values():
            session.farewell = after
            session.end(going_away())

    def tell_of_work(self, device: str) -> None:
        """There are jobs for a device; who is away is told when it comes."""
        session = self._sessions.get(device)
        if session is not None:
            session.work()

    # -- what backends use ----------------------------------------------------------------------

    def connected(self, device: str) -> bool:
        """Whether a device has a stream now."""
        return device in self._sessions

    def session(self, device: str) -> DeviceSession | None:
        """A device's stream."""
        return self._sessions.get(device)

    def send(self, device: str, desired: device_pb2.DeviceDesired) -> bool:
        """See `hatoba_plugins.backend.DeviceHub`."""
        session = self._sessions.get(device)
        if session is None or session.ended is not None:
            return False
        if desired is not self._sent:
            # Thousands are told the same: they share one message.
            self._sent, self._message = desired, Response(items=[Order(desired=desired)])
        session.want(self._message)
        return True

    def end(self, device: str, reason: str) -> None:
        """See `hatoba_plugins.backend.DeviceHub`."""
        session = self._sessions.get(device)
        if session is not None:
            session.end(PermissionDenied(reason))

    async def watch(self) -> AsyncIterator[DeviceNews]:
        """See `hatoba_plugins.backend.DeviceHub`."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            for session in list(self._sessions.values()):
                hello = device_pb2.DeviceHello.FromString(session.hello)
                yield DeviceCame(session.device, hello, GRPC)
                if session.report:
                    report = device_pb2.DeviceReport.FromString(session.report)
                    yield DeviceTold(session.device, report)
            yield Synced()
            while True:
                yield await watcher.next()
        finally:
            self._watchers.discard(watcher)

    def _tell(self, news: DeviceNews) -> None:
        for watcher in self._watchers:
            watcher.put(news)


class _Watcher:
    """Somebody who follows. Of each device the newest is kept, so that nobody who talks much makes
    another wait, or the server grow.
    """

    def __init__(self) -> None:
        self._links: dict[str, DeviceCame | DeviceWent] = {}
        self._reports: dict[str, DeviceTold] = {}
        self._wake = asyncio.Event()

    def put(self, news: DeviceNews) -> None:
        if isinstance(news, DeviceTold):
            self._reports[news.device] = news
        elif isinstance(news, DeviceCame | DeviceWent):
            self._links[news.device] = news
        self._wake.set()

    async def next(self) -> DeviceNews:
        while True:
            # Who came is told of before what it said.
            for waiting in (self._links, self._reports):
                if waiting:
                    return waiting.pop(next(iter(waiting)))
            self._wake.clear()
            await self._wake.wait()


def going_away() -> Unavailable:
    """What streams of a server that stops end with."""
    return Unavailable("the server is stopping; connect again after a moment")
