"""ModelService.RecordImages over the wire: what is kept of images that were built of a version."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from trees import put_tree
from wire import Wire

from hatoba.v1 import common_pb2, model_pb2, queue_pb2

from .conftest import fresh, refused

FIRST, SECOND = ("sha256:" + digit * 64 for digit in "ab")


@pytest.fixture
async def version(wire: Wire) -> model_pb2.ModelVersion:
    """A READY version without a handler."""
    tree = await put_tree(wire, {"weights.bin": b"\x02"})
    request = model_pb2.RegisterModelRequest(model=fresh("m"), manifest=tree)
    return await wire.once(request, model_pb2.ModelVersion)


def image(architecture: str, digest: str, **fields: Any) -> model_pb2.ModelImage:
    return model_pb2.ModelImage(
        architecture=architecture, digest=digest, reference="r.example/m:1", **fields
    )


async def record(
    wire: Wire, name: str, *images: model_pb2.ModelImage, request_id: str = ""
) -> model_pb2.ModelVersion:
    request = model_pb2.RecordImagesRequest(name=name, images=images, request_id=request_id)
    return await wire.once(request, model_pb2.ModelVersion)


async def test_each_architecture_has_its_newest_image_and_nothing_else_changes(
    wire: Wire, version: model_pb2.ModelVersion
) -> None:
    await record(wire, version.name, image("arm64", FIRST), image("amd64", FIRST))
    kept = await record(wire, version.name, image("arm64", SECOND, pushed=True))
    found = [(one.architecture, one.digest, one.pushed) for one in kept.images]
    assert found == [("amd64", FIRST, False), ("arm64", SECOND, True)]
    assert all(one.create_time.seconds for one in kept.images)
    del kept.images[:]
    assert kept == version


async def test_two_at_once_both_stay(wire: Wire, version: model_pb2.ModelVersion) -> None:
    await asyncio.gather(
        record(wire, version.name, image("amd64", FIRST)),
        record(wire, version.name, image("arm64", SECOND)),
    )
    request = model_pb2.GetModelVersionRequest(name=version.name)
    kept = await wire.once(request, model_pb2.ModelVersion)
    assert [one.digest for one in kept.images] == [FIRST, SECOND]


async def test_a_repeat_is_one_and_another_body_is_refused(
    wire: Wire, version: model_pb2.ModelVersion
) -> None:
    key = fresh("key")
    made = await record(wire, version.name, image("amd64", FIRST), request_id=key)
    again = await record(wire, version.name, image("amd64", FIRST), request_id=key)
    assert again == made
    other = await refused(record(wire, version.name, image("amd64", SECOND), request_id=key))
    assert other.code.name == "ALREADY_EXISTS"


@pytest.mark.parametrize(
    "images",
    [
        [],
        [image("amd64", "sha256:short")],
        [image("riscv64", FIRST)],
        [image("amd64", FIRST), image("amd64", SECOND)],
    ],
    ids=["none", "no digest", "no such architecture", "one architecture twice"],
)
async def test_what_is_no_image_is_refused(
    wire: Wire, version: model_pb2.ModelVersion, images: list[model_pb2.ModelImage]
) -> None:
    assert (await refused(record(wire, version.name, *images))).code.name == "INVALID_ARGUMENT"


async def test_a_version_that_is_not_there_or_still_checked_has_none(wire: Wire) -> None:
    missing = await refused(record(wire, "nothing:3", image("amd64", FIRST)))
    assert missing.code.name == "NOT_FOUND"
    project = fresh("p")
    cordon = queue_pb2.CordonQueueRequest(name=f"projects/{project}/queues/default", cordoned=True)
    await wire.once(cordon, queue_pb2.Queue)
    tree = await put_tree(wire, {"weights.bin": b"\x03"})
    serving = model_pb2.Serving(
        handler="serve:Model", code=common_pb2.ManifestRef(digest=tree.digest)
    )
    serving.example.data, serving.example.media_type = b"[1]", "application/json"
    request = model_pb2.RegisterModelRequest(
        model=fresh("m"), manifest=tree, serving=serving, project=project
    )
    checked = await wire.once(request, model_pb2.ModelVersion)
    early = await refused(record(wire, checked.name, image("amd64", FIRST)))
    assert early.code.name == "FAILED_PRECONDITION"
