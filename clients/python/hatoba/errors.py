"""The errors of client and CLI: a small family with data. All are HatobaError."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hatoba._status_details import FieldViolation, StatusDetails, parse_details

if TYPE_CHECKING:
    import grpc

DETAILS_KEY = "grpc-status-details-bin"


class HatobaError(Exception):
    """Something went wrong; the message says what, with the value, and `remedy` what to do about
    it.
    """

    def __init__(
        self, message: str, *, remedy: str = "", details: StatusDetails | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = details or StatusDetails()

    @property
    def violations(self) -> list[FieldViolation]:
        """Every field of the request that was wrong; empty for other errors."""
        return self.details.violations

    @property
    def reason(self) -> str:
        """A word for programs, for example IDEMPOTENCY_MISMATCH; empty when the server gave
        none.
        """
        return self.details.reason


class InvalidRequest(HatobaError):
    """The server does not accept the request as it is; `violations` names each field."""


class NotFound(HatobaError):
    """What the request names does not exist."""


class AlreadyExists(HatobaError):
    """It exists already, or the request id was used for something else."""


class NotAllowed(HatobaError):
    """No token, one that is not good any more, or one whose role may not do this."""


class FailedPrecondition(HatobaError):
    """Not in the state it is in."""


class Aborted(HatobaError):
    """It changed since it was read: read it again and repeat."""


class Exhausted(HatobaError):
    """A limit, a quota or a disk is full."""


class Unavailable(HatobaError):
    """The server cannot be reached or does not take requests now."""


class StreamBroken(Unavailable):
    """The connection broke while something was sent by a stream; or the server had just ended that,
    and why is not known for gRPC's own haste: asked again it says so.
    """


class DeadlineExceeded(HatobaError):
    """No answer in time; whether it was done is not known unless a request id was sent."""


class ServerError(HatobaError):
    """The server failed in a way that is not the caller's fault."""


class InvalidSpec(HatobaError):
    """A job file, option or argument that cannot be understood; nothing was sent."""


BY_CODE: dict[str, type[HatobaError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "UNAUTHENTICATED": NotAllowed,
    "PERMISSION_DENIED": NotAllowed,
    "FAILED_PRECONDITION": FailedPrecondition,
    "ABORTED": Aborted,
    "RESOURCE_EXHAUSTED": Exhausted,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}
# Said where the server has no remedy of its own.
REMEDIES: dict[type[HatobaError], str] = {
    NotAllowed: (
        "`hatoba context show` says which token is used; "
        "to use another one: `hatoba login ADDRESS --token-file F`"
    ),
    Unavailable: "is the server running? `hatoba context show` says which one is asked",
    Aborted: "read it again and repeat",
    DeadlineExceeded: "ask again; what was sent with the same request id is never done twice",
}


# What grpc.aio says when a connection breaks while a stream is written to.
BROKEN_STREAM = "Internal error from Core"


def from_rpc(error: grpc.aio.AioRpcError, address: str = "") -> HatobaError:
    """The typed error of a failed call, with the details that the server sent."""
    details = parse_details(_details_of(error))
    kind = BY_CODE.get(error.code().name, ServerError)
    message = error.details() or error.code().name
    if message == BROKEN_STREAM:
        kind = StreamBroken
    if issubclass(kind, Unavailable) and not details.reason:
        message = f"the server at {address} does not answer: {_short(message)}"
    return kind(message, remedy="; ".join(details.help) or REMEDIES.get(kind, ""), details=details)


def _details_of(error: grpc.aio.AioRpcError) -> bytes:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return value
    return b""


def _short(message: str) -> str:
    """gRPC's own sentence without the addresses it tried, of which there are many."""
    return message.rpartition("; last error: ")[2].partition("\n")[0][:200]
