"""The agent as it is shipped: a server says what it runs, and it runs without one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from agent_house import DEPLOYMENT, PATIENCE, AgentHouse
from waiting import until

from hatoba.v1 import device_pb2, worker_pb2

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[AgentHouse]:
    """A device that is enrolled, and its agent on."""
    place = await asyncio.to_thread(AgentHouse, tmp_path)
    try:
        await place.site.start()
        await place.enroll()
        await place.start()
        yield place
    finally:
        await place.close()
    assert await asyncio.to_thread(place.marked) == []


async def made(house: AgentHouse, revision: int, bias: int, **env: str) -> worker_pb2.ReplicaSpec:
    return await asyncio.to_thread(lambda: house.spec(revision, bias, **env))


async def running(house: AgentHouse) -> int:
    """Have the first revision running, good; the process that answers."""
    await house.site.news.until(lambda: house.site.hellos, PATIENCE)
    generation = house.site.want(await made(house, 1, 5))
    report = await house.settled(generation)
    (slot,) = report.slots
    assert (slot.deployment, slot.running) == (DEPLOYMENT, 1)
    assert slot.phase == device_pb2.SLOT_PHASE_GOOD
    answer = await house.answers(2)
    assert answer["y"] == 7
    assert answer["env"]["HATOBA_DEPLOYMENT"] == DEPLOYMENT
    return int(answer["pid"])


async def test_what_runs_there_has_figures(house: AgentHouse) -> None:
    """What its model server counted outlives the agent that tells of it."""
    await running(house)
    await until(lambda: house.site.figures_of(DEPLOYMENT).get("memory_bytes", 0) > 1e6, PATIENCE)
    await house.answers(3)
    await house.terminate()
    await house.start()
    await until(lambda: house.site.figures_of(DEPLOYMENT).get("predictions", 0) >= 2, PATIENCE)
    found = house.site.figures_of(DEPLOYMENT)
    assert (found["errors"], found["restarts"]) == (0, 0)
    assert found["cpu_seconds"] > 0
    assert 0 < found["latency_p50_seconds"] <= found["latency_p95_seconds"] < 60


async def test_what_is_wanted_runs_and_is_told(house: AgentHouse) -> None:
    await running(house)
    happenings = {"boot", "switched", "good"}
    await house.site.news.until(lambda: happenings <= set(house.site.happenings))
    await house.site.news.until(
        lambda: any(one == DEPLOYMENT and "loading" in text for one, text in house.site.lines)
    )
    await house.site.news.until(
        lambda: any("link.connected" in text for _, text in house.site.lines)
    )
    assert house.site.figures["agent_memory_bytes"] > 1e6
    assert house.site.figures["free_disk_bytes"] > 1e6
    assert {"free_memory_bytes", "load_1m"} <= house.site.figures.keys()
    (hello,) = house.site.hellos
    assert hello.platform.architecture
    done = await house.command("diagnose")
    assert done.code == 0, done.out
    assert "revision 1 is good, and answers at" in done.out
    done = await house.command("status")
    assert done.out.startswith("connected\n")
    assert DEPLOYMENT in done.out


async def test_without_a_server_it_goes_on_over_restarts_of_the_agent(house: AgentHouse) -> None:
    first = await running(house)
    await house.site.stop()
    await until(lambda: not house.told()["link"]["connected"])
    assert (await house.answers(2))["pid"] == first
    assert await house.terminate() == 0
    assert first in await asyncio.to_thread(house.marked)
    await house.start()
    assert (await house.answers(2))["pid"] == first
    done = await house.command("diagnose")
    assert done.code == 1
    assert "not connected, heard last on" in done.out
    count = len(house.site.reports)
    await house.site.start()
    await house.site.news.until(lambda: len(house.site.reports) > count, PATIENCE)
    assert house.site.report.settled
    assert (await house.answers(2))["pid"] == first


async def test_after_a_power_cut_it_runs_before_any_link(house: AgentHouse) -> None:
    first = await running(house)
    address = (await asyncio.to_thread(house.slot))["address"]
    await house.site.stop()
    await house.power_cut()
    await house.start()
    answer = await house.answers(2)
    assert answer["y"] == 7
    assert answer["pid"] != first
    assert (await asyncio.to_thread(house.slot))["address"] == address


async def test_a_better_model_comes_over_a_link_that_breaks(house: AgentHouse) -> None:
    await running(house)
    better = await made(house, 2, 50)
    house.site.flows.clear()
    before = house.site.sent
    generation = house.site.want(better)
    await house.site.news.until(lambda: house.site.sent > before)
    await house.site.stop()
    house.site.flows.set()
    await house.site.start()
    report = await house.settled(generation)
    assert report.slots[0].running == 2
    await until(lambda: house.slot().get("running") == 2)
    assert (await house.answers(2))["y"] == 52


async def test_a_bad_model_is_told_and_what_was_good_answers(house: AgentHouse) -> None:
    await running(house)
    generation = house.site.want(await made(house, 2, 50, ON_LOAD="crash"))
    (slot,) = (await house.settled(generation)).slots
    assert (slot.phase, slot.revision, slot.running) == (device_pb2.SLOT_PHASE_BAD, 2, 1)
    assert "no luck at load" in " ".join(slot.cause.last_log_lines)
    assert (await house.answers(2))["y"] == 7
    await house.site.news.until(lambda: "bad" in house.site.happenings)


async def test_what_is_wanted_no_more_ends_and_that_is_told(house: AgentHouse) -> None:
    await running(house)
    report = await house.settled(house.site.want())
    assert list(report.slots) == []
    await until(lambda: not house.marked())
    assert await asyncio.to_thread(os.listdir, house.data / "trees") == []


async def test_what_its_link_may_carry_is_taken_up_while_it_runs(house: AgentHouse) -> None:
    await running(house)
    assert (await house.command("link", "--metered", "on")).code == 0
    await house.site.news.until(lambda: "metered" in " ".join(house.site.report.problems), PATIENCE)
    # What is wanted is heard, and told about; what it is made of does not come.
    generation = house.site.want(await made(house, 2, 50))
    fetching = device_pb2.SLOT_PHASE_FETCHING
    await house.site.news.until(lambda: house.site.report.slots[0].phase == fetching, PATIENCE)
    assert (house.site.report.generation, house.site.report.settled) == (generation, False)
    assert not any(kind == "bad" for kind in house.site.happenings)
    assert (await house.command("link", "--metered", "off")).code == 0
    report = await house.settled(generation)
    assert report.slots[0].running == 2
    await house.site.news.until(lambda: not house.site.report.problems, PATIENCE)


async def test_it_is_ended_alone_or_with_all_that_it_runs(house: AgentHouse) -> None:
    pid = await running(house)
    assert (await house.command("stop")).code == 0
    assert await house.ended() == 0
    assert pid in await asyncio.to_thread(house.marked)
    await house.start()
    assert (await house.answers(2))["pid"] == pid
    assert (await house.command("stop", "--all", "--grace", "1")).code == 0
    assert await house.ended() == 0
    assert await asyncio.to_thread(house.marked) == []
    assert (await house.command("stop")).code == 0


async def test_a_second_agent_of_a_directory_is_refused(house: AgentHouse) -> None:
    await house.site.news.until(lambda: house.site.hellos)
    done = await house.command("run")
    assert done.code == 75
    assert "another agent runs" in done.err


async def test_without_its_identity_it_still_runs_what_it_has(house: AgentHouse) -> None:
    first = await running(house)
    await house.kill()
    for path in ((house.data / "tls" / "device-a.pem"), (house.data / "agent.json")):
        await asyncio.to_thread(path.write_bytes, b"\xff damaged")
    await house.start()
    assert (await house.answers(2))["pid"] == first
    await until(lambda: house.told()["link"]["problem"])
    done = await house.command("diagnose")
    assert "hatoba agent enroll" in done.out
