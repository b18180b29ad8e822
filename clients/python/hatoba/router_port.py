"""Where the router of a data directory answers: chosen once, kept in `DATA/router.json`.

Server and router both ask here, whoever comes first, so that the address is known before the first
router starts and stays the same for ever. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import tempfile
from pathlib import Path

FILE = "router.json"
HOST = "127.0.0.1"
_LOWEST = 20_000
_TRIES = 50
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def router_address(data: Path) -> str:
    """`HOST:PORT` of this directory's router, chosen now if it never was; blocks on small files.

    Raises OSError when it cannot be kept.
    """
    return kept_address(data) or _choose(data)


def kept_address(data: Path) -> str:
    """`HOST:PORT` that was chosen before; empty when none was, or when it cannot be read."""
    try:
        found = json.loads((data / FILE).read_text(encoding="utf-8"))
        host, port = str(found["host"]), int(found["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f"{host}:{port}" if 0 < port < 65536 else ""


def _choose(data: Path) -> str:
    """Choose and keep; of two that choose at once the first counts."""
    path = data / FILE
    if path.exists():
        # It cannot be read: nobody can have gone by it.
        path.unlink(missing_ok=True)
    descriptor, fresh = tempfile.mkstemp(dir=data, prefix=FILE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps({"host": HOST, "port": free_port()}) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
    finally:
        Path(fresh).unlink(missing_ok=True)
    return kept_address(data)


def free_port(rng: random.Random | None = None) -> int:
    """A port on loopback that nobody listens on.

    Below those that the kernel gives to outgoing connections: one of them must not have taken the
    router's port in the moment in which it restarts.
    """
    highest = _first_ephemeral() - 1
    draw = rng or random.Random()
    if highest > _LOWEST:
        for _ in range(_TRIES):
            port = draw.randint(_LOWEST, highest)
            if _is_free(port):
                return port
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _first_ephemeral() -> int:
    try:
        return int(_RANGE.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return 32_768


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
