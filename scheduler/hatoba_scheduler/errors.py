"""What can go wrong, as a small family of exceptions that carry data.

Everything that refuses a call raises one of these; one interceptor turns it into a
`google.rpc.Status`. `Reason` is the closed list of machine-readable reasons; docs/errors.md holds
the same list and a test compares them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "hatoba"
SHOWN_CHARACTERS = 64
# A client refuses trailers above its 8 KiB: base64 of the details and the escaped message must fit.
MAX_MESSAGE_BYTES = 1_024
MAX_DETAIL_BYTES = 3_072


class Reason(enum.StrEnum):
    """Why a call was refused, for programs; `meaning` is for people. A closed list: no name is
    ever given another meaning."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Reason:
        """A reason whose value is its name."""
        reason = str.__new__(cls, value)
        reason._value_ = value
        reason.meaning = meaning
        return reason

    INVALID_FIELD = (
        "INVALID_FIELD",
        "One or more fields of the request break a rule; every one is listed.",
    )
    INVALID_MESSAGE = (
        "INVALID_MESSAGE",
        "The request's bytes are not the message that the method takes.",
    )
    INVALID_FILTER = "INVALID_FILTER", "A filter cannot be parsed or names an unknown field."
    INVALID_PAGE_TOKEN = (
        "INVALID_PAGE_TOKEN",
        "A page token is damaged or belongs to another query.",
    )
    INVALID_CURSOR = (
        "INVALID_CURSOR",
        "A watch cursor is damaged or belongs to another installation.",
    )
    DIGEST_MISMATCH = "DIGEST_MISMATCH", "Bytes do not have the digest they were sent under."
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND", "Nothing of that name exists, or it is not yours."
    RESOURCE_EXISTS = "RESOURCE_EXISTS", "Something of that name exists already."
    IDEMPOTENCY_MISMATCH = (
        "IDEMPOTENCY_MISMATCH",
        "The request id was used before with another body.",
    )
    SECRET_SHOWN_ONCE = (
        "SECRET_SHOWN_ONCE",
        "The call was made before; its secret is not kept and cannot be shown again.",
    )
    WRONG_STATE = "WRONG_STATE", "The resource's state does not allow the call."
    UNREACHED = "UNREACHED", "Where the job runs cannot be reached now, or did not do it."
    UNSUPPORTED = "UNSUPPORTED", "The job's backend lacks the ability that the call needs."
    NOT_EMPTY = "NOT_EMPTY", "The resource still holds others and cannot be removed."
    NOT_CURRENT = "NOT_CURRENT", "The attempt is not current any more; nothing was recorded."
    CHUNKS_MISSING = "CHUNKS_MISSING", "A manifest names chunks that are not stored."
    CLUSTER_MISMATCH = "CLUSTER_MISMATCH", "The caller belongs to another installation."
    VERSION_UNSUPPORTED = (
        "VERSION_UNSUPPORTED",
        "The caller's version or protocol is not one this server speaks.",
    )
    STALE_ETAG = "STALE_ETAG", "The resource changed since it was read; read it again and retry."
    ALIAS_MOVED = "ALIAS_MOVED", "An alias points elsewhere than was expected; nothing was changed."
    SECOND_PRINCIPAL = (
        "SECOND_PRINCIPAL",
        "Who asked for a move of a protected alias does not decide on it.",
    )
    IN_USE = "IN_USE", "Others use the resource; the message names them."
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED", "A limit of a queue or of the installation is reached."
    STORE_FULL = "STORE_FULL", "The server's disk or database is full."
    TOO_MANY_CALLS = "TOO_MANY_CALLS", "The server answers as many calls as it can."
    RATE_LIMITED = (
        "RATE_LIMITED",
        "The caller sends more calls or jobs in a second than one principal may.",
    )
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE", "The message is over the size limit."
    STARTING = "STARTING", "The server is recovering and takes no calls yet."
    DRAINING = "DRAINING", "The server is about to stop."
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE", "The store does not answer."
    STORE_DAMAGED = "STORE_DAMAGED", "The database file is damaged; a backup must be restored."
    NOT_ADOPTED = (
        "NOT_ADOPTED",
        "The store was restored from a backup and waits for `hatoba server adopt`.",
    )
    BLOBS_REFUSED = (
        "BLOBS_REFUSED",
        "The object store that keeps chunks denies us or lacks the bucket; mend its settings.",
    )
    OFFSET_OUT_OF_RANGE = "OFFSET_OUT_OF_RANGE", "An offset lies beyond what is stored."
    TOKEN_MISSING = "TOKEN_MISSING", "The call carries no token."
    TOKEN_MALFORMED = "TOKEN_MALFORMED", "The authorization header is not a token of ours."
    TOKEN_UNKNOWN = "TOKEN_UNKNOWN", "This server does not know the token."
    TOKEN_EXPIRED = "TOKEN_EXPIRED", "The token's time is over."
    TOKEN_REVOKED = "TOKEN_REVOKED", "The token was revoked."
    TOKEN_USED = (
        "TOKEN_USED",
        "The token has made as many machines hosts or devices as it may, and makes no other.",
    )
    HOST_UNKNOWN = (
        "HOST_UNKNOWN",
        "A host's certificate is not, or no longer, one that this server goes by.",
    )
    DEVICE_UNKNOWN = (
        "DEVICE_UNKNOWN",
        "A device shows no certificate, or one that this server does not, or no longer, go by.",
    )
    NOT_YOUR_HOST = "NOT_YOUR_HOST", "The caller speaks for another host than the one it named."
    ROLE_INSUFFICIENT = "ROLE_INSUFFICIENT", "The token's role does not allow the method."
    OUT_OF_SCOPE = (
        "OUT_OF_SCOPE",
        "A runner's credential opens its own attempt while that is current, and nothing else.",
    )
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT", "Too little time was left to begin."
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED", "The call did not end in the time it had."
    UNKNOWN_METHOD = "UNKNOWN_METHOD", "This server has no such method."
    BUG = "BUG", "A fault of the server; its log has the error id."


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field that breaks one rule.

    `field` is its path (`spec.env["A B"]`), `rule` a stable id (`string.pattern`), `value` what was
    sent (shortened with `shown`), `remedy` what to send instead.
    """

    field: str
    description: str
    rule: str = ""
    value: str = ""
    remedy: str = ""

    def text(self) -> str:
        """One sentence for people: what must hold, what came, what to do."""
        got = f", got {self.value}" if self.value else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.description}{got}{remedy}"


@dataclass(frozen=True, slots=True)
class Resource:
    """What an error is about: its type (`job`, `queue`, `token`) and name."""

    type: str
    name: str


def shown(value: object) -> str:
    """A value as an error may show it: one line, escaped, at most 64 characters and its length."""
    raw = value[: SHOWN_CHARACTERS + 1] if isinstance(value, str | bytes) else value
    text = repr(raw)
    if isinstance(value, str | bytes) and len(value) > SHOWN_CHARACTERS:
        return f"{repr(value[:SHOWN_CHARACTERS])[:SHOWN_CHARACTERS]}... ({len(value)} long)"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


class HatobaError(Exception):
    """A refusal with data. `retry_after` is in seconds; `metadata` goes into ErrorInfo."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    default_reason: ClassVar[Reason] = Reason.BUG
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: Reason | None = None,
        field_violations: Sequence[FieldViolation] = (),
        resource: Resource | None = None,
        retry_after: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field_violations = tuple(field_violations)
        self.resource = resource
        self.retry_after = self.default_retry_after if retry_after is None else retry_after
        self.metadata = dict(metadata or {})

    @property
    def grpc_code(self) -> int:
        """The status code's number, as `SubmitJobsResult.code` and google.rpc.Status carry it."""
        number: int = self.code.value[0]
        return number


