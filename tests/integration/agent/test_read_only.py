"""A machine of which nothing but the agent's own directory can be written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from agent_house import PATIENCE, AgentHouse

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
# Every mount but the kernel's own, /tmp as well; then it is looked whether that is so.
_READ_ONLY = """
data=$1 probe=$2
shift 2
mount --make-rprivate / && mount --bind "$data" "$data" || exit 1
while read -r _ _ _ _ where _; do
    case $where in
        "$data"|/proc|/proc/*|/sys|/sys/*|/dev|/dev/*) ;;
        *) mount -o remount,bind,ro "$where" || exit 1 ;;
    esac
done < /proc/self/mountinfo
! touch "$probe" 2>/dev/null && ! touch /tmp/probe 2>/dev/null && touch "$data/probe" || exit 1
exec "$@"
"""


def read_only(house: AgentHouse) -> tuple[str, ...]:
    """What runs a command where its data directory alone can be written."""
    probe = house.data.with_name("probe")
    return ("unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", str(house.data), str(probe))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AgentHouse]:
    """A device with a read-only root that is enrolled, and its agent on."""
    place = await asyncio.to_thread(AgentHouse, tmp_path)
    place.entering = read_only(place)
    try:
        await place.site.start()
        await place.enroll()
        await place.start()
        yield place
    finally:
        await place.close()
    assert await asyncio.to_thread(place.marked) == []


async def test_a_model_comes_is_served_and_comes_back_after_the_power_was_cut(
    house: AgentHouse,
) -> None:
    await house.site.news.until(lambda: house.site.hellos, PATIENCE)
    generation = house.site.want(await asyncio.to_thread(house.spec, 1, 5))
    report = await house.settled(generation)
    assert report.slots[0].running == 1, report
    assert (await house.answers(2))["y"] == 7
    await house.site.stop()
    await house.power_cut()
    await house.start()
    assert (await house.answers(2))["y"] == 7
