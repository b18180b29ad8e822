"""What the device tells of itself over time, kept until the server has it: logs, figures, events.

Whoever has something to say never waits. What was said is put on the disk once a second, and given
to the link from there: a position that was sent never stands for anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NamedTuple

import structlog

from hatoba.v1 import device_pb2
from hatoba_worker.agent.ring import Record, Ring

log = structlog.get_logger(__name__)

LOG, FIGURE, HAPPENING, PREDICTION = 1, 2, 3, 4
"""Kinds of records in the ring."""
MOST_WAITING = 5_000
"""Records that may wait for the disk; what is oldest is dropped."""
MOST_TEXT, MOST_MESSAGE = 8_192, 1_024
BATCH, BATCH_BYTES = 1_000, 64 << 10
_FIELDS = {LOG: "log", FIGURE: "figure", HAPPENING: "happening", PREDICTION: "prediction"}


class _Said(NamedTuple):
    """A record that is not on the disk yet, as the ring takes it."""

    time: int
    kind: int
    data: bytes


class Records:
    """Of one device. `now` is the date in Unix seconds; `wake` is set when there is more to send.

    `log` may be called by any thread, all else by the event loop's.
    """

    def __init__(self, ring: Ring, now: Callable[[], float], wake: asyncio.Event) -> None:
        self._ring = ring
        self._now = now
        self._wake = wake
        self._said: deque[_Said] = deque()
        self._dropped = 0
        self._stuck = False
        self._saying = threading.Lock()
        self._one_thread = asyncio.Lock()
        self._opened = self._agreed = False
        self.durable = 0
        """Up to this position the server has all; 0: it has said nothing yet."""

    async def open(self) -> None:
        """Read what there is; a disk that cannot be read is tried again with each `flush`."""
        async with self._one_thread:
            try:
                await asyncio.to_thread(self._ring.open)
            except OSError as error:
                log.error("records.unreadable", error=str(error))
                return
        self._opened = True

    @property
    def newest(self) -> int:
        """Position of the newest that is on the disk; 0: there is none."""
        return self._ring.newest

    # -- what is said ---------------------------------------------------------------------------

    def log(self, deployment: str, text: str) -> None:
        """A line of a log; of the agent itself without a deployment."""
        line = device_pb2.DeviceLogLine(deployment=deployment, text=_bounded(text, MOST_TEXT))
        self._say(LOG, line.SerializeToString())

    def happened(self, kind: str, message: str) -> None:
        """Something happened; `kind` is a word, the message one sentence."""
        told = device_pb2.DeviceHappening(kind=kind, message=_bounded(message, MOST_MESSAGE))
        self._say(HAPPENING, told.SerializeToString())

    def figure(self, name: str, value: float, deployment: str = "") -> None:
        """A figure as it is now, of the device or of a deployment there."""
        told = device_pb2.DeviceFigure(name=name, value=value, deployment=deployment)
        self._say(FIGURE, told.SerializeToString())

    def predicted(self, age: float, told: device_pb2.DevicePrediction) -> None:
        """A prediction that began so many seconds ago."""
        self._say(PREDICTION, told.SerializeToString(), age)

    @property
    def stuck(self) -> bool:
        """The disk does not take what was said: who can have more to say later is asked to."""
        return self._stuck or not self._opened

    def _say(self, kind: int, data: bytes, age: float = 0.0) -> None:
        said = _Said(round((self._now() - age) * 1e6), kind, data)
        with self._saying:
            if len(self._said) >= MOST_WAITING:
                self._said.popleft()
                self._dropped += 1
            self._said.append(said)

    async def flush(self) -> None:
        """Have all that was said on the disk. A disk that is full has it wait, and then drop."""
        if not self._opened:
            await self.open()
        if not self._opened or not (self._said or self._stuck):
            return
        try:
            # What the ring has already comes first.
            await self._put([] if self._stuck else self._taken())
        except OSError as error:
            if not self._stuck:
                log.error("records.unsaved", error=str(error))
            self._stuck = True
        else:
            self._stuck = False
            self._wake.set()

    def _taken(self) -> list[_Said]:
        with self._saying:
            taken, dropped = list(self._said), self._dropped
            self._said.clear()
            self._dropped = 0
        if dropped:
            log.warning("records.dropped", count=dropped)
        return taken

    async def _put(self, said: list[_Said]) -> None:
        async with self._one_thread:
            await asyncio.to_thread(self._write, said)

    def _write(self, said: list[_Said]) -> None:
        for one in said:
            self._ring.add(*one)
        self._ring.sync()

    # -- what is sent ---------------------------------------------------------------------------

    async def take_up(self, stored: int) -> None:
        """A server greets us, which has all up to this position. A disk that is broken has nothing
        sent until the next one.
        """
        self._agreed = False
        if not self._opened:
            return
        async with self._one_thread:
            try:
                await asyncio.to_thread(self._agree, stored)
            except OSError as error:
                log.error("records.unsaved", error=str(error))
                return
        self._agreed = True

    def _agree(self, stored: int) -> None:
        self._ring.sync()
        # Where the ring was lost, what is said from now on must not look like what came before.
        self._ring.begin_after(stored)
        self._ring.acked(stored)
        self.durable = stored

    async def stored(self, position: int) -> None:
        """The server has all up to a position."""
        async with self._one_thread:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(self._ring.acked, position)
        self.durable = position

    async def next(self, after: int) -> device_pb2.DeviceRecords | None:
        """What is on the disk behind a position; None: nothing that can be sent."""
        if not self._agreed or self._ring.newest <= after:
            return None
        async with self._one_thread:
            try:
                batch = await asyncio.to_thread(self._ring.read, after, BATCH_BYTES)
            except OSError as error:
                log.error("records.unreadable", error=str(error))
                return None
        return _told(batch.records) if batch.records else None


@contextlib.contextmanager
def heard_log(records: Records) -> Iterator[None]:
    """Have what this process logs told as well, but for what is only for who looks for faults."""
    former = structlog.get_config()["processors"]
    *others, render = former

    def tee(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        line = render(logger, method, event)
        if method != "debug":
            records.log("", str(line))
        return line

    structlog.configure(processors=[*others, tee])
    try:
        yield
    finally:
        structlog.configure(processors=former)


def _told(records: list[Record]) -> device_pb2.DeviceRecords:
    """The first of them that follow one another without a gap."""
    first = records[0].number
    row = [one for at, one in enumerate(records[:BATCH]) if one.number == first + at]
    return device_pb2.DeviceRecords(first=first, records=map(_message, row))


def _message(record: Record) -> device_pb2.DeviceRecord:
    told = device_pb2.DeviceRecord()
    told.time.FromMicroseconds(record.time)
    if field := _FIELDS.get(record.kind):
        getattr(told, field).ParseFromString(record.data)
    return told


def _bounded(text: str, most: int) -> str:
    """At most so many characters, all of which can be sent."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.encode(errors="replace").decode()
