"""Where the servers of deployments listen: each where it did before, so that it is found again."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Collection
from pathlib import Path

from hatoba_worker.agent import disk


class Ports:
    """One for each deployment, kept in a file. All calls block."""

    def __init__(self, file: Path, address: str) -> None:
        self._file = file
        self._address = address
        self._one = threading.Lock()

    def of(self, deployment: str) -> int:
        """Its port; another one, for the time to come, where somebody else has that now. Raises
        OSError.
        """
        with self._one:
            known = self._known()
            port = known.get(deployment, 0)
            if port and self._is_free(port):
                return port
            known[deployment] = self._free_port(known.values())
            disk.replace(self._file, json.dumps(known).encode())
            return known[deployment]

    def _known(self) -> dict[str, int]:
        try:
            told = json.loads(self._file.read_text(encoding="utf-8"))
            return {str(name): int(port) for name, port in told.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            # None was kept yet, or what was cannot be read: others are as good.
            return {}

    def _is_free(self, port: int) -> bool:
        try:
            return self._bound(port) == port
        except (OSError, OverflowError):
            return False

    def _free_port(self, taken: Collection[int]) -> int:
        while (port := self._bound(0)) in taken:
            pass
        return port

    def _bound(self, port: int) -> int:
        """The port that is bound by this, for a moment."""
        with socket.socket() as probe:
            # As servers do: connections of the one before may still be on their way out.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((self._address, port))
            return int(probe.getsockname()[1])
