"""What runners and replicas elsewhere are given: the same each time, and nothing that is secret."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import cast

import pytest
from google.protobuf import json_format

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.backend import BackendContext, WorkerHub
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.runner import launch_message, replica_environment, runner_environment
from hatoba_plugins.values import LaunchRequest, Placement, RevisionTarget, Target

PEM = "-----BEGIN CERTIFICATE-----\n...\n-----END CERTIFICATE-----\n"


async def _nothing(_: str) -> None:
    return None


async def _no_secret(name: str) -> str:
    raise KeyError(name)


CTX = BackendContext(
    clock=FakeClock(),
    rng=random.Random(1),
    cluster_id="cluster",
    store_epoch=1,
    advertise="hatoba.example:7700",
    budget=_nothing,
    secret=_no_secret,
    workers=cast(WorkerHub, None),
)
SECURE = replace(CTX, tls=True, ca=PEM)


def request(**more: object) -> LaunchRequest:
    spec = job_pb2.JobSpec(command=["train"], env={"A": "1"}, params={})
    spec.secrets.add(name="token")
    made = LaunchRequest(
        name="h1-0192-0-1",
        fence=7,
        job="projects/default/jobs/job-1",
        job_uid="0192",
        index=0,
        number=1,
        task_count=1,
        spec=spec,
        placement=Placement("pool", ("0",), 1024),
        traceparent="00-1-2-01",
        credential="hr_l_...",
    )
    return replace(made, **more)  # type: ignore[arg-type]


def test_a_runner_is_told_where_the_server_is_and_who_it_is() -> None:
    assert runner_environment(CTX, request()) == {
        "HATOBA_SERVER": "grpc://hatoba.example:7700",
        "HATOBA_ATTEMPT": "h1-0192-0-1",
        "HATOBA_FENCE": "7",
        "HATOBA_CREDENTIAL": "hr_l_...",
        "TRACEPARENT": "00-1-2-01",
    }
    assert runner_environment(SECURE, request()) == {
        **runner_environment(CTX, request()),
        "HATOBA_SERVER": "grpcs://hatoba.example:7700",
        "HATOBA_CA": PEM,
    }
    assert runner_environment(CTX, request(gang_size=4))["HATOBA_GANG_SIZE"] == "4"


def test_a_credential_is_not_shown() -> None:
    assert "hr_l_" not in repr(request())


def test_an_assignment_is_the_same_bytes_each_time_and_has_no_credential() -> None:
    told = launch_message(request()).SerializeToString(deterministic=True)
    assert told == launch_message(request()).SerializeToString(deterministic=True)
    assert b"hr_l_" not in told
    assert launch_message(request()).resources.memory_bytes == 1024


@pytest.mark.parametrize("generation", [1, 9])
def test_a_replica_is_told_what_it_serves_without_what_is_its_containers(generation: int) -> None:
    template = worker_pb2.ReplicaSpec(revision=3, model_version="models/digits/versions/1")
    template.env["SECRET"] = "shown to nobody"
    template.secrets.add(name="token")
    revision = RevisionTarget(3, 2, 100, template, "hr_r_...")
    target = Target("projects/default/deployments/digits", "d" * 32, generation, (revision,))
    env = replica_environment(SECURE, target, revision)
    assert env["HATOBA_CREDENTIAL"] == "hr_r_..."
    assert env["HATOBA_CA"] == PEM
    told = json_format.Parse(env["HATOBA_REPLICA"], worker_pb2.ReplicaSpec())
    assert (told.deployment, told.revision) == (target.deployment, 3)
    assert not told.env
    assert not told.secrets
    assert "shown" not in json.dumps(env)
    assert template.env["SECRET"]
    assert env == replica_environment(SECURE, replace(target, generation=7), revision)
