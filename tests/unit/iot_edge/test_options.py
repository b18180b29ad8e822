"""Options, and what is imported for which transport."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scripted_iot import iot_context

from hatoba_plugins.backends.iot_edge import EdgeType
from hatoba_plugins.backends.iot_edge.options import EdgeOptions
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import BackendOptions

AWS = {"transport": "aws-iot"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transport": "grpc"},
        AWS,
        {"transport": "both", "region": "eu-central-1"},
        AWS
        | {
            "region": "eu-central-1",
            "thing_prefix": "site-2_",
            "shadow": "hatoba",
            "policy": "hatoba-device",
            "data_endpoint": "https://a1b2-ats.iot.eu-central-1.amazonaws.com",
            "device_endpoint": "a1b2-ats.iot.eu-central-1.amazonaws.com:443",
            "content": "s3://models/hatoba?region=eu-central-1&role-alias=a&credentials=c",
            "queue": "https://sqs.eu-central-1.amazonaws.com/123456789012/hatoba-devices",
            "jobs": True,
            "alive_every": 600,
            "poll_every": 5.0,
        },
    ],
)
def test_what_is_good(options: dict[str, object]) -> None:
    assert EdgeOptions.check(options) == []
    EdgeOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ({"transport": "mqtt"}, "transport", "'mqtt' is none of 'grpc', 'aws-iot', 'both'"),
        ({"region": "eu-central-1"}, "region", "leave it out, or choose one of these"),
        ({"transport": "grpc", "jobs": True}, "jobs", 'is for `transport = "aws-iot"`'),
        (AWS | {"thing_prefix": "a/b"}, "thing_prefix", "'a/b' is not"),
        (AWS | {"shadow": "$x"}, "shadow", "'$x' is not"),
        (AWS | {"policy": "arn:aws:iot:r:1:policy/x"}, "policy", "not its ARN"),
        (AWS | {"data_endpoint": "a1-ats.iot.amazonaws.com"}, "data_endpoint", "https://HOST"),
        (AWS | {"queue": "hatoba-devices"}, "queue", "the URL of an SQS queue"),
        (AWS | {"device_endpoint": "https://a1.amazonaws.com"}, "device_endpoint", "HOST:PORT"),
        (AWS | {"content": "https://models"}, "content", "s3://BUCKET/PREFIX"),
        (AWS | {"away_after": 0}, "away_after", "0 is not between 0.1 and 3600"),
        (AWS | {"alive_every": 1e9}, "alive_every", "is not between"),
        (AWS | {"region": "Frankfurt"}, "region", "is no region"),
        (AWS | {"profile": "p", "credentials": "c"}, "credentials", "one of them rules"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, object], field: str, says: str) -> None:
    (problem,) = EdgeOptions.check(options)
    assert problem.field == field
    assert says in problem.message


def test_what_talks_to_aws_is_imported_for_that_transport_alone() -> None:
    code = """
import asyncio, sys
from dataclasses import replace
from opened_backend import context
from hatoba_plugins.backends.iot_edge import EdgeType
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.device_hub import DeviceHub
async def main():
    given = replace(context(FakeClock()), devices=DeviceHub(FakeClock(), alive_every=10.0))
    async with EdgeType().open("edge", EdgeType.options(), given):
        pass
asyncio.run(main())
heavy = {"aioboto3", "aiobotocore", "botocore", "boto3"}
ours = "hatoba_plugins.backends.iot_edge."
print(sorted(heavy & set(sys.modules)))
print(sorted(n.removeprefix(ours) for n in sys.modules if n.startswith(ours)))
"""
    path = ":".join(one for one in sys.path if one)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[]", "['backend', 'options', 'streams']"], done.stderr


async def test_it_is_opened_with_its_own_options() -> None:
    with pytest.raises(TypeError, match="EdgeOptions"):
        async with EdgeType().open("edge", BackendOptions(), iot_context(FakeClock())):
            pass
