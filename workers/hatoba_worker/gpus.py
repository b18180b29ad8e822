"""The GPUs of this machine, as NVIDIA's driver tells of them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

PRODUCT_LABEL = "hatoba/gpu-product"
_QUERY_TIMEOUT = 30.0
"""Seconds: a driver that nobody keeps awake takes many to answer the first time."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What a host gives away: ids, and the product where all are of one."""

    ids: tuple[str, ...] = ()
    product: str = ""


def found(count: int) -> Gpus:
    """`count` GPUs, or as many as there are if that is negative; blocks.

    They go by the driver's UUIDs: CUDA numbers them by speed and the driver by slot, so a number
    may mean another card. Where the driver has fewer than were asked for they are only counted.
    """
    rows = [line.rpartition(",") for line in _query("name,uuid")]
    there = [(uuid.strip(), "-".join(name.split())) for name, _, uuid in rows]
    if len(there) < count:
        return Gpus(tuple(str(number) for number in range(count)))
    mine = there if count < 0 else there[:count]
    products = {product for _, product in mine}
    return Gpus(tuple(uuid for uuid, _ in mine), products.pop() if len(products) == 1 else "")


def use() -> dict[str, float]:
    """Use of each GPU by id, 0 to 1; empty where there is no driver. Blocks."""
    used: dict[str, float] = {}
    for line in _query("uuid,utilization.gpu"):
        uuid, _, percent = line.partition(",")
        try:
            used[uuid.strip()] = float(percent) / 100
        except ValueError:
            continue
    return used


def _query(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_QUERY_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
