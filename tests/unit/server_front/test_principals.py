"""What one principal may have under way and send in a second."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import Reason, ResourceExhausted
from hatoba_scheduler.interceptors.principals import (
    AHEAD_SECONDS,
    DEVICE_CHANGES,
    DEVICE_STREAMS,
    PrincipalLimits,
    Principals,
)

SMALL = PrincipalLimits(2, 1, 10.0, 100.0, 3, 2)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def token(principal: str, role: Role = Role.USER) -> TokenRecord:
    return TokenRecord(principal, "", principal, int(role), 0)


def refused(principals: Principals, who: TokenRecord, *, stream: bool = False) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as caught:
        principals.admit(who, changes=False, stream=stream)
    return caught.value


def test_calls_and_streams_are_counted_apart_and_let_go() -> None:
    ada, counted = token("ada"), Principals(SMALL, Clock())
    counted.enter(ada, stream=True)
    counted.enter(ada, stream=False)
    counted.admit(ada, changes=False, stream=False)
    error = refused(counted, ada, stream=True)
    assert (error.reason, error.metadata["limit"]) == (Reason.TOO_MANY_CALLS, "1")
    assert "ada has 1 streams" in error.message
    counted.leave(ada, stream=True)
    counted.admit(ada, changes=False, stream=True)


def test_one_at_the_limit_does_not_keep_another_out() -> None:
    ada, bob, counted = token("ada"), token("bob"), Principals(SMALL, Clock())
    for _ in range(2):
        counted.enter(ada, stream=False)
    refused(counted, ada)
    counted.admit(bob, changes=True, stream=False)
    counted.enter(bob, stream=False)
    assert "the server has 3 calls" in refused(counted, bob).message
    assert (counted.calls, counted.streams) == (3, 0)


def test_changes_go_on_when_time_has_passed_and_reads_always_do() -> None:
    clock = Clock()
    ada, counted = token("ada"), Principals(SMALL, clock)
    for _ in range(round(AHEAD_SECONDS * SMALL.changes_per_second) + 1):
        counted.admit(ada, changes=True, stream=False)
        clock.now += 1e-6
    with pytest.raises(ResourceExhausted) as caught:
        counted.admit(ada, changes=True, stream=False)
    assert caught.value.reason is Reason.RATE_LIMITED
    counted.admit(ada, changes=False, stream=False)
    assert caught.value.retry_after is not None
    clock.now += caught.value.retry_after
    counted.admit(ada, changes=True, stream=False)


def test_jobs_are_counted_by_the_item() -> None:
    clock = Clock()
    ada, counted = token("ada"), Principals(SMALL, clock)
    counted.submit(ada, 1_000)
    with pytest.raises(ResourceExhausted) as caught:
        counted.submit(ada, 1)
    assert caught.value.retry_after == pytest.approx(8.0)
    counted.submit(token("bob"), 100)
    clock.now = 8.5
    counted.submit(ada, 1)


@pytest.mark.parametrize("role", [Role.WORKER, Role.ROUTER])
def test_hosts_and_routers_share_tokens_and_are_not_counted(role: Role) -> None:
    host, counted = token("hosts", role), Principals(SMALL, Clock())
    for _ in range(50):
        counted.admit(host, changes=True, stream=True)
        counted.enter(host, stream=True)
    assert counted.streams == 0


def test_devices_take_no_place_from_people_and_may_little_themselves() -> None:
    clock = Clock()
    lamp, counted = token("devices/lamp", Role.DEVICE), Principals(None, clock)
    for _ in range(DEVICE_STREAMS):
        counted.admit(lamp, changes=False, stream=True)
        counted.enter(lamp, stream=True)
    assert "devices/lamp has 16 streams" in refused(counted, lamp, stream=True).message
    counted.admit(token("devices/door", Role.DEVICE), changes=False, stream=True)
    assert counted.streams == 0
    for _ in range(round(AHEAD_SECONDS * DEVICE_CHANGES) + 1):
        counted.admit(lamp, changes=True, stream=False)
        clock.now += 1e-6
    with pytest.raises(ResourceExhausted, match="changing calls"):
        counted.admit(lamp, changes=True, stream=False)


def test_those_who_have_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatoba_scheduler.interceptors.principals.REMEMBERED", 10)
    counted = Principals(SMALL, Clock())
    for number in range(100):
        counted.enter(token(f"u{number}"), stream=False)
        counted.leave(token(f"u{number}"), stream=False)
    assert len(counted._of) <= 10
