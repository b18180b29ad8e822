"""`python -m hatoba_worker.entrypoint`, the console script `hatoba-entrypoint`."""

from __future__ import annotations

import sys

from hatoba_worker.entrypoint.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
