from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from blockbuster import BlockBuster
from waiting import turns

from hatoba.v1 import worker_pb2
from hatoba_worker import gpus
from hatoba_worker.absence import Absence
from hatoba_worker.attempts import Attempt, Start
from hatoba_worker.keeper.messages import Sample
from hatoba_worker.timeouts import Timeouts
from hatoba_worker.vitals import Vitals


class Outbox:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.items: list[worker_pb2.WorkerItem] = []
        self.greeted = True

    @property
    def sent(self) -> int:
        return len(self.items)

    def send(self, item: worker_pb2.WorkerItem) -> None:
        self.items.append(item)


class Scales:
    """An executor that measures what it is told."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    async def sample(self) -> Sequence[Sample]:
        return self.samples


class Live:
    """A book with attempts in it."""

    def __init__(self, *attempts: Attempt) -> None:
        self.live = {attempt.name: attempt for attempt in attempts}


class Clock:
    """Lets time pass once for each turn a test gives."""

    def __init__(self) -> None:
        self.turns = asyncio.Semaphore(0)
        self.asked: list[float] = []
        self.waiting = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.waiting.set()
        await self.turns.acquire()

    async def turn(self) -> None:
        await self.waiting.wait()
        self.waiting.clear()
        self.turns.release()
        await self.waiting.wait()


def running(name: str, held: Sequence[str] = ()) -> Attempt:
    launch = worker_pb2.LaunchAttempt(attempt=name, gpus=held)
    attempt = Attempt(launch, "nonce", f"/nowhere/{name}", 0, granted=True)
    attempt.begun = Start(1.0, 100, "cgroup")
    return attempt


@pytest.fixture
def tiny_files(no_blocking_call_on_the_loop: BlockBuster) -> None:
    """The worker writes small files on the loop, on purpose."""
    for function in no_blocking_call_on_the_loop.functions.values():
        function.can_block_in("hatoba_worker/tinyfiles.py", {"write", "swap"})


@pytest.fixture
def absence(tmp_path: Path, tiny_files: None) -> Absence:
    del tiny_files
    return Absence(tmp_path, "boot-1")


async def test_peaks_are_kept_and_told_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, absence: Absence
) -> None:
    one, clock, outbox, scales = running("a-1", ["1"]), Clock(), Outbox(), Scales()
    monkeypatch.setattr(gpus, "use", lambda: {"0": 0.9, "1": 0.25})
    vitals = Vitals(Live(one), scales, outbox, None, absence, clock.sleep)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(vitals.beat())
        for rss in (500, 300):
            scales.samples = [Sample("a-1", rss / 100, rss, (1,)), Sample("unknown", 1, 1, (2,))]
            await clock.turn()
        beating.cancel()
    usage = outbox.items[-1].heartbeat.usage
    assert (usage.memory_peak_bytes, usage.cpu_seconds, usage.gpu_peak) == (500, 5.0, 0.25)
    assert usage.memory_limit_by == "cgroup"
    assert clock.asked == [10.0] * 3


async def test_a_host_with_nothing_to_say_says_that_it_lives(absence: Absence) -> None:
    clock, outbox = Clock(), Outbox()
    vitals = Vitals(Live(), Scales(), outbox, None, absence, clock.sleep)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(vitals.beat())
        await clock.turn()
        beating.cancel()
    assert [item.WhichOneof("item") for item in outbox.items] == ["alive"]


def without_server(name: str, seconds: float) -> Attempt:
    attempt = running(name)
    attempt.launch.stop_after.FromMicroseconds(round(seconds * 1e6))
    attempt.launch.stop_grace.FromSeconds(2)
    return attempt


async def test_who_may_not_be_without_the_server_long_beats_more_often(absence: Absence) -> None:
    clock, outbox = Clock(), Outbox()
    one = without_server("a-1", 6.0)
    absence.watch(one, lambda *_: None)
    vitals = Vitals(Live(one), Scales(), outbox, None, absence, clock.sleep)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(vitals.listen())
        await clock.turn()
        await clock.waiting.wait()
        absence.forget("a-1")
        clock.turns.release()
        await turns()
        beating.cancel()
    assert [item.WhichOneof("item") for item in outbox.items] == ["heartbeat"] * 2
    assert clock.asked == [2.0] * 2


async def test_without_the_server_for_too_long_it_is_stopped_also_by_the_next_worker(
    tmp_path: Path, tiny_files: None
) -> None:
    del tiny_files
    now = 100.0
    stopped: list[tuple[str, str, float]] = []

    def stop(attempt: Attempt, why: str, grace: float) -> None:
        stopped.append((attempt.name, why, grace))

    one = without_server("a-1", 60.0)
    first = Absence(tmp_path, "boot-1", lambda: now)
    first.watch(one, stop)
    first.heard()
    first.forget("a-1")
    now = 150.0
    second = Absence(tmp_path, "boot-1", lambda: now)
    await asyncio.to_thread(second.load)
    second.watch(one, stop)
    assert stopped == []
    second.forget("a-1")
    now = 160.0
    third = Absence(tmp_path, "boot-1", lambda: now)
    await asyncio.to_thread(third.load)
    third.watch(one, stop)
    assert stopped == [("a-1", "away", 2.0)]
    fourth = Absence(tmp_path, "boot-2", lambda: now)
    await asyncio.to_thread(fourth.load)
    fourth.watch(one, stop)
    assert len(stopped) == 1
    fourth.forget("a-1")


async def test_time_is_counted_from_the_start_in_the_kernels_table() -> None:
    one = running("a-1")
    one.launch.timeout.FromSeconds(5)
    one.launch.stop_grace.FromSeconds(2)
    stopped: list[tuple[str, str, float]] = []
    now = 6.0
    timeouts = Timeouts(lambda: now)

    def stop(attempt: Attempt, why: str, grace: float) -> None:
        stopped.append((attempt.name, why, grace))

    timeouts.watch(one, stop)
    assert stopped == []
    timeouts.forget("a-1")
    now = 6.01
    timeouts.watch(one, stop)
    assert stopped == [("a-1", "timeout", 2.0)]
