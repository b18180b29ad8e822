"""What ECS's circuit breaker does not notice."""

from __future__ import annotations

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.ecs.watchdogs import (
    WINDOW,
    Progress,
    churning,
    churns,
    no_progress,
)


def test_no_progress_counts_from_the_last_progress() -> None:
    progress = Progress()
    progress.saw(0, 2, 0.0)
    assert not progress.stuck(60.0, 59.0)
    progress.saw(1, 2, 59.0)
    assert not progress.stuck(60.0, 100.0)
    progress.saw(1, 2, 119.0)
    assert progress.stuck(60.0, 119.0)
    progress.saw(2, 2, 120.0)
    assert not progress.stuck(60.0, 1_000.0)


def test_another_number_begins_anew() -> None:
    progress = Progress()
    progress.saw(0, 1, 0.0)
    progress.saw(0, 3, 50.0)
    assert not progress.stuck(60.0, 70.0)


def test_what_is_stuck_says_what_ecs_said() -> None:
    progress = Progress()
    progress.saw(1, 3, 0.0)
    cause = no_progress(progress, 7, 900.0, "was unable to place a task")
    assert "Revision 7 has 1 of 3 replicas ready" in cause.message
    assert "was unable to place a task" in cause.message


def test_a_few_ends_are_no_churn() -> None:
    assert churns([1.0, 2.0, 3.0], 1, 10.0) == 0
    assert churns([1.0, 2.0, 3.0, 4.0], 1, 10.0) == 4
    assert churns([1.0, 2.0, 3.0, 4.0], 4, 10.0) == 0
    assert churns([1.0, 2.0, 3.0, 4.0], 1, WINDOW + 3.5) == 0


def test_churn_is_the_fault_of_what_ended() -> None:
    last = common_pb2.Cause(origin=common_pb2.ORIGIN_INFRASTRUCTURE, message="It was lost.")
    cause = churning(5, 2, last)
    assert cause.origin == common_pb2.ORIGIN_INFRASTRUCTURE
    assert "5 tasks of revision 2 ended" in cause.message
    assert "It was lost." in cause.message
