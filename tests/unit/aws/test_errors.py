"""What AWS's errors promise."""

from __future__ import annotations

import pytest

from hatoba_plugins.aws.errors import AwsAnswer, meaning
from hatoba_plugins.errors import (
    BackendError,
    Conflict,
    Denied,
    Fatal,
    Invalid,
    NoCapacity,
    Throttled,
)


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("TooManyRequestsException", 429, Throttled),
        ("ThrottlingException", 400, Throttled),
        ("RequestLimitExceeded", 503, Throttled),
        ("Whatever", 429, Throttled),
        ("AccessDeniedException", 400, Denied),
        ("UnrecognizedClientException", 400, Denied),
        ("ExpiredTokenException", 403, Denied),
        ("Anything", 403, Denied),
        ("LimitExceededException", 400, NoCapacity),
        ("ResourceAlreadyExistsException", 409, Conflict),
        ("ClientException", 400, Invalid),
        ("ClientException", 404, Invalid),
        ("404", 404, Fatal),
        ("", 405, Fatal),
    ],
)
def test_a_definite_answer_promises_that_nothing_happened(
    code: str, status: int, kind: type[BackendError]
) -> None:
    told = meaning(AwsAnswer("batch:SubmitJob", code, "because", status))
    assert type(told) is kind
    assert "batch:SubmitJob" in told.message
    assert "because" in told.message


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ServerException", 500),
        ("ServerException", 400),
        ("503", 503),
        ("InternalFailure", 500),
        ("", 0),
    ],
)
def test_what_says_nothing_promises_nothing(code: str, status: int) -> None:
    assert meaning(AwsAnswer("batch:SubmitJob", code, "", status)) is None


def test_when_to_come_again_is_passed_on() -> None:
    told = meaning(AwsAnswer("batch:DescribeJobs", "TooManyRequestsException", "", 429, after=7.0))
    assert told is not None
    assert told.after == 7.0


@pytest.mark.parametrize(
    ("operation", "right"),
    [
        ("batch:SubmitJob", "batch:SubmitJob"),
        ("iot-data:UpdateThingShadow", "iot:UpdateThingShadow"),
        ("elbv2:CreateRule", "elasticloadbalancing:CreateRule"),
        ("sqs:DeleteMessageBatch", "sqs:DeleteMessage"),
    ],
)
def test_what_is_denied_names_the_right_that_is_missing(operation: str, right: str) -> None:
    told = meaning(AwsAnswer(operation, "AccessDeniedException", "no", 403))
    assert isinstance(told, Denied)
    assert told.message.endswith(f"Allow the server's role {right}.")


def test_expired_credentials_say_what_to_do() -> None:
    told = meaning(AwsAnswer("batch:ListJobs", "ExpiredTokenException", "expired", 403))
    assert isinstance(told, Denied)
    assert "Renew the credentials" in told.message
