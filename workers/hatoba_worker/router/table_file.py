"""The last table on disk: what a router goes by that starts while the server is away.

All of it blocks.
"""

from __future__ import annotations

from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from hatoba.v1 import deployment_pb2
from hatoba_worker.router.table import Table

log = structlog.get_logger(__name__)

FILE = "router.table"


def load(table: Table, path: Path) -> bool:
    """Go by the table that was kept last; False when there is none that can be read; blocks."""
    try:
        table.apply(deployment_pb2.WatchDeploymentsResponse.FromString(path.read_bytes()))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, DecodeError) as error:
        log.warning("table.unreadable", path=str(path), error=str(error))
        return False
    return True


def keep(path: Path, message: deployment_pb2.WatchDeploymentsResponse) -> None:
    """Replace the table on disk; a disk that is full leaves the old one."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_bytes(message.SerializeToString())
        fresh.chmod(0o600)
        fresh.replace(path)
    except OSError as error:
        log.warning("table.not_kept", path=str(path), error=str(error))
