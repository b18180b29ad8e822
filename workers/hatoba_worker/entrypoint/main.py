"""The command line: `hatoba-entrypoint run|pod-init|pod-sidecar|serve`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hatoba_worker.entrypoint.parent import CODE_FILE, Parent

TERMINATION_LOG = Path("/dev/termination-log")
_CHILD = "HATOBA_RUNNER_LIFE"
_PDEATHSIG = 1


def console() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code of docs/runner.md."""
    parser = argparse.ArgumentParser(
        prog="hatoba-entrypoint", description="The runner that comes with a job."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the attempt that this container was started for")
    run.add_argument("shown", nargs="*", help="the job's command, for human eyes")
    commands.add_parser("pod-init", help="claim and stage, as a pod's init container")
    commands.add_parser("pod-sidecar", help="report and commit, as a pod's native sidecar")
    commands.add_parser("serve", help="serve a replica's model")
    options = parser.parse_args(arguments)
    from hatoba_worker.entrypoint.codes import SETTINGS
    from hatoba_worker.entrypoint.settings import BadSettings

    try:
        return _COMMANDS[options.command](os.environ)
    except BadSettings as error:
        return say(SETTINGS, str(error))


def say(code: int, message: str) -> int:
    """Tell people and the platform why; returns the code."""
    text = f"hatoba-entrypoint: {message} (exit code {code})\n"
    sys.stderr.write(text)
    with contextlib.suppress(OSError):
        handle = os.open(TERMINATION_LOG, os.O_WRONLY | os.O_APPEND)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text[:4096])
    return code


def _run(environ: Mapping[str, str]) -> int:
    from hatoba_worker.entrypoint.settings import directory_of, settings_of

    settings = settings_of(environ)
    directory = directory_of(environ, settings.attempt)
    if _CHILD not in environ:
        return _below_parent("run", environ, directory)
    inner = {name: value for name, value in environ.items() if name != _CHILD}
    _die_with(int(environ[_CHILD]))
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from hatoba_worker.entrypoint.outcome import outcome
    from hatoba_worker.entrypoint.runner import Runner

    code = outcome(lambda: asyncio.run(Runner(settings, directory, inner).run()))
    (directory / CODE_FILE).write_text(str(code), encoding="ascii")
    return code


def _below_parent(command: str, environ: Mapping[str, str], directory: Path) -> int:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    inner = {**environ, _CHILD: str(os.getpid())}
    arguments = [sys.executable, "-m", "hatoba_worker.entrypoint", command]
    return Parent(arguments, inner, directory / CODE_FILE).run()


def _die_with(parent: int) -> None:
    """Be told SIGTERM when the parent is killed."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


_COMMANDS: dict[str, Callable[[Mapping[str, str]], int]] = {"run": _run}
