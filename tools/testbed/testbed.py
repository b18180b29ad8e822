"""Real components for the tests: `testbed.py up|down|status [COMPONENT...]`.

`up` brings up what is named (everything, when nothing is) and what that needs, unless it is up
already; `down` ends it and what needs it. Both may be called twice, and by several at once. What
is up stands in state.json of the testbed's directory. Exit status 3: this machine cannot have it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bed_docker
import bed_emulators
import bed_network
import bed_registry
from bed_place import Broken, Facts, Place, State, Unavailable, default_directory


@dataclass(frozen=True)
class Component:
    """How one component comes and goes. `up` takes the place and the facts of those it needs."""

    needs: tuple[str, ...]
    up: Callable[..., Facts]
    down: Callable[[Place, Facts], None]
    healthy: Callable[[Facts], bool]


# In the order in which they come up.
COMPONENTS = {
    "network": Component((), bed_network.up, bed_network.down, bed_network.healthy),
    "registry": Component(("network",), bed_registry.up, bed_registry.down, bed_registry.healthy),
    "docker": Component(("network",), bed_docker.up, bed_docker.down, bed_docker.healthy),
    "moto": Component(
        ("docker",), bed_emulators.moto_up, bed_emulators.down, bed_emulators.healthy
    ),
    "ministack": Component(
        ("docker",), bed_emulators.ministack_up, bed_emulators.down, bed_emulators.healthy
    ),
}


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("components", nargs="*", choices=[*COMPONENTS, []], metavar="COMPONENT")
    chosen = parser.parse_args()
    place = Place(default_directory())
    act = {"up": bring_up, "down": bring_down, "status": tell}[chosen.action]
    try:
        with place.alone() as state:
            act(place, state, chosen.components or list(COMPONENTS))
    except Unavailable as reason:
        print(f"skipped: {reason}", file=sys.stderr)
        return 3
    except Broken as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def raw(prog: str) -> argparse.RawDescriptionHelpFormatter:
    """Help that keeps its lines."""
    return argparse.RawDescriptionHelpFormatter(prog)


def bring_up(place: Place, state: State, names: list[str]) -> None:
    """Bring these up, in order, each after what it needs."""
    for name in with_needs(names):
        component, known = COMPONENTS[name], state.read()
        if name in known and component.healthy(known[name]):
            continue
        if name in known:
            bring_down(place, state, [name])
        began = time.monotonic()
        state.put(name, component.up(place, *(known[need] for need in component.needs)))
        print(f"{name}: up after {time.monotonic() - began:.1f} s", flush=True)


def bring_down(place: Place, state: State, names: list[str]) -> None:
    """End these and whatever needs them, the last one first."""
    for name in reversed(with_dependents(names)):
        facts: Any = state.read().get(name)
        if facts is None:
            continue
        COMPONENTS[name].down(place, facts)
        state.put(name, None)
        print(f"{name}: down", flush=True)
    if not state.read():
        place.run.rmdir()


def tell(place: Place, state: State, names: list[str]) -> None:
    """Say of each whether it is up, and its facts."""
    known = state.read()
    for name in names:
        up = name in known and COMPONENTS[name].healthy(known[name])
        shown = [
            f"{key}={value}" for key, value in known.get(name, {}).items() if isinstance(value, str)
        ]
        print(f"{name:12} {'up' if up else 'down':5} {' '.join(shown)}")


def with_needs(names: list[str]) -> list[str]:
    """These and all that they need, in the order of coming up."""
    wanted = set(names)
    for name, component in reversed(COMPONENTS.items()):
        if name in wanted:
            wanted.update(component.needs)
    return [name for name in COMPONENTS if name in wanted]


def with_dependents(names: list[str]) -> list[str]:
    """These and all that need them, in the order of coming up."""
    wanted = set(names)
    for name, component in COMPONENTS.items():
        if wanted.intersection(component.needs):
            wanted.add(name)
    return [name for name in COMPONENTS if name in wanted]


if __name__ == "__main__":
    sys.exit(main())
