"""Deployments of versions with images of their own: the one for the backend's architecture."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from server_process import HatobaServer
from wire import Wire

from hatoba.v1 import deployment_pb2, model_pb2, worker_pb2
from hatoba_plugins.backends.mock.ledger import read_ledger
from hatoba_plugins.backends.mock.replicas import target_of

from .conftest import create, refusal, settled, wanted

DIGESTS = {"amd64": "sha256:" + "1" * 64, "arm64": "sha256:" + "2" * 64}


async def record(wire: Wire, version: str, *architectures: str, pushed: bool = True) -> None:
    """Images of a version, for these."""
    images = [
        model_pb2.ModelImage(
            architecture=one,
            reference=f"registry.test:5000/team/built:7-{one}",
            digest=DIGESTS[one],
            pushed=pushed,
        )
        for one in architectures
    ]
    request = model_pb2.RecordImagesRequest(name=version, images=images)
    await wire.once(request, model_pb2.ModelVersion)


async def template(
    server: HatobaServer, wire: Wire, name: str, version: str, backend: str
) -> worker_pb2.ReplicaSpec:
    """What the backend was told to make replicas from."""
    await create(wire, name, wanted(version, backend=backend))
    uid = (await settled(wire, name)).uid.replace("-", "")
    told = await asyncio.to_thread(read_ledger, server.data / f"mock.ledger-{backend}")
    applied = [one for one in told if one.event == "apply" and one.name == uid]
    (revision,) = target_of(uid, applied[-1].data).revisions
    return revision.template


@pytest.mark.parametrize(
    ("version", "built", "backend", "architecture"),
    [
        ("built:1", ("amd64", "arm64"), "arm", "arm64"),
        ("built:1", ("amd64", "arm64"), "both", "arm64"),
        ("built:2", ("amd64",), "both", "amd64"),
    ],
)
async def test_replicas_run_in_the_image_of_the_backends_architecture(
    server: HatobaServer,
    wire: Wire,
    name: str,
    version: str,
    built: tuple[str, ...],
    backend: str,
    architecture: str,
) -> None:
    await record(wire, version, *built)
    made = await template(server, wire, name, version, backend)
    image = f"registry.test:5000/team/built@{DIGESTS[architecture]}"
    assert (made.serving.environment.image, made.architecture) == (image, architecture)


async def test_images_that_are_in_no_registry_are_left_alone(
    server: HatobaServer, wire: Wire, name: str
) -> None:
    await record(wire, "built:3", "arm64", pushed=False)
    made = await template(server, wire, name, "built:3", "arm")
    assert (made.serving.environment.image, made.architecture) == ("", "")


@pytest.mark.parametrize("validate_only", [True, False])
async def test_a_version_without_an_image_that_runs_there_is_refused(
    wire: Wire, name: str, validate_only: bool
) -> None:
    await record(wire, "built:2", "amd64")
    spec = wanted("built:2", backend="arm")
    refused = await refusal(
        wire,
        deployment_pb2.CreateDeploymentRequest(
            deployment=name, spec=spec, validate_only=validate_only
        ),
    )
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    for words in (
        "spec.model",
        "for amd64",
        "'arm' runs arm64",
        "images build built:2 --arch arm64",
    ):
        assert words in (refused.details() or "")
