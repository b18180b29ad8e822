"""Ends a process whose loops have gone silent, so that its supervisor starts it anew.

It watches from a thread of its own: the event loop may be what hangs. systemd is told that all is
well only while it is.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping

import structlog

log = structlog.get_logger(__name__)

SILENT_MOST = 120.0
LOOK_EVERY = 10.0
EXIT_CODE = 70


class Beat:
    """One loop's sign of life. A loop that waits for others rests, and is not looked at. `inner`:
    it goes on whatever becomes of the link.
    """

    def __init__(self, monotonic: Callable[[], float], *, inner: bool = False) -> None:
        self.inner = inner
        self._monotonic = monotonic
        self._last: float | None = None

    def __call__(self) -> None:
        """It goes on."""
        self._last = self._monotonic()

    def rest(self) -> None:
        """It waits for something that may never come."""
        self._last = None

    def silent(self) -> float:
        """For how many seconds nothing was heard of it."""
        last = self._last
        return self._monotonic() - last if last is not None else 0.0


class Watchdog:
    """All loops of a process. `end` is given the exit code and does not return."""

    def __init__(
        self,
        environ: Mapping[str, str],
        monotonic: Callable[[], float] = time.monotonic,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._environ = environ
        self._monotonic = monotonic
        self._end = end
        self._beats: dict[str, Beat] = {}
        self._over = threading.Event()

    def beat(self, name: str) -> Beat:
        """The sign of life of a loop of this name that has to do with the link."""
        return self._beats.setdefault(name, Beat(self._monotonic))

    def inner_beat(self, name: str) -> Beat:
        """The same of one that goes on whatever becomes of the link."""
        return self._beats.setdefault(name, Beat(self._monotonic, inner=True))

    def rest_all(self) -> None:
        """All that has to do with the link is over."""
        for beat in list(self._beats.values()):
            if not beat.inner:
                beat.rest()

    def look(self) -> None:
        """Tell the supervisor that all is well, or end the process."""
        for name, beat in list(self._beats.items()):
            if beat.silent() > SILENT_MOST:
                log.error("agent.silent", loop=name, seconds=round(beat.silent()))
                self._end(EXIT_CODE)
                return
        notify("WATCHDOG=1", self._environ)

    def begin(self) -> None:
        """Look from now on, until `end_looking`."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def end_looking(self) -> None:
        """The process comes to its end."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY):
            self.look()

    async def beat_of_loop(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """The event loop's own sign of life, until cancelled."""
        beat = self.inner_beat("event loop")
        while True:
            beat()
            await sleep(LOOK_EVERY)


def notify(text: str, environ: Mapping[str, str]) -> None:
    """Tell systemd, where it listens: `READY=1`, `WATCHDOG=1`, `STOPPING=1`."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        # Who does not listen, or has its hands full, must not hold the agent up.
        out.setblocking(False)
        try:
            out.sendto(text.encode(), address.replace("@", "\0", 1))
        except OSError as error:
            log.info("systemd.deaf", error=str(error))
