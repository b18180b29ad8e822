"""What this process knows of the jobs at Batch, and what it has asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hatoba_plugins.aws import AwsOwner, owner_of
from hatoba_plugins.aws.tags import RELEASED
from hatoba_plugins.backend import Clock
from hatoba_plugins.backends.batch_spot.states import Detail, seen
from hatoba_plugins.values import Observation, Phase

MARKS = 100_000
"""Names of stops and of strangers that are remembered; the oldest are forgotten."""


@dataclass(slots=True)
class Known:
    """A job of ours that is not released."""

    owner: AwsOwner
    job_id: str
    arn: str
    queue: str
    seen: Observation
    at: float
    """When it was seen so, by the monotonic clock."""
    terminate_at: float = 0.0
    """When it is to be ended by force; 0: it is not."""

    @property
    def active(self) -> bool:
        """Whether it may still change."""
        return self.seen.phase < Phase.ENDED


class Marks:
    """A bounded set of names."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str) -> None:
        """Remember a name."""
        self._names[name] = None
        if len(self._names) > MARKS:
            self._names.popitem(last=False)


class Book:
    """All jobs of ours that are known, by name."""

    def __init__(self, clock: Clock, cluster_id: str) -> None:
        self._clock = clock
        self._cluster_id = cluster_id
        self._known: dict[str, Known] = {}
        self._ids: dict[str, str] = {}
        self.not_ours = Marks()
        """Ids of jobs that were looked at and are others', or released."""

    def __getitem__(self, name: str) -> Known:
        return self._known[name]

    def get(self, name: str) -> Known | None:
        """What is known of an attempt."""
        return self._known.get(name)

    def by_id(self, job_id: str) -> Known | None:
        """What is known of a job."""
        return self._known.get(self._ids.get(job_id, ""))

    def all(self) -> list[Known]:
        """Everything that is not released."""
        return list(self._known.values())

    def active(self) -> Iterator[Known]:
        """What may still change."""
        return (one for one in self._known.values() if one.active)

    def take(self, detail: Detail, owner: AwsOwner) -> Observation | None:
        """Take over what Batch says of a job; None: it says nothing new."""
        name, now = owner.name, self._clock.monotonic()
        told = seen(name, detail)
        known = self._known.get(name)
        if known is None or known.job_id != detail["jobId"]:
            self._put(
                Known(owner, detail["jobId"], detail["jobArn"], detail["jobQueue"], told, now)
            )
            return told
        known.at = now
        # Replies may overtake one another, and what has ended stays so.
        if told == known.seen or told.phase < known.seen.phase or not known.active:
            return None
        known.seen = told
        return told

    def _put(self, known: Known) -> None:
        self.drop(known.owner.name)
        self._known[known.owner.name] = known
        self._ids[known.job_id] = known.owner.name

    def drop(self, name: str) -> None:
        """Forget a job: it was released, or is gone."""
        known = self._known.pop(name, None)
        if known is not None:
            self._ids.pop(known.job_id, None)

    def let_go(self, job_id: str) -> None:
        """It is not ours, or not any more: forget it, and do not look at it again."""
        self.not_ours.add(job_id)
        self.drop(self._ids.get(job_id, ""))

    def owner(self, detail: Detail) -> AwsOwner | None:
        """Whose job it is, when it is ours; None: somebody else's, or another cluster's."""
        owner = owner_of(tags_of(detail))
        ours = owner is not None and owner.cluster_id == self._cluster_id
        return owner if ours and owner and owner.name == detail.get("jobName") else None


def tags_of(detail: Detail) -> Mapping[str, str]:
    """A job's tags."""
    return detail.get("tags") or {}


def is_released(detail: Detail) -> bool:
    """Whether the core has let go of it."""
    return RELEASED in tags_of(detail)
