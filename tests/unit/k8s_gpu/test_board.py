"""What two watches tell, in any order, becomes news that only go forward."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from hatoba.runs import run_mark
from hatoba_plugins.backends.k8s_gpu.board import PATIENCE, Board, JobFollower, PodFollower
from hatoba_plugins.backends.k8s_gpu.objects import seen_job
from hatoba_plugins.backends.k8s_gpu.states import observed
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import ExitKind, Observation, Phase

CORPUS = Path(__file__).parents[2] / "corpus" / "k8s_gpu"
NAME = "h1-aa-0-1"


def corpus(name: str) -> dict[str, Any]:
    return dict(json.loads((CORPUS / f"{name}.json").read_text()))


class Watched:
    """A board, its followers, and what it told."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.board = Board(self.clock)
        self.jobs, self.pods = JobFollower(self.board), PodFollower(self.board)
        self.news: list[Observation] = []
        publish = self.board.feed.publish

        def heard(items: Any) -> None:
            told = list(items)
            self.news += [one for one in told if isinstance(one, Observation)]
            publish(told)

        self.board.feed.publish = heard  # type: ignore[method-assign]

    def phases(self) -> list[Phase]:
        return [one.phase for one in self.news]


@pytest.fixture
def watched() -> Watched:
    made = Watched()
    made.board.open()
    return made


def test_an_attempt_from_its_job_to_its_end(watched: Watched) -> None:
    running, ended = corpus("running"), corpus("succeeded")
    watched.jobs.seen(running["job"])
    for name in ("unschedulable_gpu", "init_runs", "running"):
        watched.pods.seen(corpus(name)["pods"][0])
    watched.pods.seen(ended["pods"][0])
    watched.jobs.seen(ended["job"])
    assert watched.phases() == [Phase.WAITING, Phase.STARTING, Phase.RUNNING, Phase.ENDED]
    assert watched.news[-1].exit is not None
    assert watched.news[-1].exit.kind is ExitKind.EXITED


def test_an_end_stays_as_it_was_told(watched: Watched) -> None:
    """A kubelet that restarts may say of a completed pod that its admission failed."""
    watched.jobs.seen(corpus("running")["job"])
    watched.pods.seen(corpus("main_ended_sidecar_commits")["pods"][0])
    watched.pods.seen(corpus("admission_after_completion")["pods"][0])
    ends = [one for one in watched.news if one.phase is Phase.ENDED]
    assert [one.exit.kind for one in ends if one.exit] == [ExitKind.EXITED]
    told = watched.board.told(NAME)
    assert told is not None
    assert told.runner_gone, "who asks is told that no commit will come"


def test_a_finished_job_waits_a_little_for_its_pod(watched: Watched) -> None:
    """The pod knows more: that the kernel killed a child, although the exit code was 0."""
    told = corpus("oom_killed_exit_0")
    watched.jobs.seen(told["job"])
    assert watched.news == []
    watched.pods.seen(told["pods"][0])
    assert watched.news[-1].exit is not None
    assert watched.news[-1].exit.kind is ExitKind.OUT_OF_MEMORY


async def test_a_finished_job_whose_pod_is_gone_tells_what_it_kept(watched: Watched) -> None:
    watched.jobs.seen(corpus("exit_3_pod_deleted")["job"])
    watched.board.tick()
    assert watched.news == []
    await watched.clock.advance(PATIENCE + 1)
    watched.board.tick()
    assert watched.news[-1].exit is not None
    assert watched.news[-1].exit.code == 3


def test_nothing_is_told_before_both_have_listed() -> None:
    watched = Watched()
    told = corpus("running")
    watched.jobs.seen(told["job"])
    watched.pods.seen(told["pods"][0])
    assert watched.news == []
    watched.board.open()
    assert watched.phases() == [Phase.RUNNING]


def test_a_pod_that_is_deleted_tells_its_end_last(watched: Watched) -> None:
    watched.jobs.seen(corpus("running")["job"])
    watched.pods.seen(corpus("running")["pods"][0])
    watched.pods.gone(corpus("evicted_by_drain")["pods"][0])
    assert watched.news[-1].exit is not None
    assert watched.news[-1].exit.kind is ExitKind.PREEMPTED
    assert watched.news[-1].host == "gpu-7"


def test_a_running_pod_that_is_being_deleted_tells_what_for(watched: Watched) -> None:
    """The kubelet keeps the end of its containers to itself until the last of them is gone."""
    watched.jobs.seen(corpus("running")["job"])
    watched.pods.seen(corpus("running")["pods"][0])
    for _ in range(2):
        watched.pods.seen(corpus("evicting_and_running")["pods"][0])
    assert watched.phases() == [Phase.WAITING, Phase.RUNNING, Phase.RUNNING]
    endings = [one.ending.kind for one in watched.news if one.ending is not None]
    assert endings == [ExitKind.PREEMPTED]


