"""All Jobs of this installation in a namespace, with their pods, as the two watches tell them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from hatoba.runs import run_mark
from hatoba_plugins.backend import Clock
from hatoba_plugins.backends.k8s_gpu.objects import SeenJob, SeenPod, seen_job, seen_pod
from hatoba_plugins.backends.k8s_gpu.states import observed
from hatoba_plugins.feed import Feed
from hatoba_plugins.values import CapacitySnapshot, Exit, Gap, Observation, Phase

Json = Mapping[str, Any]
News = Observation | CapacitySnapshot


PATIENCE = 2.0
"""Seconds in which the pod of a finished Job may still come to be seen: it knows more."""


class Board:
    """What is known, and what was told of it. Phases only grow, and an end stays as it was told."""

    def __init__(self, clock: Clock) -> None:
        self.jobs: dict[str, SeenJob] = {}
        self.pods: dict[str, dict[str, SeenPod]] = {}
        """By Job, then by name."""
        self.feed: Feed[News] = Feed()
        self.capacity: CapacitySnapshot | None = None
        self.opened = asyncio.Event()
        self.changed: Callable[[SeenJob], None] = lambda _: None
        """Called with each Job of which something changed."""
        self.others: Callable[[str], None] = lambda _: None
        """Called with the name of a replica of whose pods something changed."""
        self.gap: Callable[[], None] = lambda: None
        """Called when something may have been missed."""
        self._clock = clock
        self._told: dict[str, Observation] = {}
        self._of_member: dict[str, str] = {}
        self._dropped: set[str] = set()
        self._late: dict[str, float] = {}

    # -- what is known --------------------------------------------------------------------------

    def now(self) -> list[News | Gap]:
        """All that a watch begins with."""
        told: list[News | Gap] = list(self._told.values())
        return [self.capacity, *told] if self.capacity else told

    def told(self, name: str, mark: str = "") -> Observation | None:
        """An attempt as it is known now, of several runs that of this mark; None: unknown."""
        told, job = self._told.get(name), self.job_of(name)
        if told is None or job is None or not mark or run_mark(told.run) == mark:
            return told
        return observed(job, job.members.index(name), self.pods_of(job.name), mark)

    def job_of(self, name: str) -> SeenJob | None:
        """The Job that an attempt belongs to."""
        return self.jobs.get(self._of_member.get(name, name))

    def pods_of(self, job: str) -> list[SeenPod]:
        """Pods of a Job."""
        return list(self.pods.get(job, {}).values())

    def leaves(self, name: str) -> bool:
        """Whether the Job of an attempt is being deleted, and has not been seen to be gone."""
        job = self.job_of(name)
        return job is not None and job.deleting

    def open(self) -> None:
        """Both watches have told what there is: from now on it can be told further."""
        self.opened.set()
        for job in list(self.jobs.values()):
            self._look(job, certain=True)

    def describe(self, capacity: CapacitySnapshot) -> None:
        """There is as much room as this."""
        self.capacity = capacity
        self.feed.publish([capacity])

    def missed(self) -> None:
        """Tell that something may have been missed."""
        if self.opened.is_set():
            self.feed.publish([Gap()])
            self.gap()

    def tick(self) -> None:
        """Time went by: of Jobs whose pod was waited for the condition has to do."""
        now = self._clock.monotonic()
        for name in [name for name, due in self._late.items() if due <= now]:
            del self._late[name]
            if job := self.jobs.get(name):
                self._look(job, certain=True)

    # -- Jobs -----------------------------------------------------------------------------------

    def put_job(self, job: SeenJob) -> None:
        """A Job as it is now."""
        self.jobs[job.name] = job
        self._dropped.discard(job.name)
        for member in job.members:
            self._of_member[member] = job.name
        self._look(job)

    def drop_job(self, name: str) -> None:
        """A Job is gone; its attempts are once its pods are as well."""
        if name not in self.jobs:
            return
        self._dropped.add(name)
        if not self.pods.get(name):
            self._bury(name)

    def _bury(self, name: str) -> None:
        job = self.jobs.pop(name)
        self._dropped.discard(name)
        self._late.pop(name, None)
        for member in job.members:
            self._of_member.pop(member, None)
            if self._told.pop(member, None) and self.opened.is_set():
                bare = job.runner == "none"
                gone = Observation(member, Phase.GONE, exists=False, unfenced=bare)
                self.feed.publish([gone])

    # -- pods -----------------------------------------------------------------------------------

    def put_pod(self, pod: SeenPod) -> None:
        """A pod as it is now."""
        self.pods.setdefault(pod.job, {})[pod.name] = pod
        if job := self.jobs.get(pod.job):
            self._look(job)
        else:
            self.others(pod.job)

    def drop_pod(self, job: str, name: str) -> None:
        """A pod is gone."""
        held = self.pods.get(job)
        if held is None or held.pop(name, None) is None:
            return
        if not held:
            del self.pods[job]
        if job in self._dropped and not held:
            self._bury(job)
        elif known := self.jobs.get(job):
            self._look(known)
        else:
            self.others(job)

    # -- telling --------------------------------------------------------------------------------

    def _look(self, job: SeenJob, *, certain: bool = False) -> None:
        if not self.opened.is_set() or job.name in self._dropped:
            return
        pods = self.pods.get(job.name, {}).values()
        if not certain and not pods and job.finished and self._late_pod(job):
            return
        news = [seen for index in range(len(job.members)) if (seen := self._news(job, index, pods))]
        if news:
            self.feed.publish(news)
        self.changed(job)

    def _late_pod(self, job: SeenJob) -> bool:
        """Whether its pod may yet be told of, by a watch that is a little behind the other."""
        if all(self._ended(member) for member in job.members):
            return False
        self._late.setdefault(job.name, self._clock.monotonic() + PATIENCE)
        return True

    def _ended(self, member: str) -> bool:
        told = self._told.get(member)
        return told is not None and told.phase is Phase.ENDED

    def _news(self, job: SeenJob, index: int, pods: Iterable[SeenPod]) -> Observation | None:
        seen = observed(job, index, pods)
        before = self._told.get(seen.name)
        if before is not None:
            seen = grown(before, seen)
        if seen == before:
            return None
        self._told[seen.name] = seen
        # Which pod it is, and that a runner is gone as well, is for those who ask.
        same = before is not None and _news_of(before) == _news_of(seen)
        return None if same else seen


def _news_of(seen: Observation) -> tuple[Phase, str, Exit | None]:
    return seen.phase, seen.host, seen.ending


def grown(before: Observation, now: Observation) -> Observation:
    """What is known after `before`: no earlier phase, and no other end."""
    if before.phase is Phase.ENDED:
        return replace(before, runner_gone=before.runner_gone or now.runner_gone)
    if now.phase < before.phase:
        return before
    return replace(now, host=now.host or before.host, run=now.run or before.run)


class JobFollower:
    """Puts Jobs on the board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._named: set[str] = set()

    def begin(self) -> None:
        """Nothing is named yet."""
        self._named.clear()

    def seen(self, told: Json) -> None:
        """A Job; one whose labels are not an attempt's is somebody else's. Half made it is none."""
        job = seen_job(told)
        if job is not None and not job.half:
            self._named.add(job.name)
            self._board.put_job(job)

    def gone(self, told: Json) -> None:
        """A Job was deleted."""
        self._board.drop_job(told["metadata"]["name"])

    def listed(self) -> None:
        """What was not named is gone."""
        for name in set(self._board.jobs) - self._named:
            self._board.drop_job(name)
        self._named.clear()

    def missed(self) -> None:
        """Tell that something may have been."""
        self._board.missed()


class PodFollower:
    """Puts pods on the board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._named: set[str] = set()

    def begin(self) -> None:
        """Nothing is named yet."""
        self._named.clear()

    def seen(self, told: Json) -> None:
        """A pod."""
        pod = seen_pod(told)
        self._named.add(pod.name)
        self._board.put_pod(pod)

    def gone(self, told: Json) -> None:
        """A pod was deleted: how it was last may be how it ended."""
        pod = seen_pod(told)
        self._board.put_pod(pod)
        self._board.drop_pod(pod.job, pod.name)

    def listed(self) -> None:
        """What was not named is gone."""
        held = [(pod.job, pod.name) for of in self._board.pods.values() for pod in of.values()]
        for job, name in held:
            if name not in self._named:
                self._board.drop_pod(job, name)
        self._named.clear()

    def missed(self) -> None:
        """The Jobs' follower tells it."""
