"""A store that is put back while jobs run.

From a copy as new as the store itself nothing that was acknowledged is missing, but what happens
until it is adopted is.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import grpc
import grpc.aio
from fault_load import REDIAL
from server_process import HatobaServer
from wire import AWAY, Wire

from hatoba.v1 import admin_pb2
from hatoba_scheduler.store.sqlite.backup import restore
from hatoba_scheduler.store.sqlite.database import FILE

ADOPT_SECONDS = 40.0


def copy_store(data: Path) -> Path:
    """A copy of a store as it is now, its server alive or dead; blocks."""
    copy = data / "copy.db"
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(f"file:{data / FILE}?mode=ro", uri=True)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    return copy


def put_back(copy: Path, data: Path) -> dict[str, float]:
    """Restore the store of a server that is dead; blocks.

    Returns up to when it knows the runs of each schedule, in seconds since 1970.
    """
    with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as connection:
        positions = connection.execute("SELECT name, position FROM schedules").fetchall()
    restore(copy, data, round(time.time() * 1e6), replace=True)
    return {name: position / 1e6 for name, position in positions}


async def adopt(server: HatobaServer) -> None:
    """Adopt what runs, however often the server dies meanwhile."""
    async with Wire(server) as wire:
        while True:
            request = admin_pb2.AdoptStoreRequest()
            try:
                await wire.once(request, admin_pb2.AdoptStoreResponse, timeout=ADOPT_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    if "nothing to adopt" in (error.details() or ""):
                        return
                elif error.code() not in (*AWAY, grpc.StatusCode.UNAUTHENTICATED):
                    raise
                await asyncio.sleep(REDIAL)
            else:
                return
