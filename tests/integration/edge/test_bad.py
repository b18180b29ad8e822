"""Versions that do not work on a device: taken back there, without anybody, and told when that can
be.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from edge_world import QUICK_LINKS, World

from hatoba.v1 import deployment_pb2, device_pb2

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
BAD = "SLOT_PHASE_BAD"
ROLLED_BACK = deployment_pb2.ROLLOUT_STATE_ROLLED_BACK


async def test_what_dies_in_its_trial_is_taken_back_without_a_link_and_told_later(
    world: World,
) -> None:
    shop = await world.device("shop", environ=QUICK_LINKS)
    assert shop.link is not None
    await world.deploy(await world.model("one"))
    await world.until_runs(shop, 1)
    await world.update(await world.model("two", does="dies 1.5"), bake=20.0)
    await world.until_slot(shop, phase="SLOT_PHASE_BAKING")
    await asyncio.to_thread(shop.link.cut)
    slot = await world.until_slot(shop, phase=BAD, revision=2, running=1)
    assert "exit code 1" in slot["cause"]["message"]
    assert (await world.answer(shop))["name"] == "one"
    assert (await world.shown()).rollout.state == deployment_pb2.ROLLOUT_STATE_RUNNING
    await asyncio.to_thread(shop.link.mend)
    shown = await world.until_shown(lambda one: one.rollout.state == ROLLED_BACK)
    assert "exit code 1" in shown.rollout.cause.message
    assert (await world.rows())["shop"].stage == device_pb2.DEVICE_STAGE_FAILED
    await world.until_slot(shop, revision=1, running=1)


async def test_where_the_good_one_does_not_come_up_either_that_is_told_and_not_hidden(
    world: World, tmp_path: Path
) -> None:
    camera = tmp_path / "camera"
    await asyncio.to_thread(camera.touch)
    shop = await world.device("shop", environ=QUICK_LINKS)
    await world.deploy(await world.model("one", does=f"needs {camera}"))
    await world.until_runs(shop, 1)
    await world.update(await world.model("two", does="crashes"), bake=20.0)
    await asyncio.to_thread(camera.unlink)
    slot = await world.until_slot(shop, inconsistent=True)
    assert f"{camera} is not there" in " ".join(slot["cause"]["last_log_lines"])
    found = await asyncio.to_thread(shop.hatoba, "agent", "diagnose", "--data", shop.data)
    assert found.returncode == 1, found.stdout
    told = await world.cli("devices", "diagnose", "shop")
    assert told.code == 1, told.out
    assert "does not come up either" in told.out
    assert "does not come up either" in (await world.get("shop")).explanation
    await asyncio.to_thread(camera.touch)
    await world.until_slot(shop, inconsistent=None, running=1)
    assert (await world.answer(shop))["name"] == "one"


async def test_with_one_away_the_others_go_back_to_what_worked_on_them(world: World) -> None:
    """And not to what nobody has run for long, or to nothing."""
    shop = await world.device("shop", environ=QUICK_LINKS)
    away = await world.machine("away")
    await asyncio.to_thread(away.power_on)
    await world.enroll(away, "away", await world.token({"site": "tokyo"}))
    await world.deploy(await world.model("one"), abort_share=0.2)
    await world.until_runs(shop, 1)
    await world.update(await world.model("two"))
    await world.until_runs(shop, 2)
    await world.until_shown(lambda one: one.current_revision == 2)
    await world.update(await world.model("three", does="crashes"))
    shown = await world.until_shown(lambda one: one.rollout.state == ROLLED_BACK)
    assert (shown.rollout.from_revision, shown.current_revision) == (2, 2)
    await world.until_runs(shop, 2)
    assert (await world.answer(shop))["name"] == "two"
