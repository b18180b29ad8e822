"""How many files a server may have open: the stream of each connected device is one."""

from __future__ import annotations

import resource
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

OWN = 256
"""What a server has open beside its devices: the store, callers, workers, what is fetched."""


def allow_most() -> int:
    """Allow this process as many as the system lets it; how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


class FileWatch:
    """Warns once when there are more devices than files for their streams."""

    def __init__(self, most: int, devices: Callable[[], int]) -> None:
        self._most = most
        self._devices = devices
        self._warned = False

    def look(self) -> None:
        """Count them."""
        devices = self._devices()
        few = 0 <= self._most < devices + OWN
        if few and not self._warned:
            log.warning(
                "open_files.few",
                devices=devices,
                limit=self._most,
                remedy="raise the hard limit of open files (LimitNOFILE= of the unit, ulimit -Hn)",
            )
        self._warned = few
