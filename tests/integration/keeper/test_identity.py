"""An attempt is started once, whatever is asked how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hatoba_worker.keeper.client import KeeperRefused
from hatoba_worker.keeper.messages import Spawned, SpawnFailed

if TYPE_CHECKING:
    from tests.integration.keeper.conftest import House, Watcher


async def test_a_second_spawn_starts_nothing_while_it_runs(house: House, watcher: Watcher) -> None:
    spawn = house.shell("a", "echo once; sleep 60")
    [first] = await watcher.client.spawn_many([spawn])
    await house.printed("a", "once")

    [second] = await watcher.client.spawn_many([spawn])

    assert isinstance(first, Spawned)
    assert isinstance(second, Spawned)
    assert second.pid == first.pid
    assert second.start_ticks == first.start_ticks
    assert second.status
    assert second.status.exit is None
    assert house.out("a") == "once\n"


async def test_a_second_spawn_after_the_end_tells_the_end(house: House, watcher: Watcher) -> None:
    spawn = house.shell("a", "echo once; exit 6")
    await watcher.client.spawn_many([spawn])
    await watcher.exited("a")

    [second] = await watcher.client.spawn_many([spawn])

    assert isinstance(second, Spawned)
    assert second.status
    assert second.status.exit
    assert second.status.exit.exit_code == 6
    assert house.out("a") == "once\n"


async def test_twice_in_one_request_is_once(house: House, watcher: Watcher) -> None:
    spawn = house.shell("a", "echo once")

    first, second = await watcher.client.spawn_many([spawn, spawn])

    await watcher.exited("a")
    assert isinstance(first, Spawned)
    assert isinstance(second, Spawned)
    assert first.pid == second.pid
    assert house.out("a") == "once\n"


async def test_a_failed_spawn_stays_failed(house: House, watcher: Watcher) -> None:
    missing = house.spawn("a", "/no/such/program")
    [first] = await watcher.client.spawn_many([missing])

    [second] = await watcher.client.spawn_many([house.spawn("a", "/bin/true")])

    assert isinstance(first, SpawnFailed)
    assert second == first


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_stop_refuses_the_late_spawn(house: House, watcher: Watcher, how: str) -> None:
    if how == "stop":
        state = await watcher.client.stop("late", grace=1)
    else:
        state = await watcher.client.kill("late")
    assert state == "tombstone"

    [reply] = await watcher.client.spawn_many([house.shell("late", "echo ran")])

    assert isinstance(reply, SpawnFailed)
    assert reply.kind == "tombstone"
    assert house.out("late") == ""


async def test_a_tombstone_outlives_the_keeper(house: House) -> None:
    async with house.client() as client:
        await client.stop("late", grace=1)
    await house.kill()
    await house.start()

    async with house.client() as client:
        [reply] = await client.spawn_many([house.shell("late", "echo ran")])

    assert isinstance(reply, SpawnFailed)
    assert reply.kind == "tombstone"


async def test_what_was_forgotten_is_not_started_again(house: House, watcher: Watcher) -> None:
    spawn = house.shell("a", "echo once")
    await watcher.client.spawn_many([spawn])
    await watcher.gone("a")

    await watcher.client.forget_many(["a", "never-seen"])

    assert (await watcher.client.list()).attempts == ()
    [again] = await watcher.client.spawn_many([spawn])
    assert isinstance(again, SpawnFailed)
    assert again.kind == "tombstone"
    assert house.out("a") == "once\n"


async def test_what_lives_is_not_forgotten(house: House, watcher: Watcher) -> None:
    await watcher.client.spawn_many([house.shell("a", "sleep 60"), house.shell("b", "exit 0")])
    await watcher.gone("b")

    with pytest.raises(KeeperRefused) as refused:
        await watcher.client.forget_many(["a", "b"])

    assert refused.value.code == "live"
    assert [each.attempt for each in (await watcher.client.list()).attempts] == ["a"]


async def test_the_inventory_is_complete_over_many_pages(house: House, watcher: Watcher) -> None:
    names = [f"n{number:04}" for number in range(1005)]
    missing = [house.spawn(name, "/no/such/program") for name in names]

    await watcher.client.spawn_many(missing)

    inventory = await watcher.client.list()
    assert [each.attempt for each in inventory.attempts] == names


async def test_stop_after_the_end_says_so(house: House, watcher: Watcher) -> None:
    await watcher.client.spawn_many([house.shell("a", "exit 0")])
    await watcher.gone("a")

    assert await watcher.client.stop("a", grace=1) == "ended"
    assert await watcher.client.kill("a") == "ended"