class InvalidArgument(HatobaError):
    """The request is wrong whatever the state of the system; do not repeat it as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = Reason.INVALID_FIELD

    @classmethod
    def of(cls, violations: Iterable[FieldViolation]) -> InvalidArgument:
        """Names every violation; the message tells the first and how many more."""
        found = tuple(violations)
        first = f"{found[0].field}: {found[0].text()}" if found[0].field else found[0].text()
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return cls(first + more, field_violations=found)

    @classmethod
    def field(
        cls, path: str, description: str, *, value: object = None, remedy: str = "", rule: str = ""
    ) -> InvalidArgument:
        """One violation of one field; `value` is shown shortened unless it is None."""
        text = "" if value is None else shown(value)
        return cls.of([FieldViolation(path, description, rule, text, remedy)])


class NotFound(HatobaError):
    """What the call names does not exist, or is not the caller's to know of."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = Reason.RESOURCE_NOT_FOUND


class AlreadyExists(HatobaError):
    """The name or request id is taken by something else."""

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = Reason.RESOURCE_EXISTS


class FailedPrecondition(HatobaError):
    """The state of the system forbids it; repeating helps only after something changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = Reason.WRONG_STATE


class Aborted(HatobaError):
    """Somebody else changed it first; read again and retry."""

    code = grpc.StatusCode.ABORTED
    default_reason = Reason.STALE_ETAG


class ResourceExhausted(HatobaError):
    """A quota, an admission limit or a disk is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = Reason.QUOTA_EXCEEDED
    default_retry_after = 5.0


