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


def taken(path: str, how: int) -> int:
    """Take a lock, to be held to our end; -1 when somebody else has it so that it excludes ours."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return -1
    return lock


def earlier(locks: str, gang: str) -> bool:
    """Whether a member of an earlier generation of this gang is still there."""
    names = ("HATOBA_GANG_GENERATION", "HATOBA_GANG_SIZE", "HATOBA_GANG_RANK")
    generation, size, mine = (int(os.environ.get(name, "0")) for name in names)
    found = False
    for number in range(1, generation):
        for rank in range(size):
            lock = taken(f"{locks}/{gang}-{rank}.{number}", fcntl.LOCK_SH)
            found = found or lock < 0
            if lock >= 0:
                os.close(lock)
    if generation:
        taken(f"{locks}/{gang}-{mine}.{generation}", fcntl.LOCK_EX)
    return found


def main(arguments: list[str]) -> int:
    """Be an attempt of a job."""
    path, locks, milliseconds, code, *how = arguments
    attempt = os.environ["HATOBA_ATTEMPT"]
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    # hEPOCH-JOB-INDEX-NUMBER: what is restored goes on in another epoch.
    _, job, index, _ = attempt.split("-")
    overlap = taken(f"{locks}/{job}-{index}", fcntl.LOCK_EX) < 0
    overlap = earlier(locks, job) or overlap
    note(ledger, "start", attempt)
    if overlap:
        note(ledger, "overlap", attempt)
    if "hide" in how:
        hide()
    time.sleep(int(milliseconds) / 1000)
    note(ledger, "end", attempt)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
