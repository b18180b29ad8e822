"""`python -m hatoba_worker run --data DIR [--embedded]`."""

from __future__ import annotations

import os
import sys

# Before grpc is imported: its fork handlers could end a child between fork and exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from hatoba_worker.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
