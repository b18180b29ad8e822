"""Control groups: whatever an engine starts stays in the engine's, and is found and ended there."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from bed_place import Broken, Place, Unavailable

TOP = Path("/sys/fs/cgroup")
EMPTY_WITHIN = 20.0


def name(place: Place, engine: str) -> str:
    """The group of an engine and of what it runs, from the top of each hierarchy."""
    return f"/hatoba-{place.tag}/{engine}"


def entering(group: str) -> list[str]:
    """What stands before a command that is to run in the group `group`/engine."""
    make(group.lstrip("/"))
    folder = TOP / tracked() / group.lstrip("/") / "engine"
    folder.mkdir(exist_ok=True)
    return ["sh", "-c", f'echo $$ >"{folder}/cgroup.procs" && exec "$@"', "sh"]


def make(group: str) -> None:
    """Make a group in every hierarchy; a kubelet wants its root to be there."""
    for marker in [*TOP.glob("cgroup.procs"), *TOP.glob("*/cgroup.procs")]:
        folder = marker.parent
        for part in group.split("/"):
            folder = folder / part
            folder.mkdir(exist_ok=True)
            inherit(folder)


def inherit(folder: Path) -> None:
    """A new group of the first version's cpusets has neither cores nor memory of its own."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        own = folder / name
        if own.exists() and not own.read_text().strip():
            own.write_text((folder.parent / name).read_text())


def tracked() -> str:
    """The hierarchy in which processes are looked for."""
    for hierarchy in ("pids", "systemd", "."):
        if (TOP / hierarchy / "cgroup.procs").exists():
            return hierarchy
    raise Unavailable("there are no control groups below /sys/fs/cgroup")


def members(group: str) -> Iterator[int]:
    """The processes in a group and in all below it."""
    for folder, _, _ in os.walk(TOP / tracked() / group.lstrip("/")):
        try:
            yield from map(int, Path(folder, "cgroup.procs").read_text().split())
        except FileNotFoundError:
            continue


def kill(group: str) -> None:
    """kill -9 whatever is in a group; returns when nothing is."""
    deadline = time.monotonic() + EMPTY_WITHIN
    while left := list(members(group)):
        if time.monotonic() > deadline:
            raise Broken(f"processes outlive SIGKILL: {left}")
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def sweep(place: Place) -> None:
    """Kill whatever a testbed has started and not ended, whether anybody remembers it or not."""
    top = f"hatoba-{place.tag}"
    kill(top)
    for folder in TOP.glob(f"*/{top}/*"):
        remove(f"{top}/{folder.name}")


def empty(group: str) -> None:
    """Kill whatever is left in a group, and remove it from every hierarchy."""
    kill(group)
    remove(group.lstrip("/"))


def remove(group: str) -> None:
    """Remove an empty group with those below it, and its parent when that is empty too."""
    for hierarchy in [TOP, *TOP.iterdir()]:
        for folder, _, _ in os.walk(hierarchy / group, topdown=False):
            os.rmdir(folder)
        try:
            (hierarchy / group).parent.rmdir()
        except OSError:
            continue
