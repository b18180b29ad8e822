"""What is known about the call that is being answered, for servicers and logs."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.telemetry.tracing import SpanContext


@dataclass(slots=True)
class CallContext:
    """One call: who makes it, under which ids, and what its reply carries besides the message."""

    method: str
    """Full name without leading slash, for example `hatoba.v1.JobService/SubmitJob`."""
    request_id: str
    """The caller's `x-request-id`, or one made here."""
    trace: SpanContext
    """The server's span of this call; what the call causes is traced below it."""
    token: TokenRecord | None = None
    """None for methods that need no token."""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    """Trailing metadata that the reply will carry; servicers may add to it."""
    parent_id: str = ""
    start_ns: int = 0
    started: float = 0.0

    @property
    def principal(self) -> str:
        """Whom the caller's token speaks for; empty without one."""
        return self.token.principal if self.token else ""

    @property
    def role(self) -> Role | None:
        """The caller's role, if it has any."""
        return Role(self.token.role) if self.token else None


_current: ContextVar[CallContext | None] = ContextVar("hatoba_call", default=None)


def current_call() -> CallContext:
    """The call being answered; LookupError outside of one."""
    call = _current.get()
    if call is None:
        raise LookupError("no call is being answered here")
    return call


def call_or_none() -> CallContext | None:
    """The call being answered, if any."""
    return _current.get()


def enter_call(call: CallContext) -> None:
    """Make `call` current in this task; grpc gives every call a task of its own."""
    _current.set(call)
