"""`python -m hatoba_worker.serving serve|check|batch`."""

from __future__ import annotations

import sys

from hatoba_worker.serving.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
