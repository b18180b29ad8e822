"""One device as it is known by its shadow and by AWS's word on its connection. Pure.

The shadow says who is there; it tells so again after a restart. Events of connections are hints:
one that says the device went makes it suspected, and whoever is suspected is looked at again after
a while, in the shadow, before anything follows from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hatoba.shadows import Said
from hatoba.v1 import device_pb2
from hatoba_plugins.backends.iot_edge.letters import Presence
from hatoba_plugins.values import DeviceCame, DeviceNews, DeviceTold, DeviceWent

TRANSPORT = "aws-iot"
MISSED = 3
"""So many signs of life may be missed."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a device's shadow says, read and checked; None for what it does not say, or cannot
    be."""

    said: Said
    hello: device_pb2.DeviceHello | None = None
    report: device_pb2.DeviceReport | None = None


@dataclass(frozen=True, slots=True)
class Suspicion:
    """Its connection is said to have ended; `due` is when that is looked at, monotonic."""

    session: str
    at: float
    due: float


@dataclass(slots=True)
class FarDevice:
    """What is known of one. Times are monotonic but for those by AWS, which say so."""

    name: str
    said: Said = field(default_factory=Said)
    hello: device_pb2.DeviceHello | None = None
    report: bytes = b""
    """As it told last, serialised; empty: nothing yet."""
    heard: float = 0.0
    """When it last gave a sign of life."""
    looked: float = 0.0
    """When its shadow was last read."""
    suspicion: Suspicion | None = None
    _connected: float = 0.0
    """When the newest connection that is known began, by AWS's clock."""

    @property
    def there(self) -> bool:
        """Whether it is there, as far as is known."""
        return self.said.there and self.hello is not None

    def known(self) -> list[DeviceNews]:
        """All that there is to tell of it."""
        told: list[DeviceNews] = []
        if self.there and self.hello is not None:
            told.append(DeviceCame(self.name, self.hello, TRANSPORT, vouched=True))
        if self.report:
            told.append(DeviceTold(self.name, device_pb2.DeviceReport.FromString(self.report)))
        return told

    # -- its shadow -----------------------------------------------------------------------------

    def hear(self, heard: Heard, now: float, *, anew: bool = False) -> list[DeviceNews]:
        """Take in its shadow; what follows from it. An older version is history, unless the shadow
        was made `anew`.
        """
        said = heard.said
        if said.version <= self.said.version and not anew:
            return []
        before, was_there = self.said, self.there
        self.said, self.heard = said, now
        if said.link != before.link or heard.hello is not None:
            self.hello = heard.hello
        self._believe(before)
        return [*self._moved(was_there, before), *self._told(heard)]

    def _believe(self, before: Said) -> None:
        """Whoever writes is connected: no suspicion outlives it."""
        suspected = self.suspicion
        if suspected is None:
            return
        spoke_after = self.said.spoke >= math.floor(suspected.at) + 1
        if self.said.link != before.link or spoke_after:
            self.suspicion = None

    def _moved(self, was_there: bool, before: Said) -> list[DeviceNews]:
        if self.there and self.hello is not None:
            same = was_there and before.link == self.said.link
            return [] if same else [DeviceCame(self.name, self.hello, TRANSPORT, vouched=True)]
        return [DeviceWent(self.name)] if was_there else []

    def _told(self, heard: Heard) -> list[DeviceNews]:
        if heard.report is None:
            return []
        report = heard.report.SerializeToString(deterministic=True)
        if report == self.report:
            return []
        self.report = report
        return [DeviceTold(self.name, heard.report)]

    # -- its connection -------------------------------------------------------------------------

    def hint(self, event: Presence, due: float) -> None:
        """Take in an event of a connection: out of order, doubled, whatever. What ended is to be
        looked at when it is `due`.
        """
        if event.connected:
            self._connects(event)
        elif self._ended(event):
            self.suspicion = self.suspicion or Suspicion(event.session, event.at, due)

    def _connects(self, event: Presence) -> None:
        if event.at <= self._connected:
            return
        self._connected = event.at
        suspected = self.suspicion
        # A connection that took over from another may have begun before that one's end.
        if suspected and (event.at > suspected.at or event.session != suspected.session):
            self.suspicion = None

    def _ended(self, event: Presence) -> bool:
        """Whether it can be the link that it has now. One that was taken over never is."""
        if not self.there or event.taken_over:
            return False
        return event.at > self._connected and event.at >= math.floor(self.said.spoke)

    def suspect(self, now: float, alive_every: float) -> bool:
        """Whether it is to be looked at: it is said to have gone, or nothing came for too long."""
        if not self.there:
            return False
        if self.suspicion is not None:
            return now >= self.suspicion.due
        return now - self.heard > MISSED * alive_every
