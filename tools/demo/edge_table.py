"""The devices as a table, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bed_device import FarMachine
from bed_engine import EngineMachine

HEADS = ("device", "is", "runs in", "power", "link", "wanted", "runs", "how it is")
PHASES = {
    "WAITING": "waits",
    "FETCHING": "fetches",
    "STARTING": "starts it",
    "BAKING": "tries it",
    "GOOD": "works",
    "BAD": "given up, back to what ran",
    "REMOVED": "ends it",
}


def table(devices: Sequence[Mapping[str, Any]], machines: Mapping[str, FarMachine]) -> str:
    """A line for each device."""
    rows = [HEADS, *(_row(one, machines) for one in devices)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    return "\n".join(f"    {_line(row, widths)}" for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()


def _row(device: Mapping[str, Any], machines: Mapping[str, FarMachine]) -> tuple[str, ...]:
    name = device["name"].rpartition("/")[2]
    wants = device.get("desired", {}).get("wants", [])
    slots = device.get("report", {}).get("slots", [])
    return (
        name,
        device.get("platform", {}).get("architecture", "-"),
        "containers" if isinstance(machines[name], EngineMachine) else "processes",
        "on" if machines[name].on else "off",
        "up" if device.get("connected") else "down",
        ", ".join(f"revision {one['revision']}" for one in wants) or "nothing",
        ", ".join(f"revision {one['running']}" for one in slots if one.get("running")) or "nothing",
        ", ".join(PHASES[one["phase"].removeprefix("SLOT_PHASE_")] for one in slots) or "-",
    )
