"""Which failpoint the next server dies at: all of them, and those most often that are met least."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hatoba_scheduler.failpoints import POINTS, VARIABLE

PASSES = (1, 1, 1, 2, 2, 3, 5)
"""At which of its passes a server dies, where every load comes by often."""
OFTEN = ("dispatch.intent.", "ledger.", "launch.", "release.", "worker.")
AT_RANDOM = 0.1
"""Share of the servers that are armed with nothing, and die at any moment."""
MISSES = 3
"""So many tries in vain weigh as much as one death."""

HOSTS = frozenset({"hosts", "containers"})
ONLY_ON: dict[str, frozenset[str]] = {
    "adopt.": HOSTS,
    "disconnect.": frozenset({"mock"}),
    "dispatch.preempt.": HOSTS | {"mock"},
    "gang.": HOSTS,
    "host.": HOSTS,
    "reap.": frozenset({"mock"}),
    "recall.": frozenset({"mock"}),
    "release.": frozenset({"batch-spot", "ecs", "hosts", "k8s-gpu", "mock", "null"}),
    "worker.": HOSTS,
}
"""Where points are met, when not everywhere: what has no hosts has no workers and no gangs; the
mock's ledger lets an orphan be planted and something be out of reach for half a minute. A container
that has ended holds nothing, so that its end is its release.
"""
SLOW = ("adopt.", "disconnect.", "recall.")
"""Each costs a good part of a minute: one death of each, in rounds that are long enough."""
BEFORE_ALL = "adopt.commit.after"
"""Needs a store from before an end that was told: led to once, before there is any other job."""
TRIES = 4
"""How often a slow one is led to, before the round goes on without it."""
SLOW_FROM = 250
"""Kills of a round that is long enough for everything."""
EVERY_MINUTE = (
    "schedule.intent.before",
    "schedule.intent.after",
    "schedule.submit.after",
    "schedule.moved.after",
)
"""Met when a minute begins, in this order: who dies at one leaves those behind it for the next."""
SEASON = 10.0
"""Seconds after the beginning of a minute in which schedules' runs are due or catch up."""
BEFOREHAND = 1.5
HELP = {"find.": "launch.call.after:error"}
"""What else is armed: a launch whose answer is lost is looked up."""


class Armed(NamedTuple):
    """What the next server is to die at; without a name, at nothing."""

    name: str = ""
    passes: int = 1

    @property
    def environ(self) -> dict[str, str]:
        """The environment that arms it."""
        if not self.name:
            return {}
        help_ = [text for start, text in HELP.items() if self.name.startswith(start)]
        return {VARIABLE: ",".join([*help_, f"{self.name}:kill9@{self.passes}"])}


class Points:
    """Spreads kills evenly over all failpoints that a round on a backend can meet."""

    def __init__(self, dice: random.Random, backend: str, kills: int) -> None:
        self._dice = dice
        self.within = reach(backend, kills)
        self._misses: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.armed = Armed()

    def next(self, time: float) -> Armed:
        """What the next server dies at; `time` is the wall clock's, in seconds."""
        self.armed = Armed() if self._dice.random() < AT_RANDOM else self._choose(time)
        return self.armed

    def arm(self, name: str) -> Armed:
        """The next server dies at this one, at its first pass."""
        self.armed = Armed(name)
        return self.armed

    def _choose(self, time: float) -> Armed:
        season = time % 60 < SEASON or time % 60 > 60 - BEFOREHAND
        names = [name for name in self.within if self._wanted(name, season)]
        name = min(self._dice.sample(names, len(names)), key=lambda one: self._weight(one, season))
        often = name.startswith(OFTEN) and not self._misses[name]
        return Armed(name, self._dice.choice(PASSES) if often else 1)

    def _wanted(self, name: str, season: bool) -> bool:
        if name == BEFORE_ALL:
            return False
        if name.startswith(SLOW) and (self.hits[name] or self._misses[name] >= TRIES):
            return False
        return season or name not in EVERY_MINUTE

    def _weight(self, name: str, season: bool) -> float:
        """Least is next; a season is short, so what has one goes a little before the others."""
        if season and name in EVERY_MINUTE:
            return self.hits[name] - 2 + EVERY_MINUTE.index(name) / len(EVERY_MINUTE)
        return self.hits[name] + self._misses[name] / MISSES

    def told(self, *, reached: bool) -> None:
        """Whether the server that was armed last died there."""
        if not self.armed.name:
            return
        if reached:
            self.hits[self.armed.name] += 1
        else:
            self._misses[self.armed.name] += 1


def reach(backend: str, kills: int) -> list[str]:
    """The points that a round of so many kills on a backend can meet."""
    return [
        name
        for name in sorted(POINTS)
        if all(backend in where for start, where in ONLY_ON.items() if name.startswith(start))
        and (kills >= SLOW_FROM or not name.startswith(SLOW))
    ]


def unmet(rounds: Iterable[tuple[str, int, Mapping[str, int]]]) -> dict[str, str]:
    """Points that no server died at in any of these rounds, with why that is; empty: it is wrong.

    A round is its backend, its kills and its deaths by point.
    """
    told = list(rounds)
    within = {name for backend, kills, _ in told for name in reach(backend, kills)}
    met = {name for _, _, hits in told for name, count in hits.items() if count}
    enough = bool(told) and min(kills for _, kills, _ in told) >= SLOW_FROM
    return {name: _why(name, within, enough) for name in sorted(POINTS.keys() - met)}


def _why(name: str, within: set[str], enough: bool) -> str:
    if name not in within:
        return "not on these backends, or it takes a longer round"
    return "" if enough else "the round was too short"
