"""Dates on a machine without a clock, and bytes over a link that costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from waiting import turns

from hatoba_plugins.clock import FakeClock
from hatoba_worker.agent.budget import DAY, Budget
from hatoba_worker.agent.clock import DOUBT, FUTURE, FloorClock

BUILT = 1_795_000_000.0
YEAR = 365 * 86_400.0


class Machine:
    """A clock that says what a test says, and one that only goes on."""

    def __init__(self, path: Path, date: float) -> None:
        self.date, self.gone = date, 100.0
        self.path = path
        self.clock = self.booted(date)

    def booted(self, date: float) -> FloorClock:
        self.date = date
        self.clock = FloorClock(self.path, BUILT, lambda: self.date, lambda: self.gone)
        self.clock.load()
        return self.clock

    def wait(self, seconds: float) -> None:
        self.date += seconds
        self.gone += seconds


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "date", BUILT + YEAR / 2)


@pytest.mark.parametrize("date", [0.0, BUILT - 3 * 86_400, BUILT + 10 * YEAR, 2**31 - 1.0])
def test_a_clock_that_cannot_be_right_is_not_believed(machine: Machine, date: float) -> None:
    clock = machine.booted(date)
    assert clock.now() == BUILT
    machine.wait(50.0)
    assert clock.now() == BUILT + 50.0
    assert not clock.certain


def test_a_clock_that_may_be_right_is_believed(machine: Machine) -> None:
    assert machine.clock.now() == BUILT + YEAR / 2
    assert machine.booted(BUILT + FUTURE).now() == BUILT + FUTURE


def test_what_it_is_not_earlier_than_is_no_matter_of_the_machines_clock(machine: Machine) -> None:
    machine.wait(10.0)
    assert machine.clock.least == BUILT + 10.0
    machine.clock.learn(machine.date + 60.0)
    machine.wait(5.0)
    assert machine.clock.least == machine.clock.now() == machine.date + 60.0


def test_a_server_far_ahead_of_a_clock_that_may_be_right_is_not_for_sure(machine: Machine) -> None:
    right = machine.date
    assert not machine.clock.learn(right + YEAR)
    assert machine.clock.now() == right + YEAR, "it is what we go by"
    assert (machine.clock.least, machine.clock.certain) == (BUILT, False)
    assert machine.clock.learn(right), "it is mended"
    assert (machine.clock.least, machine.clock.certain) == (right, True)
    assert machine.clock.now() == right


def test_what_a_server_goes_on_saying_is_for_sure(machine: Machine) -> None:
    """A machine that wakes up with the date at which it went to sleep, as many do."""
    asleep = 60 * 86_400.0
    assert not machine.clock.learn(machine.date + asleep)
    machine.wait(DOUBT - 1)
    assert not machine.clock.learn(machine.date + asleep)
    machine.wait(2)
    for _ in range(2):
        assert machine.clock.learn(machine.date + asleep)
        assert machine.clock.certain
        assert machine.clock.least == machine.date + asleep


def test_the_servers_word_counts_whatever_the_machine_says(machine: Machine) -> None:
    clock = machine.booted(0.0)
    assert clock.learn(BUILT + YEAR)
    assert clock.certain
    machine.wait(10.0)
    assert clock.now() == BUILT + YEAR + 10.0
    clock.learn(BUILT + YEAR - 5 * 86_400)
    assert clock.now() >= BUILT + YEAR


def test_what_a_server_said_is_known_after_the_next_boot(machine: Machine) -> None:
    machine.booted(0.0)
    machine.clock.learn(BUILT + YEAR)
    machine.clock.keep()
    assert machine.booted(0.0).now() == BUILT + YEAR
    machine.path.write_text("nonsense")
    assert machine.booted(0.0).now() == BUILT


def test_it_is_put_on_the_disk_now_and_then(machine: Machine) -> None:
    machine.booted(0.0)
    assert machine.clock.learn(BUILT + YEAR)
    machine.clock.keep()
    assert not machine.clock.learn(BUILT + YEAR + 60)
    assert machine.clock.learn(BUILT + YEAR + 7_200)


# -- budgets --------------------------------------------------------------------------------------


def budget(path: Path, limit: int, clock: FakeClock) -> Budget:
    made = Budget(path, limit, clock.monotonic, clock.sleep)
    made.load()
    return made


async def paid(one: Budget, size: int, clock: FakeClock) -> float:
    """Seconds until so many bytes may go."""
    began = clock.monotonic()
    async with asyncio.TaskGroup() as tasks:
        paying = tasks.create_task(one.pay(size))
        while not paying.done():
            await asyncio.sleep(0)
            if not paying.done() and one.waiting:
                await clock.advance(600.0)
            else:
                await asyncio.sleep(0.001)
    return clock.monotonic() - began


async def test_what_is_left_goes_at_once_and_the_rest_in_the_next_period(tmp_path: Path) -> None:
    clock = FakeClock()
    one = await asyncio.to_thread(budget, tmp_path / "down", 1_000, clock)
    assert await paid(one, 600, clock) == 0
    assert one.left == 400
    assert DAY <= await paid(one, 600, clock) <= DAY + 600
    assert one.left == 400


async def test_what_is_larger_than_a_period_goes_at_the_beginning_of_one(tmp_path: Path) -> None:
    clock = FakeClock()
    one = await asyncio.to_thread(budget, tmp_path / "down", 1_000, clock)
    assert await paid(one, 5_000, clock) == 0
    assert one.left == 0
    assert await paid(one, 1, clock) >= DAY


async def test_who_can_wait_asks_whether_it_may_go_now(tmp_path: Path) -> None:
    clock = FakeClock()
    one = await asyncio.to_thread(budget, tmp_path / "up", 1_000, clock)
    assert one.affords(5_000)
    await one.pay(900)
    assert one.affords(100)
    assert not one.affords(101)
    await clock.advance(DAY)
    assert one.affords(101)
    free = await asyncio.to_thread(budget, tmp_path / "free", 0, clock)
    assert free.affords(10**12)


async def test_what_is_allowed_may_change_while_somebody_waits(tmp_path: Path) -> None:
    clock = FakeClock()
    one = await asyncio.to_thread(budget, tmp_path / "down", 1_000, clock)
    await one.pay(900)
    async with asyncio.TaskGroup() as tasks:
        paying = tasks.create_task(one.pay(500))
        await turns()
        assert one.waiting
        one.allow(2_000)
        await turns()
        assert paying.done()
    assert one.left == 600


async def test_while_it_is_held_nothing_goes_whatever_is_left(tmp_path: Path) -> None:
    clock = FakeClock()
    one = await asyncio.to_thread(budget, tmp_path / "down", 0, clock)
    one.allow(0, held=True)
    assert not one.affords(1)
    async with asyncio.TaskGroup() as tasks:
        paying = tasks.create_task(one.pay(1))
        await clock.advance(3 * DAY)
        assert not paying.done()
        one.allow(0)
        await turns()
        assert paying.done()


async def test_a_restart_opens_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    one = await asyncio.to_thread(budget, tmp_path / "down", 1_000, clock)
    await one.pay(900)
    await clock.advance(3_600.0)
    await asyncio.to_thread(one.save)
    again = await asyncio.to_thread(budget, tmp_path / "down", 1_000, clock)
    assert again.left == 100
    assert DAY - 3_600 <= await paid(again, 200, clock) <= DAY - 3_000


async def test_without_a_limit_nothing_is_counted(tmp_path: Path) -> None:
    clock = FakeClock()
    one = await asyncio.to_thread(budget, tmp_path / "down", 0, clock)
    await one.pay(10**12)
    assert one.left is None


@pytest.mark.parametrize("text", ["", "{}", '{"used": -5, "seconds": 1}', '{"used": "x"}'])
def test_what_is_damaged_begins_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "down").write_text(text)
    assert budget(tmp_path / "down", 1_000, FakeClock()).left == 1_000
