"""What a servicer may know of the call it answers."""

from __future__ import annotations

import contextvars

import pytest

from hatoba_scheduler.interceptors import CallContext, call_or_none, current_call
from hatoba_scheduler.interceptors.context import enter_call
from hatoba_scheduler.telemetry.tracing import SpanContext

TRACE = SpanContext("ab" * 16, "cd" * 8, sampled=True)


def test_outside_of_a_call_there_is_none() -> None:
    assert call_or_none() is None
    with pytest.raises(LookupError):
        current_call()


def test_a_call_without_a_token_has_no_role() -> None:
    call = CallContext("a.B/C", "rid", TRACE)
    assert (call.principal, call.role) == ("", None)


def test_the_call_that_is_entered_is_current_there_alone() -> None:
    call = CallContext("a.B/C", "rid", TRACE)

    def handle() -> None:
        enter_call(call)
        assert current_call() is call

    contextvars.copy_context().run(handle)
    assert call_or_none() is None
