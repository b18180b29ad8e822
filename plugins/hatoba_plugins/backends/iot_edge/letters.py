"""What rules of AWS IoT put into the queue: changes of shadows, and events of connections. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from hatoba.shadows import Json, Shadow, seconds, shadow_of, text_of

# -- presence --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Presence:
    """One of AWS's events about a connection: a hint, which may be late, lost or doubled."""

    thing: str
    connected: bool
    session: str
    at: float
    """In seconds since 1970."""
    taken_over: bool = False
    """It ended because the same device connected anew."""


def presence_of(told: Json) -> Presence | None:
    """Read one; None: it is about something else than a connection's begin or end, such as one
    that somebody was refused. ValueError for what is none.
    """
    kind, at = told.get("eventType"), seconds(told.get("timestamp"))
    if kind not in ("connected", "disconnected"):
        return None
    if not at:
        raise ValueError("it has no time")
    taken_over = told.get("disconnectReason") == "DUPLICATE_CLIENTID"
    session = str(told.get("sessionIdentifier", ""))
    return Presence(text_of(told, "clientId"), kind == "connected", session, at, taken_over)


# -- what a queue brings ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """A device's shadow changed to this."""

    thing: str
    shadow: Shadow


@dataclass(frozen=True, slots=True)
class Kept:
    """A device sent records, still packed."""

    thing: str
    records: str


def word_of(body: str) -> Word | Presence | Kept | None:
    """Read a message of the queue, as the rules put it there; None: it says nothing to us.
    ValueError for any other.
    """
    told = json.loads(body)
    if not isinstance(told, dict):
        raise ValueError("it is no object")
    if "eventType" in told:
        return presence_of(told)
    if "records" in told:
        return Kept(text_of(told, "thing"), text_of(told, "records"))
    return Word(text_of(told, "thing"), shadow_of(told.get("shadow")))
