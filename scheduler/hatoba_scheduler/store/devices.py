"""The part of the store that keeps devices, where they stand in roll-outs, and what they sent.

Mutating calls return after the commit. Rows of roll-outs are written together with their
deployment's change by `DeploymentStore.apply`, or alone by `put_rows`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Protocol, TypeVar

from hatoba_scheduler.domain.device_rollouts import Row, Stage
from hatoba_scheduler.domain.devices import GRPC, Device
from hatoba_scheduler.domain.records import Micros

T = TypeVar("T")
KEPT_EVENTS = 200
"""Of one device; older ones are dropped."""
KEPT_RECORDS = 10_000
"""Of one device and of each kind; older ones are dropped."""
AT_ONCE = 500
"""Devices or rows that one transaction writes; callers split what is more."""


def batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Items in order, as many at a time as one transaction writes."""
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


class DeviceEvent(NamedTuple):
    """Something that happened to a device; the store numbers them, from 1 without gaps."""

    device: str
    time: Micros
    kind: str
    message: str
    actor: str
    seq: int = 0


class Write(NamedTuple):
    """A device to be written where the stored one has the version `expected`; 0: there is none of
    its name."""

    device: Device
    expected: int


@dataclass(frozen=True, slots=True)
class DeviceToken:
    """What a token with the role ENROLL may make: see CreateDeviceTokenRequest."""

    id: str
    uses: int
    labels: tuple[tuple[str, str], ...] = ()
    device: str = ""
    used: int = 0
    transport: str = GRPC
    """What its devices dial: `grpc` or `aws-iot`."""


class NotEnrolled(Enum):
    """Why a machine did not become a device."""

    NAME_TAKEN = auto()
    """There is another device of that name."""
    USED_UP = auto()
    """The token has no use left."""


class RecordKind(Enum):
    """What a record of a device is."""

    LOG = 1
    FIGURE = 2
    HAPPENING = 3
    PREDICTION = 4
    GAP = 5
    """Records that never came, up to its position."""


class DeviceRecord(NamedTuple):
    """Something that a device kept for us, at a position; `body` is the contract's message,
    serialised."""

    position: int
    time: Micros
    kind: RecordKind
    deployment: str
    body: bytes
    lost: int = 0
    """Of a gap: how many. Of any other that is read: so many, of whatever kind, never came since
    the one before that the same was asked for."""
    trimmed: bool = False
    """What may have been before it is not kept any more."""


def with_gaps(
    found: Sequence[DeviceRecord], gaps: Sequence[DeviceRecord], *, trimmed: bool
) -> list[DeviceRecord]:
    """Records of a kind, each with the gaps before it; those behind the last one are one gap. Both
    are in order. `trimmed`: what was before all of them is not kept any more."""
    told, rest = [], deque(gaps)
    for one in found:
        lost = 0
        while rest and rest[0].position < one.position:
            lost += rest.popleft().lost
        told.append(one._replace(lost=lost))
    if rest:
        told.append(rest[-1]._replace(lost=sum(one.lost for one in rest)))
    if told and trimmed:
        told[0] = told[0]._replace(trimmed=True)
    return told


class DeviceStore(Protocol):
    """Devices of one installation. See the module."""

    async def load(self) -> list[Device]:
        """All devices."""
        ...

    async def write(
        self, writes: Sequence[Write], events: Sequence[DeviceEvent] = ()
    ) -> frozenset[str]:
        """Write those whose guard holds, and all events of devices that are there then, in one
        transaction; the names of the others."""
        ...

    async def touch(self, seen: Sequence[tuple[str, Micros]]) -> None:
        """Note when devices were seen last; no guard, and no new version."""
        ...

    async def remove(self, name: str) -> None:
        """Forget a device, its rows, records and events. Its enrolment key stays refused."""
        ...

    # -- becoming one ---------------------------------------------------------------------------

    async def put_token(self, token: DeviceToken) -> None:
        """Keep a new token's terms; again, it changes nothing."""
        ...

    async def token(self, identity: str) -> DeviceToken | None:
        """A token's terms."""
        ...

    async def tokens(self, identities: Sequence[str]) -> dict[str, DeviceToken]:
        """The terms of those tokens among these that have some, by id."""
        ...

    async def enroll(
        self, write: Write, key: str, token: str, event: DeviceEvent
    ) -> Device | NotEnrolled | None:
        """Make a machine with this key (its digest) a device by a use of a token; None: it was.

        A key that was enrolled with this token before gives the device that it made, as it is now,
        and no use; USED_UP where that one is gone, or was made anew by another key. So does a token
        that is not known. What a device made anew sends begins at 1: its records of before go. All
        or nothing.
        """
        ...

    # -- roll-outs ------------------------------------------------------------------------------

    async def rows(self, deployment: str, number: int) -> list[Row]:
        """All rows of a deployment's (uid) roll-out, by device."""
        ...

    async def put_rows(self, rows: Sequence[Row]) -> None:
        """Write rows over those of the same deployment, number and device."""
        ...

    async def page_of_rows(
        self, deployment: str, number: int, after: str, limit: int, stages: Collection[Stage]
    ) -> list[Row]:
        """Rows by device after a name, of some stages (none: of all)."""
        ...

    async def drop_rows(self, deployment: str, below: int) -> None:
        """Forget rows of roll-outs below a number."""
        ...

    # -- what they sent -------------------------------------------------------------------------

    async def add_records(self, device: str, records: Sequence[DeviceRecord]) -> int:
        """Keep what is newer than what is kept already, of each kind only the newest KEPT_RECORDS;
        the newest position that is durable now. 0, and nothing is kept, for who is no device."""
        ...

    async def newest_record(self, device: str) -> int:
        """The newest position that is kept; 0: none."""
        ...

    async def records(
        self, device: str, kind: RecordKind, deployment: str, after: int, limit: int
    ) -> list[DeviceRecord]:
        """Records of a kind in order, after a position (0: the last ones), of a deployment (empty:
        of all).

        Where more was lost behind the last one than is told of any, or what is asked for is not
        kept any more, a gap follows as one more: to go on after it misses nothing."""
        ...

    async def events(self, device: str, below: int, limit: int) -> list[DeviceEvent]:
        """Kept events, newest first, below a position (0: from the newest)."""
        ...
