"""Starts a device's keeper where QEMU runs all programs: `bed_keeper.py ROOT PYTHON DATA`.

QEMU's user mode knows nothing of subreapers. A process that is one stays one when it becomes
another program: so this one, which is no emulated one, is made it, and the keeper believes that.
"""

from __future__ import annotations

import os
import sys

from hatoba_worker.keeper import procfs

_BELIEVES = """
import sys
from hatoba_worker.keeper import boot, procfs
procfs.become_subreaper = lambda: None
sys.exit(boot.main(sys.argv[1:]))
"""


def main(root: str, python: str, data: str) -> None:
    """Become the keeper of `data`, with the files below `root`."""
    procfs.become_subreaper()
    os.chroot(root)
    os.chdir("/")
    os.execv(python, [python, "-c", _BELIEVES, "--data", data])


if __name__ == "__main__":
    main(*sys.argv[1:])