class Unavailable(HatobaError):
    """Not now; the same call may be repeated after `retry_after`."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = Reason.STORE_UNAVAILABLE
    default_retry_after = 1.0


class OutOfRange(HatobaError):
    """A cursor or offset lies outside what is kept."""

    code = grpc.StatusCode.OUT_OF_RANGE
    default_reason = Reason.OFFSET_OUT_OF_RANGE


class Unauthenticated(HatobaError):
    """The server does not know who calls."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = Reason.TOKEN_MISSING


class PermissionDenied(HatobaError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = Reason.ROLE_INSUFFICIENT


class DeadlineExceeded(HatobaError):
    """The call's time is over, or too short to begin."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = Reason.DEADLINE_EXCEEDED


class Unimplemented(HatobaError):
    """This server has no such method or option."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = Reason.UNKNOWN_METHOD


class Internal(HatobaError):
    """A fault of ours. Its text stays in the log; callers get an error id only."""


def to_status(error: HatobaError, extra: Mapping[str, str] | None = None) -> status_pb2.Status:
    """The error as google.rpc.Status; `extra` (trace id, request id) joins ErrorInfo's metadata.

    Violations that would make the trailers larger than clients accept are counted, not listed.
    """
    status = status_pb2.Status(code=error.grpc_code, message=_clipped(error.message))
    status.details.extend(_details(error, extra or {}))
    if error.field_violations:
        room = MAX_DETAIL_BYTES - status.ByteSize()
        status.details.append(_bad_request(error.field_violations, room))
    return status


def _details(error: HatobaError, extra: Mapping[str, str]) -> Iterable[any_pb2.Any]:
    yield _info(error, extra)
    if error.resource is not None:
        yield _resource(error.resource)
    if isinstance(error, FailedPrecondition):
        yield _precondition(error)
    if isinstance(error, ResourceExhausted):
        yield _quota(error)
    if error.retry_after is not None:
        yield _retry(error.retry_after)


def _info(error: HatobaError, extra: Mapping[str, str]) -> any_pb2.Any:
    metadata = {key: _clipped(value, 256) for key, value in (error.metadata | dict(extra)).items()}
    return _packed(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    )


def _resource(resource: Resource) -> any_pb2.Any:
    return _packed(
        error_details_pb2.ResourceInfo(
            resource_type=resource.type, resource_name=_clipped(resource.name, 256)
        )
    )


def _precondition(error: HatobaError) -> any_pb2.Any:
    failure = error_details_pb2.PreconditionFailure()
    failure.violations.add(
        type=error.reason, subject=_subject(error), description=_clipped(error.message, 256)
    )
    return _packed(failure)


def _quota(error: HatobaError) -> any_pb2.Any:
    failure = error_details_pb2.QuotaFailure()
    failure.violations.add(subject=_subject(error), description=_clipped(error.message, 256))
    return _packed(failure)


def _subject(error: HatobaError) -> str:
    return _clipped(error.resource.name, 256) if error.resource else ""


def _retry(seconds: float) -> any_pb2.Any:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return _packed(info)


def _bad_request(violations: Sequence[FieldViolation], room: int) -> any_pb2.Any:
    request = error_details_pb2.BadRequest()
    for position, violation in enumerate(violations):
        request.field_violations.append(_violation(violation))
        if request.ByteSize() > room - 128:
            del request.field_violations[-1]
            request.field_violations.add(description=f"and {len(violations) - position} more")
            break
    return _packed(request)


def _violation(violation: FieldViolation) -> error_details_pb2.BadRequest.FieldViolation:
    return error_details_pb2.BadRequest.FieldViolation(
        field=_clipped(violation.field, 256),
        description=_clipped(violation.text(), 512),
        reason=violation.rule.upper().replace(".", "_") or Reason.INVALID_FIELD,
    )


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def _clipped(text: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return raw.decode()
    return raw[: limit - 3].decode("utf-8", "ignore") + "..."
