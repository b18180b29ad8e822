"""kill -9 of the keeper at random moments, under load."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from hatoba_worker.keeper.client import KeeperClient, KeeperGone
from hatoba_worker.keeper.messages import Spawn

if TYPE_CHECKING:
    from tests.integration.keeper.conftest import House

# What each attempt starts leaves a line, and often a child that hides.
SCRIPTS = [
    "echo $HATOBA_ATTEMPT >> starts",
    "echo $HATOBA_ATTEMPT >> starts; sleep 0.02; exit 3",
    "echo $HATOBA_ATTEMPT >> starts; setsid setsid sh -c 'trap \"\" TERM; sleep 60' & exit 0",
    "echo $HATOBA_ATTEMPT >> starts; env -i /bin/sleep 60 & sleep 60",
]


@pytest.mark.faults
async def test_no_attempt_starts_twice_and_none_is_left(house: House, full_round: bool) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    choice = random.Random(seed)
    names = [f"n{number}" for number in range(40)]

    for _ in range(100 if full_round else 8):
        names += [f"{name}+" for name in names[-5:]]
        await ask_until_killed(house, names, choice)
        await house.start()
        async with house.client() as client:
            inventory = (await client.list()).attempts
        # Nobody runs yet: what the dead keeper left is gone, or said not to be.
        unsure = [each for each in inventory if not each.gone]
        assert all(each.lost or each.exit for each in unsure)
        assert len(await house.left()) == 0 or unsure

    starts = Counter((house.data / "starts").read_text().split())
    assert [name for name, count in starts.items() if count > 1] == []


async def ask_until_killed(house: House, names: list[str], choice: random.Random) -> None:
    """Spawn, repeatedly, in random order, until the keeper is killed in the midst of it."""
    asked = choice.sample(names, 30)
    spawns = [house.shell(name, choice.choice(SCRIPTS), linger_grace=0.01) for name in asked]
    async with house.client() as client, asyncio.TaskGroup() as group:
        group.create_task(spawn_all(client, spawns), name="spawns")
        await asyncio.sleep(choice.uniform(0, 0.04))
        await house.kill()


async def spawn_all(client: KeeperClient, spawns: list[Spawn]) -> None:
    with contextlib.suppress(KeeperGone):
        await client.spawn_many(spawns)
