"""What the testbed takes from Debian."""

from __future__ import annotations

import subprocess

from bed_place import ROOT, Unavailable


def install(*packages: str) -> None:
    """Have these packages of Debian's; Unavailable where that cannot be."""
    done = subprocess.run(
        [ROOT / "tools" / "build" / "apt.sh", *packages], capture_output=True, text=True
    )
    if done.returncode:
        raise Unavailable(done.stderr.strip().rpartition("\n")[2])
