"""Machines in network namespaces: each has an address, a wire to a common switch, and no more.

Only root makes namespaces; `why_not` says what is missing.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = itertools.count()
_HIDE = 'for each in $0; do mount -t tmpfs none "$each"; done; exec "$@"'


def why_not() -> str:
    """What keeps this machine from making namespaces; empty: nothing."""
    if os.geteuid() != 0:
        return "network namespaces are for root"
    missing = [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]
    return f"{', '.join(missing)} is not installed" if missing else ""


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@dataclass(frozen=True)
class Namespace:
    """One machine: its namespace and its address."""

    name: str
    address: str

    def within(self, *hidden: Path) -> list[str]:
        """What comes before a command that runs there and sees nothing in these directories."""
        enter = ["ip", "netns", "exec", self.name]
        if not hidden:
            return enter
        directories = " ".join(str(one) for one in hidden)
        return [*enter, "unshare", "--mount", "sh", "-c", _HIDE, directories]


@dataclass(frozen=True)
class Network:
    """A switch, on which this machine has an address, and the machines at it."""

    address: str
    machines: Sequence[Namespace]


@contextmanager
def network(machines: int) -> Iterator[Network]:
    """So many machines at a switch of their own; nothing of it is left at the end; blocks."""
    mark = f"{os.getpid() % 100_000:05d}{next(_NUMBERS) % 10}"
    subnet = f"10.{200 + os.getpid() % 50}.{(os.getpid() // 50 + next(_NUMBERS)) % 250}"
    switch = f"hbs{mark}"
    with ExitStack() as stack:
        _ip("link", "add", switch, "type", "bridge")
        stack.callback(_ip, "link", "del", switch)
        _ip("addr", "add", f"{subnet}.1/24", "dev", switch)
        _ip("link", "set", switch, "up")
        made = [
            _machine(stack, switch, f"hb{mark}{number}", f"{subnet}.{number + 2}")
            for number in range(machines)
        ]
        yield Network(f"{subnet}.1", made)


def _machine(stack: ExitStack, switch: str, name: str, address: str) -> Namespace:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "del", name)
    here, there = f"{name}h", f"{name}m"
    _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
    _ip("link", "set", here, "master", switch, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    _ip("-n", name, "addr", "add", f"{address}/24", "dev", there)
    _ip("-n", name, "link", "set", there, "up")
    return Namespace(name, address)
