"""A registry on a network of devices, with an image that models run in; what of it came is counted
on the router.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bed_engine
import bed_groups
import bed_python
import bed_registry
from bed_edge import EdgeNetwork
from bed_place import Place
from bed_python import Pushed

FOLDER = "registry"


@dataclass(frozen=True)
class EdgeRegistry:
    """Where devices reach it, and its image."""

    network: EdgeNetwork
    address: str
    image: Pushed

    def fetched(self) -> int:
        """Bytes that devices got from it, headers included."""
        return self.network.counted(_port(self.address))


@contextmanager
def edge_registry(work: Path, network: EdgeNetwork) -> Iterator[EdgeRegistry]:
    """One that is empty but for the image, for devices with an engine of their own. Raises
    Unavailable and Broken.
    """
    bed_engine.prepare()
    bed_registry.prepare()
    layers, place = bed_python.made(), Place(work / FOLDER)
    try:
        # It listens there on what it takes for a bridge.
        facts = bed_registry.up(place, {"gateway": network.address})
        network.count(_port(facts["address"]))
        yield EdgeRegistry(network, facts["address"], bed_python.push(facts["address"], layers))
    finally:
        clear_away(work)


def clear_away(work: Path) -> None:
    """End the registry of a demo's directory."""
    bed_groups.sweep(Place(work / FOLDER))


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
