"""Servers forked from a process that has everything imported: 20 ms instead of seconds.

Run as `python fault_zygote.py server start`: the words let `hatoba server stop` know its children.
The zygote has no channel, event loop or thread; it reads one JSON list a line, forks, and prints
the child's pid.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from server_process import clean_environment


class ZygoteLauncher:
    """Starts servers by asking a zygote; see server_process.Launcher."""

    def __init__(self, modules: Sequence[str] = ()) -> None:
        """`modules` are imported as well before there is any server."""
        support = Path(__file__).resolve().parents[2] / "tests" / "support"
        self._zygote = subprocess.Popen(
            [sys.executable, __file__, "server", "start", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**clean_environment(), "PYTHONPATH": str(support)},
            start_new_session=True,
            cwd="/",
        )
        self.environ: dict[str, str] = {}
        self._read()

    def start(self, arguments: Sequence[str], log: Path) -> int:
        """See Launcher."""
        assert self._zygote.stdin is not None
        wanted = [{**clean_environment(), **self.environ}, str(log), *arguments]
        self._zygote.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._zygote.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._zygote.stdout is not None
        line = self._zygote.stdout.readline()
        if not line:
            raise RuntimeError("the zygote died")
        return int(line)

    def close(self) -> None:
        """End the zygote; its children live on."""
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait()
        assert self._zygote.stdout is not None
        self._zygote.stdout.close()


def serve() -> None:
    """Be the zygote."""
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ["GRPC_VERBOSITY"] = "ERROR"
    from hatoba_scheduler import app, cli
    from hatoba_scheduler.telemetry import logging

    del app, logging
    for name in sys.argv[3:]:
        importlib.import_module(name)
    # Children are reaped by the kernel; they themselves wait for theirs again.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print(0, flush=True)
    for line in sys.stdin:
        environ, log, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            os.environ.clear()
            os.environ.update(environ)
            _become(log)
            cli.server.main(["start", *arguments], prog_name="hatoba server")
        print(child, flush=True)


def _become(log: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(nothing)
    os.close(out)


if __name__ == "__main__":
    serve()
