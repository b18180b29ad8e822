"""Numbers of devices and their roll-outs for Prometheus; no label names a device."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.devices import DeviceBook
from hatoba_scheduler.control.fleet import Fleet
from hatoba_scheduler.control.fleet_loop import FleetLoop
from hatoba_scheduler.domain.devices import Device, DeviceState

DEPLOYMENTS = 100
"""So many deployments are shown, those on most devices."""
DAY = 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """Reads all of it; on the loop. Nothing is told where no backend has devices."""

    book: DeviceBook
    loops: Callable[[], Iterable[FleetLoop]]
    clock: Clock
    certificate_days: int

    def read(self) -> Iterator[Metric]:
        """Every family with its samples now."""
        loops = list(self.loops())
        if not loops:
            return
        devices = self.book.by_name.values()
        ours = [one for one in devices if one.state is DeviceState.ENROLLED]
        yield _links(devices, set().union(*(loop.reachable for loop in loops)))
        yield _one(
            "hatoba_devices_behind",
            "Enrolled devices, connected or not, that have not done all that is wanted of them.",
            sum(one.behind for one in ours),
        )
        yield _one(
            "hatoba_device_certificates_ending",
            "Enrolled devices of whose certificate less than a third is left, ended ones too.",
            self._ending(ours),
        )
        yield _rollouts(fleet for loop in loops for fleet in loop.fleets())

    def _ending(self, devices: Iterable[Device]) -> int:
        """Who is there renews at that time. Certificates of AWS IoT have no end here."""
        until = round(self.clock.time() * 1e6) + self.certificate_days * DAY // 3
        return sum(0 < one.certificate_end < until for one in devices)


def _links(devices: Collection[Device], reachable: set[str]) -> Metric:
    family = GaugeMetricFamily(
        "hatoba_devices", "Devices, by what they may do and their link.", labels=("state", "link")
    )
    for state in DeviceState:
        names = [one.name for one in devices if one.state is state]
        here = len(reachable.intersection(names))
        family.add_metric((state.name, "connected"), here)
        family.add_metric((state.name, "away"), len(names) - here)
    return family


def _rollouts(fleets: Iterable[Fleet]) -> Metric:
    family = GaugeMetricFamily(
        "hatoba_device_rollout",
        "Devices by where they stand on the way to a deployment's newest revision.",
        labels=("project", "deployment", "stage"),
    )
    for fleet in heapq.nlargest(DEPLOYMENTS, fleets, key=lambda one: len(one.rows)):
        of = fleet.live.deployment
        for stage, count in fleet.stages.items():
            family.add_metric((of.project, of.name, stage.name), count)
    return family


def _one(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric((), value)
    return family
