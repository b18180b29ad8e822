"""Identities: time-ordered uids, and ids of traces and spans."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable


class UidMaker:
    """Makes UUIDv7s (RFC 9562) that strictly grow within a process.

    Within one millisecond the 12 bits after the version count on; a full count borrows from the
    next millisecond.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = 0
        # Unique, not secret: the system's generator would cost a tenth of a submit.
        self._bits = random.Random(secrets.randbits(256)).getrandbits

    def __call__(self) -> str:
        """A new uid."""
        stamp = max(int(self._clock() * 1000) << 12, self._last + 1)
        self._last = stamp
        high = (stamp >> 12) << 16 | 0x7000 | stamp & 0xFFF
        text = "%032x" % (high << 64 | 0x8000_0000_0000_0000 | self._bits(62))
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
