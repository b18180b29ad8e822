"""What time it is on a machine whose clock may say 1970, or 2038.

Waiting goes by the monotonic clock alone. Where a date is needed, for certificates and for what is
told, it is the newest that is known for sure: the server's word of this boot, gone on with; else
not before the newest that any server ever said, which is on the disk, nor before the build.

A server's clock can be wrong, too, and what is known for sure never goes back. So a word that is
far ahead of a clock of this machine that may be right is for sure only once it was said for a day.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from hatoba_worker.agent import disk

FUTURE = 366 * 86_400.0
"""Seconds after the newest date that is known for sure within which the machine's own clock is
believed: a device may have been in a drawer for a year."""
KEEP_EVERY = 3_600.0
"""Seconds after which a newer date is put on the disk."""
DOUBT = 86_400.0
"""A word so many seconds ahead of the machine's clock is doubted, for so many seconds."""


class FloorClock:
    """Dates as Unix seconds. `system` is the machine's clock, `monotonic` goes on by itself."""

    def __init__(
        self,
        path: Path,
        built: float,
        system: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._path = path
        self._system = system
        self._monotonic = monotonic
        self._floor = built
        self._kept = built
        self._since = monotonic()
        self._told: tuple[float, float] | None = None
        self._doubted_since: float | None = None

    def load(self) -> None:
        """Read what was known before; blocks. What cannot be read is not known."""
        with contextlib.suppress(OSError, ValueError):
            kept = float(self._path.read_text(encoding="ascii"))
            self._floor = self._kept = max(self._floor, kept)

    @property
    def certain(self) -> bool:
        """Whether a server said what time it is since the machine booted, and is not doubted."""
        return self._told is not None and self._doubted_since is None

    def now(self) -> float:
        """The date."""
        going = self._monotonic()
        if self._told is not None:
            date, at = self._told
            return date + going - at
        least = self._floor + going - self._since
        own = self._system()
        return own if least <= own <= least + FUTURE else least

    @property
    def least(self) -> float:
        """What it is not earlier than, for sure."""
        if self.certain:
            return self.now()
        return self._floor + self._monotonic() - self._since

    def learn(self, date: float) -> bool:
        """The server says what time it is; True: the floor is to be put on the disk with `keep`.

        Of two words the later one counts, but time never goes back behind what was known for sure.
        """
        going, least = self._monotonic(), self._floor + self._monotonic() - self._since
        self._told = max(date, self._floor), going
        if self._doubts(date, least, going):
            return False
        self._floor, self._since = self._told
        return self._floor - self._kept >= KEEP_EVERY

    def _doubts(self, date: float, least: float, going: float) -> bool:
        """Whether a word is not for sure yet, though it is what we go by."""
        own = self._system()
        if not least <= own < date - DOUBT:
            self._doubted_since = None
            return False
        if self._doubted_since is None:
            self._doubted_since = going
        if going - self._doubted_since < DOUBT:
            return True
        self._doubted_since = None
        return False

    def keep(self) -> None:
        """Put the newest date on the disk; blocks. Raises OSError."""
        disk.replace(self._path, repr(self._floor).encode())
        self._kept = self._floor
