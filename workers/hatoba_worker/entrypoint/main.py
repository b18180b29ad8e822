"""The command line: `hatoba-entrypoint run|pod-init|pod-sidecar|serve`."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatoba_worker.entrypoint.parent import CODE_FILE, Parent
from hatoba_worker.entrypoint.places import directory_of, volumes_of
from hatoba_worker.entrypoint.signals import listen

if TYPE_CHECKING:
    from hatoba_worker.entrypoint.pod import Pod

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
    return _COMMANDS[options.command](os.environ)


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
    directory = directory_of(environ)
    if _CHILD not in environ:
        return _below_parent("run", environ, directory)
    listen()
    inner = {name: value for name, value in environ.items() if name != _CHILD}
    _die_with(int(environ[_CHILD]))
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    from hatoba_worker.entrypoint.outcome import outcome
    from hatoba_worker.entrypoint.runner import Runner
    from hatoba_worker.entrypoint.settings import settings_of

    code = outcome(lambda: Runner(settings_of(inner), directory, inner).run())
    (directory / CODE_FILE).write_text(str(code), encoding="ascii")
    return code


def _below_parent(command: str, environ: Mapping[str, str], directory: Path | None) -> int:
    """Stay as the runner's parent. With a directory it begins anew until it leaves a code there."""
    code_file = None
    if directory is not None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        code_file = directory / CODE_FILE
    inner = {**environ, _CHILD: str(os.getpid())}
    arguments = [sys.executable, "-m", "hatoba_worker.entrypoint", command]
    return Parent(arguments, inner, code_file).run()


def _die_with(parent: int) -> None:
    """Be told SIGTERM when the parent is killed."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _pod_init(environ: Mapping[str, str]) -> int:
    listen()
    from hatoba_worker.entrypoint.outcome import outcome
    from hatoba_worker.entrypoint.pod_init import PodInit

    return outcome(lambda: PodInit(_pod(environ)).run())


def _pod_sidecar(environ: Mapping[str, str]) -> int:
    listen()
    from hatoba_worker.entrypoint.outcome import outcome
    from hatoba_worker.entrypoint.pod_sidecar import PodSidecar

    return outcome(lambda: PodSidecar(_pod(environ)).run())


def _pod(environ: Mapping[str, str]) -> Pod:
    from hatoba_worker.entrypoint.pod import Pod
    from hatoba_worker.entrypoint.settings import settings_of

    return Pod(settings_of(environ), *volumes_of(environ), environ)


def _serve(environ: Mapping[str, str]) -> int:
    if _CHILD not in environ:
        return _below_parent("serve", environ, None)
    listen()
    inner = {name: value for name, value in environ.items() if name != _CHILD}
    _die_with(int(environ[_CHILD]))
    from hatoba_worker.entrypoint.outcome import outcome
    from hatoba_worker.entrypoint.serve import Replica

    made: list[Replica] = []

    def way() -> Coroutine[Any, Any, int]:
        made.append(Replica(inner))
        return made[0].run()

    code = outcome(way)
    spawn = made[0].spawn if made else None
    return made[0].become(spawn) if spawn else code


_COMMANDS: dict[str, Callable[[Mapping[str, str]], int]] = {
    "run": _run,
    "pod-init": _pod_init,
    "pod-sidecar": _pod_sidecar,
    "serve": _serve,
}
