"""`python -m hatoba_worker.router --data DIR`."""

from __future__ import annotations

import sys

from hatoba_worker.router.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
