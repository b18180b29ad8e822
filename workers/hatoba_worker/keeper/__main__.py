"""`python -m hatoba_worker.keeper --data DIR`: run the keeper of a data directory.

Run as a file, `python -I -S .../keeper/__main__.py`, it starts without site-packages: quicker and
smaller. With `--detach` the command returns when the keeper serves. Exit codes: 0, or 75 when
another keeper holds the directory.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):
    # Last, so that nothing beside our package can stand in for the standard library.
    sys.path.append(__file__.rsplit("/", 3)[0])

from hatoba_worker.keeper.boot import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
