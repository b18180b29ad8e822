"""What AWS's errors mean: did nothing happen, or perhaps something. Pure, no SDK needed."""

from __future__ import annotations

from dataclasses import dataclass

from hatoba_plugins.errors import (
    BackendError,
    Conflict,
    Denied,
    Fatal,
    Invalid,
    NoCapacity,
    Retry,
    Throttled,
)

_THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    }
)
_EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
        "NotAuthorized",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    }
)
_LIMITED = frozenset({"LimitExceededException", "ServiceQuotaExceededException"})
_SERVERS_FAULT = frozenset(
    {"InternalFailure", "InternalServerError", "ServerException", "ServiceUnavailable"}
)
_SERVICES = {"elbv2": "elasticloadbalancing", "iot-data": "iot"}
"""Whose rights are named otherwise than their clients."""
_EXISTS = frozenset({"ResourceAlreadyExistsException", "ResourceInUseException"})


@dataclass(frozen=True, slots=True)
class AwsAnswer:
    """An answer that is an error: `status` of HTTP, `after` seconds if it said so."""

    operation: str
    """`service:Operation`."""
    code: str
    message: str
    status: int
    after: float | None = None


class AwsRefusal(Exception):
    """The answer behind a BackendError, as its `__cause__`: see `refusal_of`."""

    def __init__(self, answer: AwsAnswer) -> None:
        super().__init__(f"{answer.operation}: {answer.code}: {answer.message}")
        self.answer = answer


class Unanswered(Exception):
    """A call that perhaps took effect: no answer came, or one that says nothing."""


def refusal_of(error: BaseException) -> AwsAnswer | None:
    """What AWS said, of an error that its clients raised; None: it was not asked."""
    cause = error.__cause__
    return cause.answer if isinstance(cause, AwsRefusal) else None


def meaning(answer: AwsAnswer) -> BackendError | None:
    """The promise that nothing happened, in the contract's words; None: perhaps it did."""
    said = f"{answer.operation}: {answer.code}: {answer.message}"
    # Batch and ECS answer 4xx for faults of their own too, but never with these codes.
    if answer.code in _THROTTLED or answer.status == 429:
        return Throttled(said, after=answer.after)
    if answer.code in _EXPIRED:
        return Denied(f"{said}. Renew the credentials of the server and it goes on.")
    if answer.code in _DENIED or answer.status in (401, 403):
        return Denied(f"{said}. Allow the server's role {action_of(answer.operation)}.")
    if answer.code in _SERVERS_FAULT or not 400 <= answer.status < 500:
        return None
    if answer.code in _LIMITED:
        return NoCapacity(said, after=answer.after)
    if answer.code in _EXISTS:
        return Conflict(said, evidence=answer.message)
    if answer.status in (404, 405, 413, 415):
        return _not_there(answer, said)
    return Invalid(said)


def action_of(operation: str) -> str:
    """What IAM calls the right to it; there is none of its own for doing so in batches."""
    service, _, name = operation.partition(":")
    return f"{_SERVICES.get(service, service)}:{name.removesuffix('Batch')}"


def _not_there(answer: AwsAnswer, said: str) -> BackendError:
    if answer.code.isdigit() or not answer.code:
        return Fatal(f"{said}. What answers there does not speak AWS; look at `endpoint`.")
    return Invalid(said)


def unreachable(operation: str, error: Exception) -> Retry:
    """No connection was made, so nothing happened."""
    remedy = "Look at `region`, `endpoint` and the route from the server."
    return Retry(f"{operation}: {error}. {remedy}", after=1.0)
