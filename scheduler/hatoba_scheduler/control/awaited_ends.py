"""Ends that a backend saw of attempts whose runners have yet to commit.

Where the runner stands in a pod or an image, nobody but it decides how a claimed attempt ended, as
long as it may still do so. What a backend sees of such an end is held back here until the runner's
time is over, and then looked at anew. A platform may have run the attempt twice: what is seen of
another run than the one that was granted says nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from hatoba.runs import same_run
from hatoba_plugins.backend import Clock
from hatoba_plugins.runner import CLAIM_REFUSED
from hatoba_plugins.values import Observation, Phase
from hatoba_scheduler.control.todo import Todo
from hatoba_scheduler.domain.records import Attempt
from hatoba_scheduler.domain.states import AttemptState

COMMIT_BUDGET = 600.0
"""Seconds that a runner in a pod has for its commit once the user's command ended."""
IN_FLIGHT = 10.0
"""Seconds until a commit that a runner sent before it ended has certainly come."""
SILENCE = 30.0
"""Seconds without a heartbeat, which comes every 10 s, after which a runner does not live."""
LOOK_AGAIN = 5.0


class Place(Enum):
    """Where a backend's runners stand."""

    HOST = "host"
    POD = "pod"
    IMAGE = "image"
    NONE = "none"


class Bearing(Enum):
    """What is to be made of an end that was seen."""

    DECIDES = 1
    """It is how the attempt ended."""
    WAITS = 2
    """The runner may still say better."""
    OTHERS = 3
    """It says nothing of the run that was granted, which lives as far as is known."""
    SILENT = 4
    """It says nothing of the run that was granted, and that has not been heard of for a while."""


class AwaitedEnds:
    """One backend's. `heard` tells when an attempt's runner was heard of last, by the clock's
    monotonic seconds; below 0: never."""

    def __init__(self, clock: Clock, place: Place, heard: Callable[[str], float]) -> None:
        self._clock = clock
        self._place = place
        self._heard = heard
        self._since: dict[str, float] = {}
        self._due = Todo(clock)

    def __len__(self) -> int:
        return len(self._since)

    @property
    def elsewhere(self) -> bool:
        """Whether runners are in pods or images, and nobody but they know when code begins."""
        return self._place in (Place.POD, Place.IMAGE)

    @property
    def sees_start(self) -> bool:
        """Whether the backend's RUNNING means that the user's code runs."""
        return self._place is not Place.IMAGE

    def saw(self, seen: Observation) -> None:
        """Something was seen: what lives has not ended, whatever was thought before."""
        if seen.reachable and seen.phase < Phase.ENDED:
            self.forget(seen.name)

    def forget(self, name: str) -> None:
        """The attempt is over, or lives."""
        if self._since.pop(name, None) is not None:
            self._due.discard(name)

    def bearing(self, attempt: Attempt, seen: Observation) -> Bearing:
        """What an end that was seen of a live attempt is to be taken for, now."""
        if not (fenced(attempt, seen) and self.elsewhere) or _nobody_can_commit(attempt, seen):
            return Bearing.DECIDES
        left = self._left(attempt, seen)
        if of_others(attempt, seen) and attempt.state is not AttemptState.STOPPING:
            self._due.add_later(attempt.name, left if left > 0 else SILENCE)
            return Bearing.OTHERS if left > 0 else Bearing.SILENT
        if left > 0:
            self._due.add_later(attempt.name, left)
            return Bearing.WAITS
        self.forget(attempt.name)
        return Bearing.DECIDES

    def _left(self, attempt: Attempt, seen: Observation) -> float:
        """Seconds that the runner still has, counted from when it was heard of last."""
        now = self._clock.monotonic()
        since = self._since.setdefault(attempt.name, now)
        return max(since, self._heard(attempt.name)) + self._wait(attempt, seen) - now

    def _wait(self, attempt: Attempt, seen: Observation) -> float:
        if of_others(attempt, seen):
            # A stop reaches every run of the name; one that began may be long in ending.
            began = attempt.start_time or self._heard(attempt.name) >= 0
            stops = attempt.state is AttemptState.STOPPING
            return COMMIT_BUDGET if stops and began else SILENCE
        commits = self._place is Place.POD and not seen.runner_gone
        if commits and attempt.nonce and seen.phase is Phase.ENDED:
            return COMMIT_BUDGET
        return IN_FLIGHT if same_run(attempt.nonce, seen.run) else SILENCE

    async def due(self, limit: int) -> list[str]:
        """At most so many attempts that are to be looked at anew, once there is one."""
        names = [name for name in await self._due.take(limit) if name in self._since]
        for name in names:
            self._due.add_later(name, LOOK_AGAIN)
        return names


def fenced(attempt: Attempt, seen: Observation) -> bool:
    """Whether its end is its runner's to commit."""
    return attempt.fenced and not seen.unfenced


def _nobody_can_commit(attempt: Attempt, seen: Observation) -> bool:
    """Nobody was granted it, and who asks from now on will not be: it is over, or is to end."""
    return not attempt.nonce and (not refused(seen) or attempt.state is AttemptState.STOPPING)


def of_others(attempt: Attempt, seen: Observation) -> bool:
    """Whether it was seen of another run than the one that holds the claim."""
    if not attempt.nonce or seen.phase is Phase.GONE:
        return False
    ours = same_run(attempt.nonce, seen.run)
    return ours is False or (ours is None and refused(seen))


def refused(seen: Observation) -> bool:
    """Whether it is the end of a run whose claim was refused."""
    return seen.exit is not None and seen.exit.code == CLAIM_REFUSED
