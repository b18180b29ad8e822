"""Making sure that a data directory has its keeper."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from hatoba_worker.keeper import __file__ as _package
from hatoba_worker.keeper.ask import ask
from hatoba_worker.keeper.boot import HELD

_POLL = 0.02


class KeeperStartError(Exception):
    """No keeper serves the directory, and none could be started; the message says why."""


def ensure_keeper(
    data: Path,
    *,
    python: str = sys.executable,
    timeout: float = 15.0,
    options: Sequence[str] = (),
) -> None:
    """Return when a keeper serves `data`, started by this call if none held the directory.

    It lives on after the caller, in a session of its own. Blocks for tens of milliseconds: on an
    event loop, call it in a thread. `options` are further ones for the keeper's command line.
    Raises KeeperStartError after `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while not _serves(data):
        # Who holds the lock may be on its way out: hence again, and not only wait.
        problem = _start(data, python, timeout, options)
        if problem or time.monotonic() > until:
            raise KeeperStartError(problem or f"the keeper of {data} holds its lock but is silent")
        time.sleep(_POLL)


def _serves(data: Path) -> bool:
    try:
        ask(data, [{"op": "hello"}], timeout=2.0)
    except OSError:
        return False
    return True


def _start(data: Path, python: str, timeout: float, options: Sequence[str]) -> str:
    main = Path(_package).with_name("__main__.py")
    command = [python, "-I", "-S", str(main), "--data", str(data), "--detach"]
    try:
        done = subprocess.run(
            [*command, "--release", release(), *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode in (0, HELD) else done.stderr.strip()


def release() -> str:
    """The version of what is installed here; `0`: nobody can tell."""
    try:
        return metadata.version("hatoba")
    except metadata.PackageNotFoundError:
        return "0"
