"""From the command line to a keeper that serves: lock, detach, recover, listen."""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.ask import ask
from hatoba_worker.keeper.book import Book
from hatoba_worker.keeper.frames import Json
from hatoba_worker.keeper.journal import Journal
from hatoba_worker.keeper.keeper import Keeper, data_key
from hatoba_worker.keeper.serve import SOCKET, Service, listen

HELD = 75
LOCK = "keeper.lock"
READY = "keeper.json"
JOURNAL = "keeper.journal"
LOG = "keeper.log"
# Python ignores these for itself, and gives them back in every child.
_RESTORED = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


class HeldError(Exception):
    """Another keeper has the directory."""


def main(arguments: Sequence[str]) -> int:
    """Run the keeper as the command line says; return its exit code."""
    parser = argparse.ArgumentParser(prog="hatoba-keeper", description="Parent of all that runs.")
    parser.add_argument("--data", type=Path, required=True, help="data directory")
    parser.add_argument("--detach", action="store_true", help="return when it serves")
    parser.add_argument("--release", default="", help="version to tell clients")
    parser.add_argument("--no-cgroups", action="store_true", help="limit memory without them")
    parser.add_argument("--ask", action="store_true", help="send the JSON list of stdin instead")
    options = parser.parse_args(arguments)
    data: Path = options.data.resolve()
    if options.ask:
        sys.stdout.write(json.dumps(ask(data, json.load(sys.stdin))) + "\n")
        return 0
    # Whatever we were given by accident, our children would inherit.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    ready = _detach() if options.detach else -1
    try:
        lock = _lock(data)
    except HeldError as error:
        sys.stderr.write(f"hatoba keeper: {error}\n")
        return HELD
    _serve(data, options, ready, lock)
    return 0


def _lock(data: Path) -> int:
    handle = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
        os.close(handle)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise HeldError(f"{data} is held by the keeper with pid {holder or '?'}") from error
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _detach() -> int:
    """Go on in a child with a session of its own; the parent leaves when that one serves."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        if os.read(reader, 1):
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) or 1)
    os.close(reader)
    os.setsid()
    return writer


def _redirect(data: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(data / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(log, 2)
    os.close(nothing)
    os.close(log)


def _serve(data: Path, options: argparse.Namespace, ready: int, lock: int) -> None:
    _prepare()
    identity = _identity(options.release)
    book = Book(Journal(data / JOURNAL), identity["boot_id"])
    keeper = Keeper(identity, data_key(data), book, use_groups=not options.no_cgroups)
    service = Service(listen(data), keeper.handle)
    _take_back_signals()
    service.wake_by(_wake_on_signals(keeper))
    keeper.recover()
    _announce(data / READY, identity)
    if ready >= 0:
        _redirect(data)
        # Who started us may have been a part of what the recovery ended.
        with contextlib.suppress(BrokenPipeError):
            os.write(ready, b"1")
        os.close(ready)
    try:
        keeper.run(service)
    finally:
        keeper.close()
        for name in (SOCKET, READY):
            (data / name).unlink(missing_ok=True)
        # Before the connections: who sees them close may start our successor.
        os.close(lock)
        service.close()


def _prepare() -> None:
    os.chdir("/")
    procfs.become_subreaper()
    # Off with the tag of whoever started us, or our successor would kill us as a part of that.
    procfs.wear_tag(None)


def _identity(release: str) -> Json:
    return {
        "pid": os.getpid(),
        "started": time.time(),
        "boot_id": procfs.boot_id(),
        "incarnation": os.urandom(16).hex(),
        "version": release,
    }


def _take_back_signals() -> None:
    """Shells ignore some for what they start in the background; what we start must not."""
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in _RESTORED:
            signal.signal(number, signal.SIG_DFL)


def _wake_on_signals(keeper: Keeper) -> int:
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # Handlers, not SIG_IGN: what is ignored here would be ignored by every child.
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: keeper.ask_to_end())
    return reader


def _announce(path: Path, identity: Json) -> None:
    fresh = path.with_suffix(".json.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, json.dumps(identity).encode())
    finally:
        os.close(handle)
    fresh.rename(path)
