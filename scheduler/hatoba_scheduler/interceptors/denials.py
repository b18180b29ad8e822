"""Tells of calls that were refused to who makes them: `call.denied` in the server's log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from hatoba_scheduler.auth.bursts import Bursts
from hatoba_scheduler.auth.device_credentials import DeviceCaller
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.auth.runner_scopes import RunnerToken
from hatoba_scheduler.errors import (
    AlreadyExists,
    HatobaError,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
)

if TYPE_CHECKING:
    from hatoba_scheduler.interceptors.context import CallContext

log = structlog.get_logger(__name__)
DENIALS = (Unauthenticated, PermissionDenied)
UNFIT = (InvalidArgument, AlreadyExists)
TELL_THEMSELVES = (RunnerToken, DeviceCaller)
"""Credentials that log what they do not open."""


class Denials:
    """Those whom nobody knows are one caller, so who guesses tokens does not fill the log; of many
    at once a line counts those that were left out.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._bursts = Bursts(monotonic)

    def refused(self, error: HatobaError, call: CallContext, peer: str) -> None:
        """A call failed; it is told of if that is because of who makes it."""
        if not _told_of(error, call) or not self._bursts.hears(call.principal):
            return
        log.warning(
            "call.denied",
            method=call.method,
            peer=peer,
            principal=call.principal,
            why=error.message,
            unheard=self._bursts.unheard,
        )


def _told_of(error: HatobaError, call: CallContext) -> bool:
    if isinstance(call.token, TELL_THEMSELVES):
        return False
    # Of who may become a device, all that is refused.
    return isinstance(error, (*DENIALS, *UNFIT) if call.role is Role.ENROLL else DENIALS)
