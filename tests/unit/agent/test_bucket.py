"""Requests to a bucket are signed as AWS signs them, and a place is read as it was written."""

from __future__ import annotations

import datetime as dt

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Botos

from hatoba_worker.agent.bucket import EMPTY, Credentials, headers_for
from hatoba_worker.agent.settings import AwsIot, BucketPlace

TEXT = "s3://models/hatoba/a?region=eu-central-1&role-alias=hatoba-device&credentials=c.example"


@pytest.mark.parametrize("key", ["chunks/ab/abcdef", "a%20b/manifests/0123", "x/y~z-_.1"])
def test_signed_as_aws_does_it(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = dt.datetime(2026, 11, 27, 12, 30, 5, tzinfo=dt.UTC)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: now.replace(tzinfo=None))
    url = f"https://models.s3.eu-central-1.amazonaws.com/{key}"
    asked = AWSRequest("GET", url)
    S3SigV4Auth(Botos("AKID", "secret", "token"), "s3", "eu-central-1").add_auth(asked)
    ours = headers_for(
        url, "eu-central-1", Credentials("AKID", "secret", "token", 0.0), now.timestamp()
    )
    assert ours["x-amz-content-sha256"] == EMPTY
    assert ours["Authorization"] == asked.headers["Authorization"]


def test_a_place() -> None:
    place = BucketPlace.parse(TEXT)
    assert place.url == "https://models.s3.eu-central-1.amazonaws.com"
    assert place.key("chunks/x") == "hatoba/a/chunks/x"
    assert (place.role_alias, place.credentials) == ("hatoba-device", "c.example")
    elsewhere = BucketPlace.parse(f"{TEXT}&endpoint=http://127.0.0.1:9000/")
    assert elsewhere.url == "http://127.0.0.1:9000/models"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("models", "is no bucket"),
        ("https://models/x", "is no bucket"),
        ("s3://models/x?region=a&role-alias=b", "does not say its 'credentials'"),
    ],
)
def test_what_is_no_place(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        AwsIot.of({"thing": "hatoba-a", "content": text})
