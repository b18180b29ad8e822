"""The one place where exceptions become statuses. No UNKNOWN and no text of a bug leaves it."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import structlog

from hatoba_scheduler.errors import (
    DeadlineExceeded,
    HatobaError,
    Internal,
    Reason,
    Unavailable,
    to_status,
)
from hatoba_scheduler.interceptors.context import CallContext

if TYPE_CHECKING:
    from hatoba_scheduler.interceptors.types import Context

# grpc ends a call at its deadline by its own clock, a little before or after ours.
_CLOCK_SLACK_SECONDS = 0.01
_DETAILS = "grpc-status-details-bin"
_log = structlog.get_logger("hatoba.calls")


def as_error(failure: BaseException, call: CallContext, context: Context) -> HatobaError:
    """The error that the caller gets for whatever a handler raised."""
    if isinstance(failure, asyncio.CancelledError):
        return _ended(context)
    error = _only_error(failure)
    return _bug(failure, call) if error is None or isinstance(error, Internal) else error


async def abort(error: HatobaError, call: CallContext, context: Context) -> None:
    """End the call with the error's status and details; always raises."""
    status = to_status(error, {"trace_id": call.trace.trace_id, "request_id": call.request_id})
    trailers = (*call.trailers, (_DETAILS, status.SerializeToString()))
    await context.abort(error.code, status.message, trailers)


def _ended(context: Context) -> HatobaError:
    """For a cancelled handler: its time was over, its caller has gone, or the server stops."""
    remaining: float | None = context.time_remaining()
    if remaining is not None and remaining < _CLOCK_SLACK_SECONDS:
        return DeadlineExceeded("the call's deadline has passed")
    return Unavailable("the call was ended by the server or its caller", reason=Reason.DRAINING)


def _only_error(failure: BaseException) -> HatobaError | None:
    """The typed error behind the exception groups of TaskGroups, if there is no other."""
    while isinstance(failure, BaseExceptionGroup):
        others = failure.split(HatobaError)[1]
        if others is not None:
            return None
        failure = failure.exceptions[0]
    return failure if isinstance(failure, HatobaError) else None


def _bug(failure: BaseException, call: CallContext) -> HatobaError:
    error_id = secrets.token_hex(8)
    _log.error(
        "call failed",
        error_id=error_id,
        method=call.method,
        principal=call.principal,
        exc_info=failure,
    )
    return Internal(
        f"the server failed; its log has the cause under error id {error_id}",
        reason=Reason.BUG,
        metadata={"error_id": error_id},
    )
