"""A device with real processes: models come, fail, are taken back, and outlive agent and power."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from edge_house import EdgeHouse
from waiting import until

from hatoba.v1 import worker_pb2

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[EdgeHouse]:
    """A device that is switched on."""
    place = await asyncio.to_thread(EdgeHouse, tmp_path)
    try:
        await place.boot()
        yield place
    finally:
        await place.close()
    assert await asyncio.to_thread(place.marked) == []


async def made(house: EdgeHouse, revision: int, bias: int, **told: str) -> worker_pb2.ReplicaSpec:
    return await asyncio.to_thread(lambda: house.spec(revision, bias, **told))


async def running(house: EdgeHouse) -> int:
    """Have the first revision running, good; the process that answers."""
    await house.want(await made(house, 1, 5))
    await house.until(phase="good", running=1)
    answer = await house.answers(2)
    assert answer["y"] == 7
    return int(answer["pid"])


async def test_a_better_model_takes_the_place_of_the_first(house: EdgeHouse) -> None:
    first = await running(house)
    await house.want(await made(house, 2, 50))
    await house.until(phase="good", running=2)
    answer = await house.answers(2)
    assert answer["y"] == 52
    assert answer["pid"] != first


async def test_a_bad_model_is_taken_back_without_anybody(house: EdgeHouse) -> None:
    await running(house)
    bad = await made(house, 2, 50, ON_LOAD="crash")
    await house.want(bad)
    status = await house.until(phase="bad", running=1)
    assert "no luck at load" in " ".join(status["cause"]["lines"])
    assert (await house.answers(2))["y"] == 7


async def test_a_model_that_answers_wrongly_is_taken_back_with_the_golden_case(
    house: EdgeHouse,
) -> None:
    await running(house)
    known = '{"input": {"x": 1}, "expected": {"y": 51}}\n{"input": {"x": 2}, "expected": {"y": 52}}'
    await house.want(await made(house, 2, 50, golden=known))
    await house.until(phase="good", running=2)
    await house.want(await made(house, 3, 60, golden=known))
    status = await house.until(phase="bad", running=2)
    cause = status["cause"]
    assert (cause["code"], cause["passing"]) == ("PREDICTIONS_FAIL", False)
    assert "golden case 1 is answered wrongly: $.y is 61, expected 51" in cause["message"]
    assert (await house.answers(2))["y"] == 52


async def test_what_was_good_comes_back_at_once_each_time(house: EdgeHouse) -> None:
    await running(house)
    for revision in (2, 3, 4):
        await house.want(await made(house, revision, 50, ON_LOAD="crash"))
        await house.until(phase="bad", running=1)
        assert (await house.answers(2))["y"] == 7
    log = await asyncio.to_thread((house.data / "agent.log").read_text)
    assert "replica.spawn" not in log


async def test_what_runs_is_left_alone_when_the_agent_dies(house: EdgeHouse) -> None:
    first = await running(house)
    await house.restart_agent()
    await house.until(phase="good", running=1)
    assert (await house.answers(2))["pid"] == first


async def test_after_a_power_cut_without_a_link_it_runs_again(house: EdgeHouse) -> None:
    first = await running(house)
    await house.cut()
    await house.want(await made(house, 2, 50))
    await house.until(phase="fetching", running=1)
    await house.power_cut()
    await house.boot()
    await house.until(phase="fetching", running=1)
    answer = await house.answers(2)
    assert answer["y"] == 7
    assert answer["pid"] != first
    await house.mend()
    await house.until(phase="good", running=2)


async def test_a_power_cut_in_a_trial_comes_back_to_it(house: EdgeHouse) -> None:
    await running(house)
    await house.want(await made(house, 2, 50), bake=3_600.0)
    await house.until(phase="baking", running=2)
    await house.power_cut()
    await house.boot()
    await house.until(phase="baking", running=2)
    assert (await house.answers(2))["y"] == 52


async def test_what_is_wanted_no_more_ends(house: EdgeHouse) -> None:
    await running(house)
    await house.want()
    await house.until(phase=None)
    await until(lambda: not house.marked())
    assert await asyncio.to_thread(os.listdir, house.data / "trees") == []
