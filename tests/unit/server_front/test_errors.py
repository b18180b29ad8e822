"""Errors as data: statuses, shortened values, bounded sizes."""

from __future__ import annotations

import inspect

import grpc
import pytest
from google.rpc import error_details_pb2

from hatoba_scheduler import errors
from hatoba_scheduler.errors import FieldViolation, HatobaError, InvalidArgument, Reason, shown

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, HatobaError) and kind is not HatobaError
]


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes) >= 13
    assert grpc.StatusCode.UNKNOWN not in codes


def test_reasons_are_constants_with_a_meaning() -> None:
    for reason in Reason:
        assert reason.value == reason.name == str(reason)
        assert reason.meaning.endswith(".")
    assert len({reason.meaning for reason in Reason}) == len(Reason)


@pytest.mark.parametrize("kind", KINDS)
def test_every_status_has_an_error_info(kind: type[HatobaError]) -> None:
    status = errors.to_status(kind("what"), {"trace_id": "ab"})
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (kind.code.value[0], "what")
    assert (info.domain, info.reason) == ("hatoba", kind.default_reason)
    assert info.metadata["trace_id"] == "ab"


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.ResourceExhausted])
def test_what_may_be_retried_says_when(kind: type[HatobaError]) -> None:
    assert kind("later").retry_after
    types = [detail.type_url for detail in errors.to_status(kind("later")).details]
    assert any(name.endswith("RetryInfo") for name in types)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "'plain'"),
        ("two\nlines\x1b[31m", r"'two\nlines\x1b[31m'"),
        (float("nan"), "nan"),
        (-4, "-4"),
        ("x" * 1_000_000, "'" + "x" * 63 + "... (1000000 long)"),
        (b"\x00" * 200, r"b'" + r"\x00" * 15 + r"\x... (200 long)"),
    ],
)
def test_values_are_shown_short_and_on_one_line(value: object, text: str) -> None:
    assert shown(value) == text


def test_one_wrong_field_reads_as_a_sentence() -> None:
    error = InvalidArgument.field(
        "spec.cpus", "must not be negative", value=-1, remedy="leave it out"
    )
    assert error.message == "spec.cpus: must not be negative, got -1; leave it out"


def test_more_wrong_fields_are_counted() -> None:
    error = InvalidArgument.of([FieldViolation("a", "is bad"), FieldViolation("b", "is bad")])
    assert error.message == "a: is bad (and 1 more)"
    assert len(error.field_violations) == 2


@pytest.mark.parametrize("letter", ["x", "é", "波"])
def test_status_and_details_stay_below_what_clients_accept(letter: str) -> None:
    violations = [FieldViolation(letter * 500, letter * 2_000) for _ in range(50)]
    error = InvalidArgument(
        letter * 50_000,
        field_violations=violations,
        resource=errors.Resource("job", letter * 5_000),
        metadata={"a": letter * 5_000},
    )
    status = errors.to_status(error)
    assert len(status.message.encode()) <= errors.MAX_MESSAGE_BYTES
    assert status.ByteSize() <= errors.MAX_DETAIL_BYTES + errors.MAX_MESSAGE_BYTES


def test_lone_surrogates_do_not_break_a_reply() -> None:
    assert errors.to_status(errors.NotFound("\ud800")).message == "?"
