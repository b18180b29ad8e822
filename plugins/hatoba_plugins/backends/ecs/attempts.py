"""What is known of attempts on ECS: by name their task, how it was last seen, what was asked of it.

Stopped tasks are told for an hour only. How one ended is remembered from when it was seen; what
vanished without having been seen to end is lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hatoba.runs import run_mark
from hatoba_plugins.aws.tags import AwsOwner, mapped, owner_of
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.ecs.calls import EcsCalls, Item
from hatoba_plugins.backends.ecs.names import cluster_of, submitted_at
from hatoba_plugins.backends.ecs.options import EcsOptions
from hatoba_plugins.backends.ecs.slots import seconds
from hatoba_plugins.backends.ecs.states import observation_of
from hatoba_plugins.errors import Conflict
from hatoba_plugins.runner import CLAIM_REFUSED
from hatoba_plugins.settling import Settling
from hatoba_plugins.values import (
    Absent,
    FindOutcome,
    Found,
    Handle,
    Observation,
    Phase,
    Ref,
    Unsure,
)

HANDLE_VERSION = 1
MARKS = 100_000
"""Names that are remembered after they were stopped before their launch, or let go of."""
TOLD_FOR = 3_000.0
"""Seconds for which a stopped task is told of at least: an hour, less a margin."""
TIMEOUT_TAG = "hatoba:timeout"
"""Seconds after which we stop what has no runner."""
T = TypeVar("T")


@dataclass(slots=True)
class Known:
    """One attempt and its task."""

    name: str
    owner: AwsOwner
    arn: str
    seen: Observation
    started: float = 0.0
    stopped: float = 0.0
    timeout: float = 0.0
    stopping: str = ""
    """The reason that was given when its stop was asked for."""

    @property
    def handle(self) -> Handle:
        """What the core keeps."""
        return Handle(HANDLE_VERSION, self.arn)

    @property
    def live(self) -> bool:
        """Whether its task may still change."""
        return self.seen.phase < Phase.ENDED


class Attempts:
    """The book of attempts of one opened instance."""

    def __init__(
        self,
        calls: EcsCalls,
        options: EcsOptions,
        ctx: BackendContext,
        tell: Callable[[Observation], None],
    ) -> None:
        self._calls = calls
        self._options = options
        self._ctx = ctx
        self._tell = tell
        self.settling = Settling(ctx.clock, options.find_settles_after)
        self.known: dict[str, Known] = {}
        self._marks: OrderedDict[str, None] = OrderedDict()
        self._released: OrderedDict[str, Observation] = OrderedDict()

    # -- what was asked -------------------------------------------------------------------------

    def mark(self, name: str) -> None:
        """It was stopped before anything of it was there: a late launch is refused."""
        _remember(self._marks, name, None)

    def marked(self, name: str) -> bool:
        """Whether it was stopped before it was there."""
        return name in self._marks

    def release(self, name: str) -> None:
        """The core has let go of it."""
        known = self.known.pop(name, None)
        if known is not None:
            _remember(self._released, name, known.seen)

    def released(self, name: str) -> bool:
        """Whether the core has let go of it."""
        return name in self._released

    # -- seeing ---------------------------------------------------------------------------------

    def took(self, task: Item, *, looked: bool = True, chosen: bool = False) -> Known | None:
        """Take note of a task; None when it is no attempt of ours.

        What RunTask answers with is not `looked` up: look-ups may lag behind it. One that was
        `chosen` among all runs of its name takes the place of another.
        """
        owner = self._owner(task)
        if owner is None:
            return None
        if looked:
            self.settling.seen(owner.name)
        seen = observation_of(owner.name, task)
        if self.released(owner.name):
            return Known(owner.name, owner, task["taskArn"], seen)
        known = self.known.get(owner.name)
        other = known is not None and known.arn != task["taskArn"]
        if known is None or (other and (chosen or _better(seen, known.seen))):
            known = self.known[owner.name] = Known(owner.name, owner, task["taskArn"], seen)
            known.timeout = float(mapped(task["tags"]).get(TIMEOUT_TAG, 0.0))
            self._tell(seen)
        elif known.arn == task["taskArn"]:
            self._saw(known, seen)
        if known.arn == task["taskArn"]:
            known.started = seconds(task.get("startedAt"))
            known.stopped = seconds(task.get("stoppedAt"))
        return known

    def _owner(self, task: Item) -> AwsOwner | None:
        owner = owner_of(mapped(task.get("tags") or []))
        return owner if owner is not None and owner.cluster_id == self._ctx.cluster_id else None

    def _saw(self, known: Known, seen: Observation) -> None:
        """An end is final, and phases only grow."""
        if known.live and seen != known.seen and seen.phase >= known.seen.phase:
            known.seen = seen
            self._tell(seen)

    def missed(self, name: str) -> Observation:
        """Its task is not told of: it ended before, cannot be seen yet, or is gone."""
        known = self.known.get(name)
        ended = known.seen if known and not known.live else self._released.get(name)
        if ended is not None:
            return ended
        if self.settling.settled_in(name) > 0:
            return self.unreachable(name)
        gone = Observation(name, Phase.GONE, exists=False)
        if known is not None:
            self._saw(known, gone)
        return gone

    def unreachable(self, name: str) -> Observation:
        """It cannot be asked about now; an end that was seen stays one."""
        known = self.known.get(name)
        if known is None:
            return Observation(name, Phase.EXISTS, exists=True, reachable=False)
        if not known.live:
            return known.seen
        return Observation(name, known.seen.phase, exists=True, reachable=False, run=known.arn)

    # -- looking up -----------------------------------------------------------------------------

    async def look_up(self, name: str, clusters: Sequence[str] = ()) -> Known | None:
        """The task of a name, live. Raises Conflict for one that is not ours."""
        for cluster in clusters or self._options.clusters:
            tasks = await self._calls.tasks_started_by(cluster, name)
            ours = [task for task in tasks if self._owner(task)]
            if tasks and not ours:
                raise Conflict(
                    f"a task of cluster {cluster!r} was started as {name!r} and is not ours",
                    evidence=str(tasks[0]["taskArn"]),
                )
            if ours:
                return self.took(_best(ours), chosen=True)
        return None

    async def of_run(self, name: str, mark: str) -> Observation:
        """How the run that holds the claim is, among several of a name."""
        for cluster in self._options.clusters:
            for task in await self._calls.tasks_started_by(cluster, name):
                if run_mark(task["taskArn"]) == mark:
                    return observation_of(name, task)
        return Observation(name, Phase.GONE, exists=False)

    async def look_at(self, arns: Iterable[str]) -> set[str]:
        """See these tasks; ARNs of those that are told of."""
        by_cluster: dict[str, list[str]] = {}
        for arn in arns:
            by_cluster.setdefault(cluster_of(arn), []).append(arn)
        found: set[str] = set()
        for cluster, some in by_cluster.items():
            tasks = await self._calls.describe(cluster, some)
            found |= tasks.keys()
            for task in tasks.values():
                await self._took(task)
        return found

    async def _took(self, task: Item) -> None:
        """Take note; where a claim was refused, of the run whose claim was granted."""
        owner = self._owner(task)
        if owner is not None and _refused(observation_of(owner.name, task)):
            runs = await self._calls.tasks_started_by(cluster_of(task["taskArn"]), owner.name)
            best = _best([one for one in runs if self._owner(one)] or [task])
            self.took(best, chosen=True)
        else:
            self.took(task)

    async def look_around(self) -> None:
        """See all tasks that there are."""
        for cluster in self._options.clusters:
            async for task in self._calls.all_tasks(cluster):
                await self._took(task)

    async def find(self, ref: Ref) -> FindOutcome:
        """Whether it is there, by its name, live."""
        try:
            known = await self.look_up(ref.name)
        except Conflict:
            return Absent(ref.name)
        if known is not None:
            return Found(ref.name, known.handle, known.seen.phase)
        earlier = self.known.get(ref.name)
        if earlier is not None and not earlier.live and earlier.seen.phase is Phase.ENDED:
            return Found(ref.name, earlier.handle, Phase.ENDED)
        if (after := self.settling.settled_in(ref.name)) > 0:
            return Unsure(ref.name, after)
        if self._may_have_ended(ref.name):
            return Found(ref.name, Handle(HANDLE_VERSION, ""))
        return Absent(ref.name)

    def _may_have_ended(self, name: str) -> bool:
        """Whether it may have run and been forgotten by ECS: then it is lost, not absent.

        With a runner nothing has run that did not claim, so that it may be launched again.
        """
        submitted = submitted_at(name)
        if self._options.runner != "none" or submitted is None:
            return False
        return self._ctx.clock.time() - submitted > TOLD_FOR


def _best(runs: Sequence[Item]) -> Item:
    """The run of a name that counts; the oldest of equals."""
    best = runs[0]
    for one in runs[1:]:
        best = one if _better(_seen(one), _seen(best)) else best
    return best


def _seen(task: Item) -> Observation:
    return observation_of("", task)


def _better(one: Observation, other: Observation) -> bool:
    """Of two runs of a name the living one counts, else the one whose claim was not refused."""
    if (one.phase < Phase.ENDED) != (other.phase < Phase.ENDED):
        return one.phase < Phase.ENDED
    return _refused(other) and not _refused(one)


def _refused(seen: Observation) -> bool:
    return seen.exit is not None and seen.exit.code == CLAIM_REFUSED


def _remember(names: OrderedDict[str, T], name: str, what: T) -> None:
    names[name] = what
    while len(names) > MARKS:
        names.popitem(last=False)
