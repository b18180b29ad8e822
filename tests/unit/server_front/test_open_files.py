"""A server has as many files as it may, and says when its devices need more."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from hatoba_scheduler.open_files import OWN, FileWatch, allow_most


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    found = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, found)


def test_the_soft_limit_goes_up_to_the_hard_one(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
    assert allow_most() == hard
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def warnings(watch: FileWatch) -> list[int]:
    """Numbers of devices of which a look warns."""
    with capture_logs() as told:
        watch.look()
    return [one["devices"] for one in told]


def test_too_few_is_said_once_and_again_after_it_was_well() -> None:
    devices = 1_024 - OWN
    watch = FileWatch(1_024, lambda: devices)
    assert warnings(watch) == []
    devices += 1
    assert warnings(watch) == [devices]
    devices += 1
    assert warnings(watch) == []
    devices = 10
    assert warnings(watch) == []
    devices = 1_000
    assert warnings(watch) == [devices]


def test_without_any_limit_nothing_is_said() -> None:
    assert warnings(FileWatch(resource.RLIM_INFINITY, lambda: 10**9)) == []
