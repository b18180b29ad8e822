"""Figures of what runs on a device come to whoever asks the server for them."""

from __future__ import annotations

import json

import pytest
from edge_world import HERE, NAME, World
from waiting import eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
QUICK_FIGURES = {"PYTHONPATH": str(HERE / "quick_figures")}


async def test_what_a_model_on_a_device_was_asked_shows_among_its_figures(world: World) -> None:
    shop = await world.device("shop", environ=QUICK_FIGURES)
    await world.deploy(await world.model("one"))
    await world.until_runs(shop, 1)
    asked = 3
    for _ in range(asked):
        await world.answer(shop)

    async def told() -> dict[str, float] | None:
        done = await world.cli("devices", "metrics", "shop", "--deployment", NAME, "-o", "json")
        figures = [json.loads(line)["record"]["figure"] for line in done.out.splitlines()]
        found = {one["name"]: float(one.get("value", 0)) for one in figures}
        return found if found.get("predictions", 0) >= asked else None

    found = await eventually(told, 60.0)
    assert (found["errors"], found["restarts"]) == (0, 0)
    assert found["memory_bytes"] > 1e6
    assert found["cpu_seconds"] > 0
    assert 0 < found["latency_p50_seconds"] <= found["latency_p95_seconds"]
    shown = await world.cli("devices", "metrics", "shop", "--deployment", NAME)
    assert any(line.split()[:2] == ["predictions", NAME] for line in shown.out.splitlines())
