"""Long-lived processes by id: started with a log, recognised by their start time, ended."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import bed_groups
from bed_place import Broken, Facts, Place

LOG_TAIL = 1500
ENDS_WITHIN = 20.0


def start_time(pid: int) -> int | None:
    """When the process began, in ticks since boot; None when it does not run. Zombies do not."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


def lives(process: Facts) -> bool:
    """Whether it is still the very process that was started."""
    return bool(start_time(process["pid"]) == process["start"])


def start(
    place: Place,
    name: str,
    command: Sequence[str | Path],
    environ: Mapping[str, str] | None = None,
    engine: str = "services",
) -> Facts:
    """Start a process in a session and a control group of its own; answers how to find it again."""
    log, group = place.log(name), bed_groups.name(place, engine)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [*bed_groups.entering(group), *(str(part) for part in command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
            cwd="/",
        )
    # Not waited for here: it outlives this program.
    process.returncode = 0
    return {"name": name, "pid": process.pid, "start": start_time(process.pid), "log": str(log)}


def until(ready: Callable[[], bool], processes: Sequence[Facts], within: float, what: str) -> None:
    """Wait until `ready`; Broken when one of the processes ends before, or time is up."""
    deadline = time.monotonic() + within
    while not ready():
        dead = [one for one in processes if not lives(one)]
        if dead or time.monotonic() > deadline:
            ended = f"{dead[0]['name']} ended" if dead else f"not within {within:.0f} s"
            raise Broken(f"{what}: {ended}\n" + "\n".join(tail(one) for one in processes))
        time.sleep(0.05)


def tail(process: Facts) -> str:
    """The end of a process's log."""
    text = Path(process["log"]).read_text(errors="replace")
    return f"--- {process['log']}\n{text[-LOG_TAIL:]}"


def end(process: Facts, within: float = ENDS_WITHIN) -> None:
    """SIGTERM, and SIGKILL when that takes too long; returns when it is gone."""
    for number, patience in ((signal.SIGTERM, within), (signal.SIGKILL, ENDS_WITHIN)):
        try:
            handle = os.pidfd_open(process["pid"])
        except ProcessLookupError:
            return
        try:
            if not lives(process):
                return
            signal.pidfd_send_signal(handle, number)
            if select.select([handle], [], [], patience)[0]:
                return
        except ProcessLookupError:
            return
        finally:
            os.close(handle)
    raise Broken(f"{process['name']} (process {process['pid']}) outlives SIGKILL")


def free_port(address: str) -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def listens(address: str, port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0


def run(*command: str | Path, check: bool = True, input: bytes | None = None) -> str:
    """Run a program to its end and answer what it printed; Broken with its words otherwise."""
    done = subprocess.run([str(part) for part in command], input=input, capture_output=True)
    if check and done.returncode:
        words = done.stderr.decode(errors="replace").strip()[-LOG_TAIL:]
        raise Broken(f"{' '.join(map(str, command))}: exit status {done.returncode}: {words}")
    return done.stdout.decode(errors="replace")
