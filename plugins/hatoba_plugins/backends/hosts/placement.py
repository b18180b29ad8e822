"""Which host gets a replica: pure, over what hosts have left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from hatoba.units import say_bytes
from hatoba.v1 import worker_pb2
from hatoba_plugins.backend import HostRoom
from hatoba_plugins.values import Share

ENGINE = "hatoba/engine"
"""Label of a host whose worker drives a container engine."""
NAMED = 3
"""So many hosts are named in a reason."""


class Needs(NamedTuple):
    """What a replica asks of its host."""

    share: Share
    embedded: bool
    secrets: frozenset[str]
    engine: bool = False

    @classmethod
    def of(cls, template: worker_pb2.ReplicaSpec) -> Needs:
        """What replicas of this template ask."""
        return cls(
            Share.of(template.resources),
            bool(template.serving.environment.caller_interpreter),
            frozenset(secret.name for secret in template.secrets),
            bool(template.serving.environment.image),
        )


def choose(needs: Needs, rooms: Iterable[HostRoom], have: Mapping[str, int]) -> HostRoom | None:
    """The host with the fewest replicas of the deployment (`have`, by host) that has the room.

    Among equals the one with the most free cores, then slots; None when it fits nowhere.
    """
    able = [room for room in rooms if not _obstacle(needs, room)]
    return min(able, key=lambda room: _order(room, have), default=None)


def _order(room: HostRoom, have: Mapping[str, int]) -> tuple[int, float, int, str]:
    return have.get(room.name, 0), -room.free.cpus, -room.free.slots, room.name


def taken(room: HostRoom, needs: Needs) -> HostRoom:
    """What is left of a host once it has such a replica more: its first free GPUs are gone."""
    free, want = room.free, needs.share
    left = Share(
        free.cpus - want.cpus,
        free.memory - want.memory,
        free.gpus - want.gpus,
        free.slots - want.slots,
    )
    return replace(room, free=left, free_gpus=room.free_gpus[want.gpus :])


def why_nowhere(needs: Needs, rooms: Sequence[HostRoom]) -> str:
    """In words, with figures: what is needed, and what stands against it on which host."""
    if not rooms:
        return f"A replica needs {_amount(needs.share)}; no host has ever connected."
    said = [f"{room.name}: {_obstacle(needs, room)}" for room in rooms[:NAMED]]
    more = f"; {len(rooms) - NAMED} more hosts likewise" if len(rooms) > NAMED else ""
    return f"A replica needs {_amount(needs.share)}; {'; '.join(said)}{more}."


def _obstacle(needs: Needs, room: HostRoom) -> str:
    """What keeps such a replica away from a host; empty: nothing."""
    if not room.accepting:
        return "takes no work now" if room.connected else "not connected"
    if needs.embedded and not room.embedded:
        return "not the machine whose interpreter the model names"
    if needs.engine and not runs_containers(room):
        return "has no container engine"
    lacking = sorted(needs.secrets - room.secrets)
    if lacking:
        return f"has no secret {', '.join(lacking)}"
    return _shortage(needs.share, room)


def runs_containers(room: HostRoom) -> bool:
    """Whether its worker has said that it drives a container engine."""
    return any(key == ENGINE for key, _ in room.labels)


def _shortage(want: Share, room: HostRoom) -> str:
    free = room.free
    short = []
    if want.cpus > free.cpus + 1e-9:
        short.append(f"{free.cpus:g} cpus")
    if want.memory > free.memory:
        short.append(say_bytes(free.memory))
    if want.gpus > min(free.gpus, len(room.free_gpus)):
        short.append(f"{min(free.gpus, len(room.free_gpus))} gpus")
    if want.slots > free.slots:
        short.append(f"{free.slots} slots")
    return f"{', '.join(short)} free" if short else ""


def _amount(want: Share) -> str:
    parts = []
    if want.cpus:
        parts.append(f"{want.cpus:g} cpus")
    if want.memory:
        parts.append(say_bytes(want.memory))
    if want.gpus:
        parts.append(f"{want.gpus} gpus")
    return ", ".join(parts) or "a slot"
