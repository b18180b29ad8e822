"""What members of these tests do: they meet each other by the names they are given, and tell.

A desk at a known address hears who they are and whom they met, and says with which code to end.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import IO

from hatoba.job_context import GangPlace, current_job

PATIENCE = 120.0
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "HATOBA_ATTEMPT")


def main() -> int:
    """Tell, meet, tell, and end as the desk says."""
    job = current_job()
    assert job.gang is not None
    print(f"rank {job.gang.rank} of generation {job.gang.generation}", flush=True)
    host, port = job.params["desk"].rsplit(":", 1)
    with socket.create_connection((host, int(port))) as line, line.makefile("rw") as desk:
        tell(desk, introduction(job.gang, job.index, job.attempt))
        listen(job.gang)
        began = time.monotonic()
        met = [visit(job.gang, address) for address in job.gang.addresses]
        tell(desk, {"met": met, "seconds": time.monotonic() - began})
        return int(desk.readline())


def introduction(gang: GangPlace, index: int, number: int) -> dict[str, object]:
    """Who this is, by the context and by variables."""
    return {
        "rank": gang.rank,
        "size": gang.size,
        "generation": gang.generation,
        "addresses": gang.addresses,
        "index": index,
        "number": number,
        "variables": {name: os.environ[name] for name in VARIABLES},
    }


def tell(desk: IO[str], what: dict[str, object]) -> None:
    """One line for the desk."""
    desk.write(json.dumps(what) + "\n")
    desk.flush()


def listen(gang: GangPlace) -> None:
    """Answer whoever says its rank at our port, for as long as this process lives."""
    port = int(gang.addresses[gang.rank].rpartition(":")[2])
    server = socket.create_server(("", port))
    threading.Thread(target=serve, args=(server, gang), daemon=True).start()


def serve(server: socket.socket, gang: GangPlace) -> None:
    """Say back to each who asks who it is, and who we are."""
    while True:
        visitor, _ = server.accept()
        with visitor, visitor.makefile("rw") as talk:
            tell(talk, {"you": json.loads(talk.readline())["rank"], "me": gang.rank})


def visit(gang: GangPlace, address: str) -> int:
    """The rank of who answers there, and has heard ours. Others begin when they can."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with (
                socket.create_connection((host, int(port)), 5.0) as way,
                way.makefile("rw") as talk,
            ):
                tell(talk, {"rank": gang.rank})
                answer = json.loads(talk.readline())
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            print(f"{address}: {error}", file=sys.stderr, flush=True)
            time.sleep(0.1)
            continue
        assert answer["you"] == gang.rank
        return int(answer["me"])


if __name__ == "__main__":
    sys.exit(main())
