"""A real agent with a model on a machine of its own, while nothing happens."""

from __future__ import annotations

from pathlib import Path

from bench_report import Figure, Measured, Skipped  # isort: skip
from agent_footprint import footprint
from edge_world import edge_world, why_not

SECONDS = 120.0
MEMORY_MB = 75.0
CPU_PERCENT = 0.3
LINK_BYTES = 2_048.0


async def agent(work: Path) -> list[Figure]:
    """Memory, processor and link of an agent at rest."""
    if reason := why_not():
        raise Skipped(reason)
    async with edge_world(work, alive_every=30) as world:
        shop = await world.device("shop")
        await world.deploy(await world.model("one"))
        await world.until_runs(shop, 1)
        found = await footprint(shop, SECONDS)
    return [
        Measured("agent_rss", found.memory / 1e6, "MB").at_most(MEMORY_MB),
        Measured("agent_idle_cpu", 100 * found.share, "%").at_most(CPU_PERCENT),
        Measured("agent_idle_link", found.link, "bytes/min").at_most(LINK_BYTES),
    ]
