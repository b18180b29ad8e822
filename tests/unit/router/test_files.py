"""The router's files: its port, its log, its last table."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from pathlib import Path

from hatoba.router_port import free_port, kept_address, router_address
from hatoba.v1 import deployment_pb2
from hatoba_worker.router import access_log
from hatoba_worker.router.access_log import AccessLog
from hatoba_worker.router.table import Table
from hatoba_worker.router.table_file import keep, load
from hatoba_worker.router.visits import Trace, Visit


def test_the_port_is_chosen_once(tmp_path: Path) -> None:
    assert kept_address(tmp_path) == ""
    address = router_address(tmp_path)
    assert address.startswith("127.0.0.1:")
    assert router_address(tmp_path) == kept_address(tmp_path) == address
    assert [path.name for path in tmp_path.iterdir()] == ["router.json"]


def test_a_file_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    for text in ("", "{}", '{"host": "127.0.0.1", "port": 0}', '{"host": "x", "port": "y"}', "[1]"):
        (tmp_path / "router.json").write_text(text)
        address = router_address(tmp_path)
        assert json.loads((tmp_path / "router.json").read_text())["port"] == int(
            address.rpartition(":")[2]
        )


def test_a_port_that_somebody_has_is_not_chosen() -> None:
    first = free_port(random.Random(4))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        assert free_port(random.Random(4)) != first
    assert free_port(random.Random(4)) == first


def _visit() -> Visit:
    trace = Trace("ab" * 16, "cd" * 8, "ef" * 8, "", False)
    return Visit("POST", "/reader/predict", trace, began=0, ended=1_500_000, status=404)


class Over(Exception):
    """The log has written enough."""


async def _write(path: Path, lines: int) -> None:
    """Write so many lines, one at a time."""
    left = lines

    async def sleep(_seconds: float) -> None:
        nonlocal left
        if not left:
            raise Over
        left -= 1
        log(_visit())

    log = AccessLog(path, sleep, file_bytes=10)
    with contextlib.suppress(Over):
        await log.run()


def test_the_access_log_turns_over_and_keeps_four(tmp_path: Path) -> None:
    path = tmp_path / "router-access.log"
    asyncio.run(_write(path, 8))
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "router-access.log",
        "router-access.log.1",
        "router-access.log.2",
        "router-access.log.3",
    ]
    line = json.loads(path.read_text())
    assert (line["time"], line["ms"]) == ("1970-01-01T00:00:00.000+00:00", 1.5)


async def test_lines_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "none" / "router-access.log")
    for _ in range(access_log.MOST_LINES + 3):
        log(_visit())
    assert log.dropped == 3


def test_a_table_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "router.table"
    table = Table()
    assert not load(table, path)
    path.write_bytes(b"\xff\xff\xff")
    assert not load(table, path)
    keep(path, deployment_pb2.WatchDeploymentsResponse(cursor=7, complete=True))
    assert load(table, path)
    assert table.cursor == 7
    assert path.stat().st_mode & 0o777 == 0o600
