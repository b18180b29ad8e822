"""`python -m hatoba_worker.router --data DIR`."""

from __future__ import annotations

import os
import sys

# aiohttp reads all authorities of the machine as it is imported, a fifth of the time that a start
# takes, for HTTPS that replicas do not speak. gRPC has its own.
os.environ["SSL_CERT_FILE"] = os.environ["SSL_CERT_DIR"] = os.devnull

from hatoba_worker.router.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
