"""What is told of those who are refused often, and whom that leaves out."""

from __future__ import annotations

import pytest
from structlog.testing import CapturingLogger

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.auth import Role
from hatoba_scheduler.auth.bursts import AUDIT_BURST, AUDIT_SECONDS, CALLERS, Bursts
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.errors import HatobaError, InvalidArgument, PermissionDenied, Unauthenticated
from hatoba_scheduler.interceptors import denials
from hatoba_scheduler.interceptors.context import CallContext
from hatoba_scheduler.telemetry.tracing import Tracer

REFUSALS: list[HatobaError] = [
    Unauthenticated("who?"),
    PermissionDenied("no"),
    InvalidArgument("?"),
]


async def test_one_caller_takes_no_room_from_another() -> None:
    clock = FakeClock()
    bursts = Bursts(clock.monotonic)
    assert [bursts.hears("a") for _ in range(AUDIT_BURST + 2)].count(True) == AUDIT_BURST
    assert bursts.hears("b")
    await clock.advance(AUDIT_SECONDS)
    assert [bursts.hears("a"), bursts.hears("a")] == [True, False]
    assert bursts.unheard == 3


async def test_of_many_callers_who_is_not_quiet_is_remembered() -> None:
    clock = FakeClock()
    bursts = Bursts(clock.monotonic)
    while bursts.hears("loud"):
        pass
    for number in range(2 * CALLERS):
        assert bursts.hears(f"caller-{number}")
    assert not bursts.hears("loud")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> CapturingLogger:
    """Of the log."""
    made = CapturingLogger()
    monkeypatch.setattr(denials, "log", made)
    return made


@pytest.mark.parametrize(
    ("role", "told"),
    [(None, ["who?", "no"]), (Role.USER, ["who?", "no"]), (Role.ENROLL, ["who?", "no", "?"])],
)
def test_of_who_may_become_a_device_all_that_is_refused_is_told(
    lines: CapturingLogger, role: Role | None, told: list[str]
) -> None:
    made, token = denials.Denials(FakeClock().monotonic), None
    if role is not None:
        token = TokenRecord(id="t", sha256="", principal="p", role=role, create_time=0)
    call = CallContext("hatoba.v1.JobService/GetJob", "", Tracer().root(sampled=False), token)
    for error in REFUSALS:
        made.refused(error, call, "ipv4:127.0.0.1:1")
    assert {(one.args[0], one.kwargs["method"], one.kwargs["peer"]) for one in lines.calls} == {
        ("call.denied", call.method, "ipv4:127.0.0.1:1")
    }
    assert [one.kwargs["why"] for one in lines.calls] == told
