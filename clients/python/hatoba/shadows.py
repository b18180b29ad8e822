"""What server and device write into a thing's named shadows. Pure, and for both sides.

A device has two shadows, so that each side writes one alone: the device needs no right to touch
what is wanted of it, and each has the eight kilobytes to itself that AWS allows.

* `hatoba`: the server writes `desired`, which is one set with its generation:
  `{"generation": 7, "set": TEXT, "alive_every": 1200}`.
* `hatoba-said`: the device writes `reported`: `{"link": ID, "hello": TEXT}` when it has connected,
  `{"by": ID, "report": TEXT, "turn": 3, "parts": 1}` after that and whenever something changes,
  and `{"link": null}` for a goodbye. `link` is new with each connection, and `by` is the one that
  a report was told on; `turn` grows with each report. A report that is too large goes on in
  `hatoba-said-2` and so on, which are written before it. The server writes `desired` there,
  `{"gone": ID}`, for a link that it takes for broken: a device that still has this link says hello
  again, as a new one.

What a device keeps (logs, figures, events) it sends to `hatoba/THING/records`, as
`{"records": TEXT}`, one piece after the other: the next once the server has written
`{"stored": POSITION}` into `desired` of `hatoba-said`. It does so where `desired` of `hatoba` has
`"records": true`.

TEXT is a message of the contract, gzipped, in base64. Who reads compares the shadow's version:
notices of it come out of order, and more than once.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from hatoba.v1 import device_pb2

DOCUMENT = 8 * 1024
"""Bytes of a shadow's state that AWS takes, without metadata."""
ROOM = 512
"""Bytes of them for what stands beside a report."""
MOST_PARTS = 8
MOST_BYTES = 256 * 1024
"""Of a message: what is larger was not made by a device of ours."""
MILLISECONDS = 1e11
"""What is larger is no time in seconds for the next thousand years."""
Json = dict[str, Any]
M = TypeVar("M", bound=Message)


def seconds(told: object) -> float:
    """A time by AWS, in seconds since 1970: it tells some in milliseconds. 0.0: none was told."""
    if isinstance(told, bool) or not isinstance(told, int | float):
        return 0.0
    return told / 1000 if told > MILLISECONDS else float(told)


def pack(message: Message) -> str:
    """A message as text; the same text for the same message."""
    raw = message.SerializeToString(deterministic=True)
    return base64.b64encode(gzip.compress(raw, mtime=0)).decode()


def unpack(text: str, kind: type[M]) -> M:
    """The reverse of `pack`. ValueError for what is no such message, or too large for one."""
    try:
        reader = zlib.decompressobj(wbits=31)
        raw = reader.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
        if not reader.eof:
            raise ValueError(f"it is cut off, or larger than {MOST_BYTES} bytes")
        return kind.FromString(raw)
    except (binascii.Error, zlib.error, DecodeError) as error:
        raise ValueError(str(error)) from error


def size(state: Mapping[str, object]) -> int:
    """Bytes of a shadow's state as it is sent."""
    return len(compact(state))


def compact(document: Mapping[str, object]) -> bytes:
    """As it is sent."""
    return json.dumps(document, separators=(",", ":")).encode()


def topic(thing: str, shadow: str, verb: str) -> str:
    """Where a device and AWS speak of a named shadow: `get`, `update`, and what follows them."""
    return f"$aws/things/{thing}/shadow/name/{shadow}/{verb}"


# -- a shadow --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shadow:
    """A named shadow as AWS tells of it; version 0: there is none."""

    version: int = 0
    desired: Json = field(default_factory=dict)
    reported: Json = field(default_factory=dict)
    spoke: float = 0.0
    """When the device wrote last, in seconds since 1970 by AWS's clock."""
    time: float = 0.0
    """When this was told, by the same clock; 0.0: that was not said."""


def shadow_of(told: object) -> Shadow:
    """From a document. ValueError for what is none."""
    if not isinstance(told, dict) or not isinstance(told.get("version"), int):
        raise ValueError("it is no shadow's document")
    state, metadata = _object(told, "state"), _object(told, "metadata")
    return Shadow(
        told["version"],
        _object(state, "desired"),
        _object(state, "reported"),
        _newest(metadata.get("reported")),
        seconds(told.get("timestamp")),
    )


def _object(told: Json, key: str) -> Json:
    found = told.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{key} is no object")
    return found or {}


def _newest(metadata: object) -> float:
    """The newest time in the metadata of a section."""
    if not isinstance(metadata, dict):
        return 0.0
    below = (_newest(value) for value in metadata.values())
    return max(seconds(metadata.get("timestamp")), *below, 0.0)


# -- what is wanted --------------------------------------------------------------------------------


def wanted(generation: int, text: str, alive_every: float, *, records: bool = False) -> Json:
    """The state by which a device is told what is wanted of it; `text` is the packed set. With
    `records` it is to send what it keeps.
    """
    told: Json = {"generation": generation, "set": text, "alive_every": round(alive_every)}
    return {"desired": told | ({"records": True} if records else {})}


