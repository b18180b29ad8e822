"""What a testbed that is down has left on the machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import bed_network
from bed_place import Place


def traces(directory: Path) -> list[str]:
    """What is left of a testbed outside of its directory."""
    tag = Place(directory).tag
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    mounts = Path("/proc/self/mounts").read_text()
    return [
        *(name for name in bed_network.links() if tag in name),
        *(line for line in rules.splitlines() if tag in line),
        *(line for line in mounts.splitlines() if str(directory) in line),
        *(str(group) for group in Path("/sys/fs/cgroup").glob(f"*/hatoba-{tag}")),
        *commands_with(str(directory)),
    ]


def commands_with(text: str) -> list[str]:
    """The command lines of this machine's processes that have this text."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = line.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found
