"""Starts the server that comes with this installation, when nobody named another one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from hatoba.errors import Unavailable
from hatoba.settings import Server, embedded_server

START_SECONDS = 30.0
POLL_SECONDS = 0.02
# Two commands may start a server at once; the second one's ends on the lock, and the first one's is
# used.
RIVAL_SECONDS = 3.0
LOG_LINES = 5
KEPT = ("HATOBA_SECRET_", "HATOBA_DEBUG", "HATOBA_DATA")
# The servers outlive us; collecting their handles would complain of that.
_started: list[subprocess.Popen[bytes]] = []


def start_embedded(data: Path, say: Callable[[str], None]) -> Server:
    """The server of `data`, started and ready; `say` gets one line about it.

    Raises Unavailable with the end of its log when it does not come up in 30 seconds.
    """
    running = embedded_server(data)
    if running is not None:
        return running
    if find_spec("hatoba_scheduler") is None or find_spec("aiohttp") is None:
        raise Unavailable(
            "no server is named, and this installation has none of its own",
            remedy="pip install 'hatoba[server,worker]', "
            "or name one: `hatoba login ADDRESS --token-file F`",
        )
    began = time.monotonic()
    server = _wait(data, _spawn(data), began)
    seconds = time.monotonic() - began
    say(f"started the embedded server in {data} ({seconds:.1f}s); `hatoba server stop` ends it")
    return server


def _spawn(data: Path) -> subprocess.Popen[bytes]:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = (data / "server.log").open("ab")
    except OSError as error:
        raise Unavailable(
            f"the embedded server cannot use {data}: {error.strerror}",
            remedy="set HATOBA_DATA to another directory",
        ) from None
    command = [sys.executable, "-m", "hatoba", "server", "start", "--data", str(data.absolute())]
    with log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=data,
            env=_environment(),
        )
    _started.append(process)
    return process


def _environment() -> dict[str, str]:
    """Ours without a job's marks: started from inside a job, the server is no part of it."""
    names = (name for name in os.environ if name != "TRACEPARENT")
    ours = (name for name in names if not name.startswith("HATOBA_") or name.startswith(KEPT))
    return {name: os.environ[name] for name in ours}


def _wait(data: Path, process: subprocess.Popen[bytes], began: float) -> Server:
    deadline = began + START_SECONDS
    while time.monotonic() < deadline:
        server = embedded_server(data)
        if server is not None:
            return server
        if process.poll() is not None:
            deadline = min(deadline, began + RIVAL_SECONDS)
        time.sleep(POLL_SECONDS)
    raise Unavailable(
        f"the embedded server in {data} did not start:\n{_end_of_log(data)}",
        remedy=f"the whole log is {data / 'server.log'}",
    )


def _end_of_log(data: Path) -> str:
    try:
        text = (data / "server.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-LOG_LINES:]) or "(its log is empty)"
