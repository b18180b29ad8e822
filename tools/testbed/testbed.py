"""Real components for the tests: `testbed.py up|down|status [COMPONENT...]`.

`stop` and `start` are for single processes of Kubernetes' control plane, by name: `stop etcd`.
`up` brings up what is named (everything, when nothing is) and what that needs, unless it is up
already; `down` ends it and what needs it. Both may be called twice, and by several at once. What
is up stands in state.json of the testbed's directory. Exit status 3: this machine cannot have it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bed_arm64
import bed_dns
import bed_docker
import bed_emulators
import bed_groups
import bed_images
import bed_kubernetes
import bed_kwok
import bed_network
import bed_node
import bed_registry
from bed_place import Broken, Facts, Place, State, Unavailable, default_directory


@dataclass(frozen=True)
class Component:
    """How one component comes and goes.

    `prepare` takes minutes once, and nobody waits for it who does not want the component; `up`
    takes the place and the facts of those it needs.
    """

    needs: tuple[str, ...]
    prepare: Callable[[], None]
    up: Callable[..., Facts]
    down: Callable[[Place, Facts], None]
    healthy: Callable[[Facts], bool]


def component(module: Any, *needs: str, up: str = "up", prepare: str = "prepare") -> Component:
    """A component by the module that has its functions."""
    prepared = getattr(module, prepare, lambda: None)
    return Component(needs, prepared, getattr(module, up), module.down, module.healthy)


# In the order in which they come up.
COMPONENTS = {
    "network": component(bed_network),
    "registry": component(bed_registry, "network"),
    "docker": component(bed_docker, "network"),
    "moto": component(bed_emulators, "docker", up="moto_up"),
    "ministack": component(bed_emulators, "docker", up="ministack_up"),
    "control-plane": component(bed_kubernetes, "network"),
    "node-1": component(bed_node, "network", "registry", "control-plane", up="first_up"),
    "node-2": component(bed_node, "network", "registry", "control-plane", up="second_up"),
    "images": component(bed_images, "docker", "registry"),
    "all-images": component(bed_images, "docker", "registry", up="everything_up"),
    "arm64": component(bed_arm64),
    "arm64-images": component(
        bed_images, "docker", "registry", "arm64", up="arm64_up", prepare="arm64_prepare"
    ),
    "kwok": component(bed_kwok, "control-plane"),
    "dns": component(bed_dns, "network", "control-plane"),
}
GROUPS = {"kubernetes": ["control-plane", "node-1"]}
# What comes up only when it is named.
ON_REQUEST = {"node-2", "kwok", "images", "all-images", "arm64", "arm64-images", "dns"}


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--where-possible", action="store_true", help="say what cannot be had, and go on"
    )
    chosen = parser.parse_intermixed_args()
    place = Place(default_directory())
    if chosen.where_possible:
        return bring_up_possible(place, chosen.names)
    try:
        ACTIONS[chosen.action](place, chosen.names)
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


def chosen_components(names: list[str]) -> list[str]:
    """The components that these names stand for."""
    found = [part for name in names for part in GROUPS.get(name, [name])]
    for name in found:
        if name not in COMPONENTS:
            raise Broken(f"there is no {name!r}; there are {', '.join([*GROUPS, *COMPONENTS])}")
    return found


def bring_up(place: Place, names: list[str]) -> None:
    """Bring these up, in order, each after what it needs."""
    usual = [name for name in COMPONENTS if name not in ON_REQUEST]
    wanted = with_needs(chosen_components(names) or usual)
    if not missing(place.state, wanted):
        return
    for name in wanted:
        COMPONENTS[name].prepare()
    with place.alone():
        for name in wanted:
            if missing(place.state, [name]):
                begin(place, name)


def bring_up_possible(place: Place, names: list[str]) -> int:
    """Bring up each of them that this machine can have; 1 when one that it can have does not."""
    status = 0
    for name in names:
        try:
            bring_up(place, [name])
        except Unavailable as reason:
            print(f"{name}: skipped: {reason}", flush=True)
        except Broken as failure:
            print(f"{name}: {failure}", flush=True)
            status = 1
    return status


def missing(state: State, names: list[str]) -> list[str]:
    """Those of them that are not up."""
    known = state.read()
    return [
        name for name in names if name not in known or not COMPONENTS[name].healthy(known[name])
    ]


def begin(place: Place, name: str) -> None:
    """Bring up one, whose needs are up; what is left of an earlier one goes first."""
    began, one = time.monotonic(), COMPONENTS[name]
    if not place.state.read():
        sweep(place)
    if name in place.state.read():
        end(place, [name])
    known = place.state.read()
    place.state.put(name, one.up(place, *(known[need] for need in one.needs)))
    print(f"{name}: up after {time.monotonic() - began:.1f} s", flush=True)


def bring_down(place: Place, names: list[str]) -> None:
    """End these and whatever needs them."""
    with place.alone():
        end(place, chosen_components(names) or list(COMPONENTS))


def end(place: Place, names: list[str]) -> None:
    """End these and whatever needs them, the last one first; the lock is held."""
    for name in reversed(with_dependents(names)):
        facts = place.state.read().get(name)
        if facts is None:
            continue
        COMPONENTS[name].down(place, facts)
        place.state.put(name, None)
        print(f"{name}: down", flush=True)
    if not place.state.read():
        sweep(place)


def sweep(place: Place) -> None:
    """Leave nothing on the machine: also what somebody began to bring up and could not finish."""
    bed_groups.sweep(place)
    bed_network.sweep(place)
    shutil.rmtree(place.run)


def tell(place: Place, names: list[str]) -> None:
    """Say of each whether it is up, and its facts."""
    known = place.state.read()
    for name in chosen_components(names) or list(COMPONENTS):
        facts = known.get(name, {})
        up = bool(facts) and COMPONENTS[name].healthy(facts)
        shown = [f"{key}={facts[key]}" for key in TOLD if key in facts]
        print(f"{name:14} {'up' if up else 'down':5} {' '.join(shown)}")


def stop(place: Place, names: list[str]) -> None:
    """Stop processes of the control plane, by name."""
    with place.alone():
        for name in names:
            bed_kubernetes.stop_one(place.state, name)


def start(place: Place, names: list[str]) -> None:
    """Start them again."""
    with place.alone():
        for name in names:
            bed_kubernetes.start_one(place, name)


def with_needs(names: list[str]) -> list[str]:
    """These and all that they need, in the order of coming up."""
    wanted = set(names)
    for name, one in reversed(COMPONENTS.items()):
        if name in wanted:
            wanted.update(one.needs)
    return [name for name in COMPONENTS if name in wanted]


def with_dependents(names: list[str]) -> list[str]:
    """These and all that need them, in the order of coming up."""
    wanted = set(names)
    for name, one in COMPONENTS.items():
        if wanted.intersection(one.needs):
            wanted.add(name)
    return [name for name in COMPONENTS if name in wanted]


ACTIONS = {"up": bring_up, "down": bring_down, "status": tell, "stop": stop, "start": start}
TOLD = ("gateway", "socket", "endpoint", "address", "kubeconfig")

if __name__ == "__main__":
    sys.exit(main())
