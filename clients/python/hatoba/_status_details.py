"""Reads `grpc-status-details-bin`: a google.rpc.Status with its details.

By hand, field by field: the messages of google.rpc come from a distribution that the base install
does not have, and a second copy of them would clash with it in one process where it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

LENGTH_DELIMITED = 2
VARINT = 0
FIXED_SIZES = {1: 8, 5: 4}


@dataclass(frozen=True)
class FieldViolation:
    """One wrong field of a request: its path, what is wrong with it, and a word for programs."""

    field: str
    description: str
    reason: str = ""


@dataclass
class StatusDetails:
    """What an error said beyond code and message. Empty where nothing was said."""

    violations: list[FieldViolation] = field(default_factory=list)
    preconditions: list[FieldViolation] = field(default_factory=list)
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    resource: str = ""
    retry_after: float | None = None
    help: list[str] = field(default_factory=list)


def parse_details(data: bytes) -> StatusDetails:
    """The details of a serialised google.rpc.Status; unknown or broken parts are passed over."""
    details = StatusDetails()
    try:
        for packed in _texts_at(data, 3):
            kind, payload = _any(packed)
            reader = READERS.get(kind.rpartition(".")[2])
            if reader is not None:
                reader(payload, details)
    except (IndexError, ValueError):
        return details
    return details


def _bad_request(data: bytes, details: StatusDetails) -> None:
    for violation in _texts_at(data, 1):
        details.violations.append(_violation(violation, 1, 2, 3))


def _precondition(data: bytes, details: StatusDetails) -> None:
    for violation in _texts_at(data, 1):
        details.preconditions.append(_violation(violation, 2, 3, 1))


def _quota(data: bytes, details: StatusDetails) -> None:
    for violation in _texts_at(data, 1):
        details.preconditions.append(_violation(violation, 1, 2, 0))


def _error_info(data: bytes, details: StatusDetails) -> None:
    details.reason = _text(data, 1)
    for entry in _texts_at(data, 3):
        details.metadata[_text(entry, 1)] = _text(entry, 2)


def _resource(data: bytes, details: StatusDetails) -> None:
    details.resource = _text(data, 2)


def _retry(data: bytes, details: StatusDetails) -> None:
    delay = next(_texts_at(data, 1), b"")
    parts = {number: value for number, value in _fields(delay) if isinstance(value, int)}
    details.retry_after = parts.get(1, 0) + parts.get(2, 0) / 1e9


def _help(data: bytes, details: StatusDetails) -> None:
    details.help.extend(_text(link, 1) for link in _texts_at(data, 1))


READERS = {
    "BadRequest": _bad_request,
    "PreconditionFailure": _precondition,
    "QuotaFailure": _quota,
    "ErrorInfo": _error_info,
    "ResourceInfo": _resource,
    "RetryInfo": _retry,
    "Help": _help,
}


def _any(data: bytes) -> tuple[str, bytes]:
    return _text(data, 1), next(_texts_at(data, 2), b"")


def _violation(data: bytes, subject: int, description: int, reason: int) -> FieldViolation:
    return FieldViolation(_text(data, subject), _text(data, description), _text(data, reason))


def _text(data: bytes, number: int) -> str:
    return next(_texts_at(data, number), b"").decode("utf-8", "replace")


def _texts_at(data: bytes, number: int) -> Iterator[bytes]:
    return (value for found, value in _fields(data) if found == number and isinstance(value, bytes))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a serialised message, fixed-size ones left out."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, position = _varint(data, position)
            yield number, value
        elif kind == LENGTH_DELIMITED:
            size, position = _varint(data, position)
            yield number, data[position : position + size]
            position += size
        elif kind in FIXED_SIZES:
            position += FIXED_SIZES[kind]
        else:
            raise ValueError(f"wire type {kind}")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
