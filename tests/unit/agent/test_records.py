"""Logs and happenings: kept on the disk, sent in order, dropped once the server has them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from hatoba.v1 import device_pb2
from hatoba_worker.agent import records as records_module
from hatoba_worker.agent.disk import write_all
from hatoba_worker.agent.records import Records, heard_log
from hatoba_worker.agent.ring import Ring

NOW = 1_795_000_000.25
DEPLOYMENT = "projects/default/deployments/adder"


async def opened(path: Path, limit: int = 1 << 20) -> Records:
    made = Records(Ring(path / "ring", limit, 4_096), lambda: NOW, asyncio.Event())
    await made.open()
    return made


def texts(batch: device_pb2.DeviceRecords | None) -> list[str]:
    assert batch is not None
    return [one.log.text for one in batch.records]


async def test_what_is_said_comes_out_in_order_with_its_position(tmp_path: Path) -> None:
    made = await opened(tmp_path)
    await made.take_up(0)
    made.log("", "the agent")
    made.log(DEPLOYMENT, "a model")
    made.happened("good", "It stayed healthy.")
    assert await made.next(0) is None
    await made.flush()
    batch = await made.next(0)
    assert batch is not None
    assert batch.first == 1
    one, two, three = batch.records
    assert (one.log.deployment, one.log.text) == ("", "the agent")
    assert (two.log.deployment, two.log.text) == (DEPLOYMENT, "a model")
    assert (three.happening.kind, three.happening.message) == ("good", "It stayed healthy.")
    assert one.time.ToMicroseconds() == NOW * 1e6
    assert await made.next(3) is None
    made.figure("free_disk_bytes", 5e9)
    await made.flush()
    batch = await made.next(3)
    assert batch is not None
    assert (batch.records[0].figure.name, batch.records[0].figure.value) == ("free_disk_bytes", 5e9)


async def test_who_sends_is_woken_once_it_is_on_the_disk(tmp_path: Path) -> None:
    wake = asyncio.Event()
    made = Records(Ring(tmp_path / "ring"), lambda: NOW, wake)
    await made.open()
    await made.flush()
    assert not wake.is_set()
    made.log("", "something")
    await made.flush()
    assert wake.is_set()


async def test_positions_go_on_over_a_restart(tmp_path: Path) -> None:
    made = await opened(tmp_path)
    made.log("", "before")
    await made.flush()
    made = await opened(tmp_path)
    made.log("", "after")
    await made.flush()
    await made.take_up(0)
    assert texts(await made.next(0)) == ["before", "after"]


async def test_what_the_server_has_goes(tmp_path: Path) -> None:
    made = await opened(tmp_path)
    await made.take_up(0)
    for number in range(5):
        made.log("", str(number))
    await made.flush()
    await made.stored(5)
    assert made.durable == 5
    made = await opened(tmp_path)
    made.log("", "new")
    await made.flush()
    await made.take_up(5)
    batch = await made.next(5)
    assert batch is not None
    assert (batch.first, texts(batch)) == (6, ["new"])


async def test_a_ring_that_was_lost_begins_above_what_the_server_has(tmp_path: Path) -> None:
    made = await opened(tmp_path)
    made.log("", "said before the server was heard")
    await made.flush()
    await made.take_up(1_000)
    made.log("", "new")
    await made.flush()
    batch = await made.next(1_000)
    assert batch is not None
    assert (batch.first, texts(batch)) == (1_001, ["new"])


async def test_a_gap_ends_a_batch(tmp_path: Path) -> None:
    made = await opened(tmp_path)
    for number in range(120):
        made.log("", f"{number} {'x' * 100}")
        await made.flush()
    middle = sorted((tmp_path / "ring").glob("*.ring"))[1]
    await asyncio.to_thread(middle.write_bytes, b"\0" * middle.stat().st_size)
    made = await opened(tmp_path)
    await made.take_up(0)
    before = await made.next(0)
    assert before is not None
    last = before.first + len(before.records) - 1
    after = await made.next(last)
    assert after is not None
    assert after.first > last + 1
    assert texts(after)[0].startswith(f"{after.first - 1} ")


async def test_a_batch_is_bounded_in_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "BATCH", 3)
    made = await opened(tmp_path)
    await made.take_up(0)
    for number in range(5):
        made.log("", str(number))
    await made.flush()
    assert texts(await made.next(0)) == ["0", "1", "2"]
    assert texts(await made.next(3)) == ["3", "4"]


async def test_texts_are_bounded_and_can_be_sent(tmp_path: Path) -> None:
    made = await opened(tmp_path)
    await made.take_up(0)
    made.log("", "x" * 10_000)
    made.log("", "no \udcff text")
    made.happened("bad", "y" * 2_000)
    await made.flush()
    batch = await made.next(0)
    assert batch is not None
    assert [len(text) for text in texts(batch)] == [8_192, 9, 0]
    assert texts(batch)[0].endswith("x…")
    assert texts(batch)[1] == "no ? text"
    assert len(batch.records[2].happening.message) == 1_024


class FullDisk:
    """Has no room while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = True
        monkeypatch.setattr("hatoba_worker.agent.ring.write_all", self.write)

    def write(self, handle: int, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_all(handle, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    return FullDisk(monkeypatch)


async def test_on_a_full_disk_it_waits_and_comes_in_order(tmp_path: Path, disk: FullDisk) -> None:
    made = await opened(tmp_path)
    await made.take_up(0)
    made.log("", "1")
    await made.flush()
    made.log("", "2")
    await made.flush()
    assert await made.next(0) is None
    disk.full = False
    await made.flush()
    await made.flush()
    assert texts(await made.next(0)) == ["1", "2"]


async def test_what_waits_is_bounded_and_the_newest_is_kept(
    tmp_path: Path, disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "MOST_WAITING", 10)
    made = await opened(tmp_path)
    await made.take_up(0)
    made.log("", "first")
    await made.flush()
    for number in range(50):
        made.log("", str(number))
    disk.full = False
    await made.flush()
    await made.flush()
    assert texts(await made.next(0)) == ["first", *map(str, range(40, 50))]


async def test_a_ring_that_cannot_be_read_is_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Records(Ring(tmp_path / "ring"), lambda: NOW, asyncio.Event())
    with monkeypatch.context() as broken:

        def fail(_: Ring) -> None:
            raise OSError(errno.EIO, "Input/output error")

        broken.setattr(Ring, "open", fail)
        await made.open()
        made.log("", "kept in memory")
        await made.flush()
        await made.take_up(0)
        assert await made.next(0) is None
    await made.flush()
    await made.take_up(0)
    assert texts(await made.next(0)) == ["kept in memory"]


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What a logger writes that renders an event to its name."""
    lines: list[str] = []

    class Logger:
        def msg(self, line: str) -> None:
            lines.append(line)

        debug = info = warning = msg

    before = structlog.get_config()
    structlog.configure(
        processors=[lambda _logger, _method, event: event["event"]],
        logger_factory=lambda *_: Logger(),
        wrapper_class=structlog.BoundLogger,
    )
    yield lines
    structlog.configure(**before)


async def test_the_agents_own_log_is_told_too(tmp_path: Path, logged: list[str]) -> None:
    made = await opened(tmp_path)
    await made.take_up(0)
    out = structlog.get_logger("test")
    with heard_log(made):
        out.info("agent.runs")
        out.debug("agent.details")
        out.warning("agent.odd")
    out.info("agent.ended")
    assert logged == ["agent.runs", "agent.details", "agent.odd", "agent.ended"]
    await made.flush()
    assert texts(await made.next(0)) == ["agent.runs", "agent.odd"]
