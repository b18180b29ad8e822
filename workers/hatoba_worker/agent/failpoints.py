"""Named places in the agent where it stands still on demand, so that the power can fail just there.

`HATOBA_AGENT_FAILPOINTS` names a file; with `HATOBA_DEBUG=1` alone it is looked at. While the file
is there and has a point's name in it, whoever passes that point stops the whole process, as SIGSTOP
does. The points are those of the journal's entries, see there.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

VARIABLE = "HATOBA_AGENT_FAILPOINTS"


def passing(environ: Mapping[str, str]) -> Callable[[str], None]:
    """What is to be called with the name of a point that is passed; it may block."""
    path = environ.get(VARIABLE, "")
    if not path or environ.get("HATOBA_DEBUG") != "1":
        return lambda _: None
    return Pointed(Path(path))


class Pointed:
    """Stops this process at the points that a file names, one a line."""

    def __init__(
        self, path: Path, stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGSTOP)
    ) -> None:
        self._path = path
        self._stop = stop

    def __call__(self, point: str) -> None:
        """Pass by a point."""
        with contextlib.suppress(OSError):
            if point in self._path.read_text(encoding="ascii").split():
                self._stop()
