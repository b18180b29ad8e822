"""The same witness as witness.c, for machines without a compiler. Run with `python -I -S`."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time


def note(ledger: int, event: str, attempt: str) -> None:
    """Add one line, on the disk when this returns."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    os.write(ledger, f"{event} {attempt} {now / 1e9:.9f} {os.getpid()}\n".encode())
    os.fsync(ledger)


def hide() -> None:
    """Leave a process behind that has a session of its own and ignores SIGTERM."""
    if os.fork():
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
    os._exit(0)


def main(arguments: list[str]) -> int:
    """Be an attempt of a job."""
    path, locks, milliseconds, code, *how = arguments
    attempt = os.environ["HATOBA_ATTEMPT"]
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    lock = os.open(f"{locks}/{attempt.rpartition('-')[0]}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        taken = False
    except BlockingIOError:
        taken = True
    note(ledger, "start", attempt)
    if taken:
        note(ledger, "overlap", attempt)
    if "hide" in how:
        hide()
    time.sleep(int(milliseconds) / 1000)
    note(ledger, "end", attempt)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