def test_a_deleted_job_is_gone_once_its_pods_are(watched: Watched) -> None:
    told = corpus("running")
    watched.jobs.seen(told["job"])
    watched.pods.seen(told["pods"][0])
    watched.jobs.gone(told["job"])
    assert watched.phases() == [Phase.WAITING, Phase.RUNNING]
    watched.pods.gone(told["pods"][0])
    assert watched.news[-1] == Observation(NAME, Phase.GONE, exists=False)
    assert watched.board.told(NAME) is None


def test_what_a_list_does_not_name_is_gone(watched: Watched) -> None:
    told = corpus("succeeded")
    watched.jobs.seen(told["job"])
    watched.pods.seen(told["pods"][0])
    for follower in (watched.jobs, watched.pods):
        follower.begin()
        follower.listed()
    assert watched.phases()[-1] is Phase.GONE
    assert not watched.board.jobs
    assert not watched.board.pods


def test_each_member_of_a_gang_is_told_of(watched: Watched) -> None:
    job = copy.deepcopy(corpus("running")["job"])
    job["metadata"]["annotations"]["hatoba.dev/members"] = json.dumps(["m-0", "m-1"])
    watched.jobs.seen(job)
    pod = copy.deepcopy(corpus("running")["pods"][0])
    pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": "1"}
    watched.pods.seen(pod)
    told = {one.name: one.phase for one in watched.news}
    assert told == {"m-0": Phase.WAITING, "m-1": Phase.RUNNING}
    found = watched.board.job_of("m-1")
    assert found is not None
    assert found.name == NAME


def test_a_gang_that_is_half_made_is_told_of_once_it_is_whole_or_stopped(watched: Watched) -> None:
    job = copy.deepcopy(corpus("running")["job"])
    notes = job["metadata"]["annotations"]
    notes |= {"hatoba.dev/members": json.dumps(["m-0"]), "hatoba.dev/half-made": "true"}
    watched.jobs.seen(job)
    assert watched.news == []
    assert watched.board.told("m-0") is None
    for changes in ({"hatoba.dev/verdict": '{"kind": "stopped"}'}, {}):
        other = copy.deepcopy(job)
        other["metadata"]["annotations"] |= changes
        if not changes:
            del other["metadata"]["annotations"]["hatoba.dev/half-made"]
        fresh = Watched()
        fresh.board.open()
        fresh.jobs.seen(other)
        assert [one.name for one in fresh.news] == ["m-0"]


def test_of_two_pods_the_one_that_claimed_is_spoken_of(watched: Watched) -> None:
    told = corpus("running")
    (winner,) = told["pods"]
    loser = copy.deepcopy(winner)
    loser["metadata"] |= {"name": "loser", "uid": "u-loser"}
    watched.jobs.seen(told["job"])
    watched.pods.seen(loser)
    watched.pods.seen(winner)
    uid = winner["metadata"]["uid"]
    for run in (uid, "u-loser"):
        seen = watched.board.told(NAME, run_mark(run))
        assert seen is not None
        assert (seen.run, seen.phase) == (run, Phase.RUNNING)
    watched.pods.gone(winner)
    seen = watched.board.told(NAME, run_mark(uid))
    assert seen is not None
    assert (seen.phase, seen.exists) == (Phase.GONE, False)


def test_who_claimed_and_left_nothing_ended_as_the_job_keeps_it(watched: Watched) -> None:
    job = copy.deepcopy(corpus("running")["job"])
    message = "Container {} for pod ml/{} failed with exit code {} matching FailJob rule at index 2"
    condition = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}
    for code, phase in ((3, Phase.ENDED), (83, Phase.GONE)):
        condition["message"] = message.format("main", NAME, code)
        job["status"] = {"conditions": [condition]}
        made = seen_job(job)
        assert made is not None
        assert observed(made, 0, [], run_mark("gone")).phase is phase


def test_a_job_leaves_from_its_deletion_until_its_pods_are_gone(watched: Watched) -> None:
    ended = corpus("succeeded")
    watched.jobs.seen(ended["job"])
    watched.pods.seen(ended["pods"][0])
    name = ended["job"]["metadata"]["name"]
    assert not watched.board.leaves(name)
    going = copy.deepcopy(ended["job"])
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    watched.jobs.seen(going)
    assert watched.board.leaves(name)
    watched.jobs.gone(going)
    assert watched.board.leaves(name)
    watched.pods.gone(ended["pods"][0])
    assert not watched.board.leaves(name)
