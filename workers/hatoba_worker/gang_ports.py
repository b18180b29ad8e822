"""Ports that members of gangs keep free for the others to meet at."""

from __future__ import annotations

import socket


class GangPorts:
    """One port for each member that waits to begin, taken from nobody until it does."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._sockets: dict[str, socket.socket] = {}

    def address_of(self, attempt: str) -> str:
        """`host:port` at which this member can be met; the same each time it is asked for."""
        held = self._sockets.get(attempt)
        if held is None:
            held = self._sockets[attempt] = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            # Not in anybody's way once its job listens there, though ours was closed just now.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("", 0))
        host = f"[{self._address}]" if ":" in self._address else self._address
        return f"{host}:{held.getsockname()[1]}"

    def free(self, attempt: str) -> None:
        """The member begins, or is over."""
        held = self._sockets.pop(attempt, None)
        if held is not None:
            held.close()
