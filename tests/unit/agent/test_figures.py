"""Figures are told when they moved, and those of a model server are what it counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hatoba_worker.agent.figures import ANEW, Counted, Figures, Serving, of_machine, quantile
from hatoba_worker.keeper.messages import Sample
from hatoba_worker.serving.metrics import GAUGES, Metrics

ADDER, SERVER, ADDRESS = "projects/default/deployments/adder", "adder-1", "127.0.0.1:9"


@dataclass
class Machine:
    """A device with one model server; tests change it."""

    own: dict[str, float] = field(default_factory=dict)
    servers: list[Serving] = field(
        default_factory=lambda: [Serving(ADDER, SERVER, ADDRESS, restarts=0)]
    )
    used: list[Sample] = field(default_factory=list)
    metrics: Metrics = field(default_factory=lambda: Metrics(dict.fromkeys(GAUGES, int)))
    answers: bool = True
    now: float = 0.0
    heard: list[tuple[str, float, str]] = field(default_factory=list)

    def serving(self) -> list[Serving]:
        return self.servers

    async def samples(self) -> Sequence[Sample]:
        return self.used

    async def ask(self, address: str, path: str) -> bytes:
        assert (address, path) == (ADDRESS, "/metrics")
        return self.metrics.text().encode() if self.answers else b""

    def made(self) -> Figures:
        def hear(name: str, value: float, deployment: str) -> None:
            self.heard.append((name, value, deployment))

        return Figures(hear, self, lambda: self.own, self.ask, lambda: self.now)

    async def told(self, figures: Figures, deployment: str = ADDER) -> dict[str, float]:
        """What one look has told of a deployment."""
        self.heard.clear()
        await figures.look()
        return {name: value for name, value, whose in self.heard if whose == deployment}


async def test_what_a_server_counted_and_uses_is_told_with_its_deployment() -> None:
    machine = Machine(used=[Sample(f"{SERVER}.3", 7.5, 50 << 20, ())])
    for code in (200, 200, 400, 500):
        machine.metrics.answered(code, 0.02)
    found = await machine.told(machine.made())
    assert 0.01 < found.pop("latency_p50_seconds") < found.pop("latency_p95_seconds") <= 0.025
    assert found == {
        "restarts": 0,
        "memory_bytes": 50 << 20,
        "cpu_seconds": 7.5,
        "predictions": 4,
        "errors": 1,
    }


async def test_what_has_not_moved_is_told_once_an_hour() -> None:
    machine = Machine(own={"free_disk_bytes": 1e9, "temperature_celsius": 40.0})
    figures = machine.made()
    assert len(await machine.told(figures, "")) == 2
    machine.own = {"free_disk_bytes": 0.96e9, "temperature_celsius": 41.9}
    assert await machine.told(figures, "") == {}
    machine.own["temperature_celsius"] = 42.5
    assert await machine.told(figures, "") == {"temperature_celsius": 42.5}
    machine.now = ANEW
    assert await machine.told(figures, "") == machine.own


async def test_latencies_are_of_what_was_asked_since_the_last_look() -> None:
    machine = Machine()
    figures = machine.made()
    machine.metrics.answered(200, 20.0)
    assert (await machine.told(figures))["latency_p50_seconds"] > 10
    assert await machine.told(figures) == {}
    machine.metrics.answered(200, 0.001)
    found = await machine.told(figures)
    assert found["predictions"] == 2
    assert found["latency_p95_seconds"] <= 0.001


async def test_a_server_that_began_anew_counts_from_nothing() -> None:
    machine = Machine()
    figures = machine.made()
    for _ in range(3):
        machine.metrics.answered(200, 0.02)
    await machine.told(figures)
    machine.metrics = Metrics(dict.fromkeys(GAUGES, int))
    machine.metrics.answered(200, 1.5)
    found = await machine.told(figures)
    assert found["predictions"] == 1
    assert found["latency_p50_seconds"] > 1


@pytest.mark.parametrize("address", ["", ADDRESS])
async def test_of_a_server_that_does_not_answer_the_rest_is_told(address: str) -> None:
    machine = Machine(answers=False, servers=[Serving(ADDER, SERVER, address, restarts=2)])
    assert await machine.told(machine.made()) == {"restarts": 2}


async def test_what_comes_back_is_told_anew() -> None:
    machine = Machine(answers=False)
    figures, servers = machine.made(), machine.servers
    await machine.told(figures)
    machine.servers = []
    assert await machine.told(figures) == {}
    machine.servers = servers
    assert await machine.told(figures) == {"restarts": 0}


def test_a_share_of_answers_lies_between_the_bounds_that_hold_it() -> None:
    metrics = Metrics(dict.fromkeys(GAUGES, int))
    for seconds in (*[0.02] * 50, *[0.2] * 49, 100.0):
        metrics.answered(200, seconds)
    counted = Counted.read(metrics.text()).seconds
    assert quantile(counted, 0.5) == 0.025
    assert 0.1 < quantile(counted, 0.95) <= 0.25
    assert quantile(counted, 0.999) == 60


def test_of_a_machine_is_told_what_its_kernel_tells(tmp_path: Path) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  9 kB\nMemAvailable:    2048 kB\n", "ascii")
    for number, text in enumerate(("41500\n", "nothing", "39000\n")):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text(text, "ascii")
    found = of_machine(memory, tmp_path)
    assert found["free_memory_bytes"] == 2 << 20
    assert found["temperature_celsius"] == 41.5
    bare = of_machine(tmp_path / "none", tmp_path / "none")
    assert bare.keys() == {"load_1m", "agent_memory_bytes"}
