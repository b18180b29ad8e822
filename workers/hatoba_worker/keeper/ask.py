"""Asking the keeper without an event loop: for its own start, and for shells."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from hatoba_worker.keeper.frames import FrameBuffer, Json, encode
from hatoba_worker.keeper.serve import short_path


def ask(data: Path, commands: Sequence[Json], timeout: float = 10.0) -> list[Json]:
    """Send `commands` to the keeper of `data` and return its replies.

    Raises OSError when it cannot be reached within `timeout` seconds or hangs up.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        with short_path(data) as path:
            sock.connect(path)
        sock.sendall(encode({"id": 1, "commands": list(commands)}))
        inbox = FrameBuffer()
        while received := sock.recv(1 << 16):
            for frame in inbox.feed(received):
                replies: list[Json] = frame["replies"]
                return replies
    raise ConnectionResetError("the keeper hung up")
