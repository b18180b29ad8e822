"""The mock world's virtual objects, and how they are rebuilt from the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from hatoba_plugins.backends.mock.ledger import Entry
from hatoba_plugins.backends.mock.script import Script
from hatoba_plugins.values import Exit, ExitKind, Phase


@dataclass(frozen=True, slots=True)
class Owner:
    """The labels of an object."""

    cluster_id: str
    job_uid: str
    index: int
    number: int
    fence: int


@dataclass(slots=True)
class MockObject:
    """One object of the world. Times are seconds since 1970; 0 where it has not come to it."""

    name: str
    owner: Owner
    script: Script
    created_at: float
    timeout: float = 0.0
    """Longest run; 0: no limit."""
    started_at: float = 0.0
    kill_at: float = 0.0
    hidden_until: float = 0.0
    phase: Phase = Phase.WAITING
    exit: Exit | None = None
    deleted: bool = False
    releases_left: int = 0
    """How many more releases are answered NotYet."""
    loser_unseen: bool = False
    """A doubled run's loser ended, and nobody has looked yet."""

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.exit is not None or self.deleted

    def hidden(self, now: float) -> bool:
        """Whether look-ups do not show it yet."""
        return now < self.hidden_until

    def unreachable(self, now: float) -> bool:
        """Whether it cannot be asked how it is."""
        lasts = self.script.unreachable_for
        return lasts > 0 and self.started_at <= now < self.started_at + lasts


@dataclass(slots=True)
class Population:
    """Every object, and every name that is used up."""

    objects: dict[str, MockObject] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)
    """Why no object of a name will be made any more."""


def population_of(entries: Iterable[Entry]) -> Population:
    """The world as the ledger tells it."""
    world = Population()
    for entry in entries:
        _replay(world, entry)
    return world


def created_entry(made: MockObject, environment: Iterable[tuple[str, str]] = ()) -> Entry:
    """The ledger's line for a new object, with what its runner is given."""
    data: dict[str, object] = {
        "owner": asdict(made.owner),
        "script": made.script.as_dict(),
        "timeout": made.timeout,
        "hidden_until": made.hidden_until,
    }
    if given := dict(environment):
        data["environment"] = given
    return Entry("create", made.name, made.created_at, data)


def exit_data(end: Exit) -> dict[str, object]:
    """An exit for the ledger."""
    return {**end._asdict(), "kind": end.kind.value}


def _replay(world: Population, entry: Entry) -> None:
    if entry.event == "create":
        world.objects[entry.name] = _created(entry)
        return
    known = world.objects.get(entry.name)
    if known is None:
        if entry.event == "stop":
            world.used[entry.name] = "stopped before it was launched"
        return
    if entry.event == "release":
        del world.objects[entry.name]
        world.used[entry.name] = "released"
        return
    _replay_on(known, entry)


def _replay_on(known: MockObject, entry: Entry) -> None:
    data: dict[str, Any] = entry.data
    if entry.event == "start":
        known.phase, known.started_at = Phase.RUNNING, known.started_at or entry.time
    elif entry.event == "end":
        known.phase = Phase.ENDED
        known.exit = Exit(**{**data, "kind": ExitKind(data["kind"])})
    elif entry.event == "stop":
        known.kill_at = known.kill_at or entry.time + data["grace"]
    elif entry.event == "delete":
        known.phase, known.deleted = Phase.GONE, True


def _created(entry: Entry) -> MockObject:
    data: dict[str, Any] = entry.data
    script = Script(**data["script"])
    return MockObject(
        entry.name,
        Owner(**data["owner"]),
        script,
        created_at=entry.time,
        timeout=data["timeout"],
        hidden_until=data["hidden_until"],
        releases_left=script.release_not_yet,
    )