def generation_of(shadow: Shadow) -> int:
    """The generation that is wanted; 0: nothing was wanted yet. ValueError for what is no number.

    Somebody else wrote that: no generation may be taken for a lower one than it is.
    """
    told = shadow.desired.get("generation", 0)
    if isinstance(told, bool) or not isinstance(told, int) or told < 0:
        raise ValueError(f"its generation is {told!r}")
    return told


def set_of(shadow: Shadow) -> device_pb2.DeviceDesired | None:
    """What is wanted; None: nothing was wanted yet. ValueError for what cannot be read."""
    text = shadow.desired.get("set")
    if text is None:
        return None
    desired = unpack(text_of(shadow.desired, "set"), device_pb2.DeviceDesired)
    if desired.generation != generation_of(shadow):
        raise ValueError("the set is of another generation than it says")
    return desired


def alive_every(shadow: Shadow, default: float) -> float:
    """Seconds within which a device says that it lives, at least; as long as nobody says so, the
    default."""
    told = _number(shadow.desired, "alive_every", 0)
    return float(told) if told > 0 else default


def wants_records(shadow: Shadow) -> bool:
    """Whether a device is to send what it keeps."""
    return shadow.desired.get("records") is True


# -- what a device says ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """What a device's shadow says, texts still packed."""

    version: int = 0
    link: str = ""
    """Empty: it said goodbye, or never hello."""
    gone: str = ""
    """The link that the server took for broken."""
    hello: str = ""
    report: str = ""
    """The first part of it; empty: there is none yet."""
    by: str = ""
    """The link that the report was told on."""
    turn: int = 0
    parts: int = 1
    spoke: float = 0.0

    @property
    def told_now(self) -> bool:
        """Whether the report was not brought late by a link of before."""
        return not self.link or self.by == self.link

    @property
    def there(self) -> bool:
        """Whether it has a link, as far as this says."""
        return bool(self.link) and self.link != self.gone


def said_of(shadow: Shadow) -> Said:
    """Read it. ValueError for what a device of ours does not write."""
    told = shadow.reported
    parts = _number(told, "parts", 1)
    if not 1 <= parts <= MOST_PARTS:
        raise ValueError(f"its report is said to have {parts} parts")
    return Said(
        shadow.version,
        text_of(told, "link"),
        text_of(shadow.desired, "gone"),
        text_of(told, "hello"),
        text_of(told, "report"),
        text_of(told, "by"),
        _number(told, "turn", 0),
        parts,
        shadow.spoke,
    )


def part_of(shadow: Shadow, turn: int) -> str | None:
    """A further part of the report of this turn; None: it is another report's."""
    if _number(shadow.reported, "turn", 0) != turn:
        return None
    return text_of(shadow.reported, "report")


def hello_state(link: str, hello: device_pb2.DeviceHello) -> Json:
    """What a device writes when it has a link."""
    return {"reported": {"link": link, "hello": pack(hello)}}


def alive_state(link: str) -> Json:
    """What a device writes now and then to be known to be there."""
    return {"reported": {"link": link}}


def goodbye_state() -> Json:
    """What a device writes before it ends its link."""
    return {"reported": {"link": None}}


def report_states(report: device_pb2.DeviceReport, link: str, turn: int) -> list[Json]:
    """What a device writes to tell how it is: of each part its state, the last part first.

    ValueError when it has more parts than there may be.
    """
    text, room = pack(report), DOCUMENT - ROOM
    # The first part has the hello beside it, which takes less than half.
    pieces = [
        text[: room // 2],
        *(text[at : at + room] for at in range(room // 2, len(text), room)),
    ]
    if len(pieces) > MOST_PARTS:
        raise ValueError(f"the report takes {len(text)} bytes, more than {MOST_PARTS} shadows have")
    first = {"by": link, "turn": turn, "report": pieces[0], "parts": len(pieces)}
    more = [{"turn": turn, "report": piece} for piece in pieces[1:]]
    return [{"reported": one} for one in reversed([first, *more])]


def stored_state(position: int) -> Json:
    """What the server writes once it has all of a device's records up to a position."""
    return {"desired": {"stored": position}}


def stored_of(shadow: Shadow) -> int:
    """Up to which position the server has a device's records. ValueError for what is no number."""
    return _number(shadow.desired, "stored", 0)


def records_topic(thing: str) -> str:
    """Where a device sends what it keeps."""
    return f"hatoba/{thing}/records"


def part_names(said: str, parts: int) -> Sequence[str]:
    """Names of the shadows that a report of so many parts is in, the first part's first."""
    return [said, *(f"{said}-{number}" for number in range(2, parts + 1))]


def text_of(told: Json, key: str) -> str:
    """What a key holds; empty: nothing. ValueError for what is no text."""
    found = told.get(key, "")
    if not isinstance(found, str):
        raise ValueError(f"{key} is no text")
    return found


def _number(told: Json, key: str, default: int) -> int:
    found = told.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int):
        raise ValueError(f"{key} is no number")
    return found
