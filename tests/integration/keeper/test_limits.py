"""A memory limit holds, and says what it was that ended the attempt."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hatoba_worker.keeper import cgroups
from hatoba_worker.keeper.messages import Limits, Spawned

if TYPE_CHECKING:
    from tests.integration.keeper.conftest import House, Watcher

MIB = 1 << 20
EATER = """
import os, sys
block, hold = 4 << 20, []
for _ in range(int(sys.argv[1])):
    hold.append(b"x" * block)
print("ate it", flush=True)
"""
# Each stays under the limit; together they are over it.
TWO_EATERS = """
import os, sys, time
os.fork()
hold = b"x" * (int(sys.argv[1]) << 20)
print("ate it", flush=True)
time.sleep(60)
"""
SHARED = """
import os, sys, time
hold = b"x" * (int(sys.argv[1]) << 20)
for _ in range(3):
    if os.fork() == 0:
        time.sleep(60)
print("shared", flush=True)
time.sleep(60)
"""


MOUNTS = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]


def is_there(group: str) -> bool:
    return any(os.path.exists(place + group) for place in MOUNTS)


def groups_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def can_group() -> bool:
    groups = cgroups.find("probe")
    if groups is None:
        return False
    groups.leave()
    groups.close()
    return True


@pytest.mark.skipif(not can_group(), reason="no memory control group may be made here")
class TestByControlGroup:
    async def test_over_the_limit_is_oom(self, house: House, watcher: Watcher) -> None:
        limits = Limits(memory_bytes=64 * MIB)
        spawn = house.spawn("a", sys.executable, "-c", EATER, "64", limits=limits)

        [reply] = await watcher.client.spawn_many([spawn])

        assert isinstance(reply, Spawned)
        assert reply.limit_by == "cgroup"
        end = await watcher.exited("a")
        assert (end.exit.reason, end.exit.oom, end.exit.signal) == ("oom", True, 9)
        assert "ate it" not in house.out("a")

    async def test_within_the_limit_is_not(self, house: House, watcher: Watcher) -> None:
        limits = Limits(memory_bytes=128 * MIB)
        spawn = house.spawn("a", sys.executable, "-c", EATER, "4", limits=limits)

        await watcher.client.spawn_many([spawn])

        end = await watcher.exited("a")
        assert (end.exit.reason, end.exit.oom, end.exit.exit_code) == ("exited", False, 0)

    async def test_groups_are_removed_with_their_attempts(
        self, house: House, watcher: Watcher
    ) -> None:
        limits = Limits(memory_bytes=64 * MIB)
        script = "grep memory /proc/self/cgroup"
        spawn = house.spawn("a", "/bin/sh", "-c", script, limits=limits)

        await watcher.client.spawn_many([spawn])
        await watcher.gone("a")

        group = house.out("a").strip().split(":")[2]
        assert "hatoba-" in group
        assert not is_there(group)

    async def test_the_keeper_itself_stays_outside(self, house: House, watcher: Watcher) -> None:
        before = groups_of(house.pid)
        limits = Limits(memory_bytes=64 * MIB)

        await watcher.client.spawn_many([house.spawn("a", "/bin/true", limits=limits)])
        await watcher.gone("a")

        assert groups_of(house.pid) == before


@pytest.fixture
async def ungrouped(house: House) -> AsyncIterator[Watcher]:
    """A client of a keeper that may not make control groups."""
    await house.close()
    await house.start("--no-cgroups")
    async with house.watcher() as one:
        yield one


async def test_the_watch_kills_what_is_over_the_limit_together(
    house: House, ungrouped: Watcher
) -> None:
    limits = Limits(memory_bytes=64 * MIB)
    spawn = house.spawn("a", sys.executable, "-c", TWO_EATERS, "45", limits=limits)

    [reply] = await ungrouped.client.spawn_many([spawn])

    assert isinstance(reply, Spawned)
    assert reply.limit_by == "rlimit"
    end = await ungrouped.exited("a")
    assert (end.exit.reason, end.exit.oom, end.exit.signal) == ("oom", True, 9)
    await ungrouped.gone("a")


async def test_a_single_process_over_its_limit_is_oom(house: House, ungrouped: Watcher) -> None:
    limits = Limits(memory_bytes=128 * MIB)
    spawn = house.spawn("a", sys.executable, "-c", EATER, "400", limits=limits)

    await ungrouped.client.spawn_many([spawn])

    end = await ungrouped.exited("a")
    assert (end.exit.reason, end.exit.oom) == ("oom", True)
    assert "ate it" not in house.out("a")


async def test_pages_shared_by_forks_count_once(house: House, ungrouped: Watcher) -> None:
    limits = Limits(memory_bytes=96 * MIB)
    spawn = house.spawn("a", sys.executable, "-c", SHARED, "40", limits=limits)
    await ungrouped.client.spawn_many([spawn])
    await house.printed("a", "shared")

    # Three looks of the watch: each sees 4 x 50 MiB resident, and no more than 60 in truth.
    [before] = await ungrouped.client.sample(["a"])
    assert before.rss_bytes > 96 * MIB
    await ungrouped.client.spawn_many([house.shell("later", "sleep 0.3")])
    await ungrouped.exited("later")

    [after] = await ungrouped.client.sample(["a"])
    assert len(after.pids) == 4


async def test_the_limit_is_in_force_before_the_first_instruction(
    house: House, ungrouped: Watcher
) -> None:
    script = "ulimit -Sd; while [ ! -e go ]; do sleep 0.01; done; ulimit -Hd"
    limits = Limits(memory_bytes=100 * MIB)
    spawn = house.spawn("a", "/bin/sh", "-c", script, limits=limits)

    await ungrouped.client.spawn_many([spawn])
    (house.data / "go").write_text("")

    await ungrouped.exited("a")
    [soft, hard] = house.out("a").split()
    assert int(soft) == int(hard) == 100 * 1024 * 5 // 4
