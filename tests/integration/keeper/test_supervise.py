"""The keeper keeps worker and router running."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from waiting import until

from hatoba_worker.keeper.client import KeeperClient, KeeperRefused
from hatoba_worker.keeper.messages import SupervisedStatus

if TYPE_CHECKING:
    from tests.integration.keeper.conftest import House, Watcher

FOREVER = "echo $$ >> lives; exec sleep 60"


async def supervise(house: House, client: KeeperClient, script: str) -> None:
    await client.supervise(
        "worker",
        ["/bin/sh", "-c", script],
        {"PATH": os.environ["PATH"]},
        str(house.data),
        str(house.data / "worker.log"),
    )


async def status_when(
    client: KeeperClient, fits: Callable[[SupervisedStatus], bool]
) -> SupervisedStatus:
    """Ask until the supervised process is as `fits` wants it; the test's own time-out ends it."""
    while True:
        [status] = (await client.list()).supervised
        if fits(status):
            return status


async def lives(house: House, count: int) -> list[int]:
    """Wait until the process was started `count` times, and return the pids of its lives."""
    path = house.data / "lives"
    await until(lambda: path.exists() and path.read_text().count("\n") >= count)
    return [int(line) for line in path.read_text().split()]


async def test_a_killed_process_is_started_again(house: House, watcher: Watcher) -> None:
    await supervise(house, watcher.client, FOREVER)
    [first] = await lives(house, 1)

    os.kill(first, 9)

    [_, second] = await lives(house, 2)
    status = await status_when(watcher.client, lambda each: each.restarts == 1)
    assert status.pid == second
    assert status.last_end == "signal 9"
    assert (await watcher.client.list()).attempts == ()


async def test_one_that_ends_at_once_is_started_ever_more_slowly(
    house: House, watcher: Watcher
) -> None:
    await supervise(house, watcher.client, "date +%s.%N >> times; exit 1")

    await status_when(watcher.client, lambda each: each.restarts == 3)

    times = [float(line) for line in (house.data / "times").read_text().split()[:3]]
    # 50 ms, then 100 ms: never sooner.
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.1


async def test_a_program_that_does_not_exist_is_told(house: House, watcher: Watcher) -> None:
    await watcher.client.supervise("worker", ["/no/such"], {}, "/", str(house.data / "log"))

    status = await status_when(watcher.client, lambda each: each.last_end is not None)

    assert status.pid is None
    assert status.last_end == "/no/such: no such program"


async def test_what_it_left_behind_does_not_meet_its_successor(
    house: House, watcher: Watcher
) -> None:
    script = f"setsid sh -c 'trap \"\" TERM; echo $$ > child; sleep 60' & {FOREVER}"
    await supervise(house, watcher.client, script)
    [first] = await lives(house, 1)
    await until(
        lambda: (house.data / "child").exists() and bool((house.data / "child").read_text())
    )
    child = int((house.data / "child").read_text())

    os.kill(first, 9)

    await lives(house, 2)
    assert not await house.alive(child)


async def test_restart_takes_the_new_settings(house: House, watcher: Watcher) -> None:
    await supervise(house, watcher.client, FOREVER)
    [first] = await lives(house, 1)
    await supervise(house, watcher.client, f"echo new; {FOREVER}")
    assert await house.alive(first)

    await watcher.client.restart("worker")

    [_, second] = await lives(house, 2)
    assert second != first
    assert (house.data / "worker.log").read_text() == "new\n"
    with pytest.raises(KeeperRefused, match="router"):
        await watcher.client.restart("router")


async def test_unsupervise_ends_it_for_good(house: House, watcher: Watcher) -> None:
    await supervise(house, watcher.client, FOREVER)
    [first] = await lives(house, 1)

    await watcher.client.unsupervise("worker")

    while (await watcher.client.list()).supervised:
        pass
    assert not await house.alive(first)


async def test_a_new_keeper_ends_the_old_worker_and_starts_it_again(house: House) -> None:
    async with house.client() as client:
        await supervise(house, client, FOREVER)
        [first] = await lives(house, 1)

    await house.kill()
    assert await house.alive(first)
    await house.start()

    [_, second] = await lives(house, 2)
    assert not await house.alive(first)
    async with house.client() as client:
        status = await status_when(client, lambda each: each.pid is not None)
        assert status.pid == second


async def test_after_a_shutdown_it_is_not_supervised_any_more(house: House) -> None:
    async with house.watcher() as watcher:
        await supervise(house, watcher.client, FOREVER)
        [first] = await lives(house, 1)
        await watcher.client.shutdown(stop_attempts=False)
        await watcher.hung_up()
    assert not await house.alive(first)

    await house.start()

    async with house.client() as client:
        assert (await client.list()).supervised == ()


async def test_a_full_disk_below_its_log_ends_no_keeper(house: House) -> None:
    await house.kill()
    log = house.data / "keeper.log"
    log.unlink(missing_ok=True)
    log.symlink_to("/dev/full")
    await house.start()
    async with house.client() as client:
        await supervise(house, client, "echo $$ >> lives; exit 1")
        await lives(house, 3)
        assert (await client.hello()).pid == house.pid
