"""Buckets by reference: recorded without copying, and refused in words when they cannot be."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from s3_server import CREDENTIALS, S3Server
from server_process import HatobaServer, running_server

from hatoba.aio import AsyncClient
from hatoba.errors import HatobaError, InvalidRequest, NotFound
from tests.integration.datasets.conftest import NO_PROXY, client_of, configure, contents

OBJECTS = {
    "faces/train/cat/1.png": b"c1",
    "faces/train/dog/1.png": b"d1",
    "faces/test/cat/2.png": b"c2",
    "faces/test/cat/empty": b"",
    "facesx/other": b"x",
    "top": b"t",
}


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """A bucket with objects, of one test alone."""
    name = f"b{uuid.uuid4().hex[:12]}"
    s3.make_bucket(name)
    s3.put(name, OBJECTS)
    return name


async def test_a_prefix_becomes_a_version_by_reference(
    client: AsyncClient, bucket: str, tmp_path: Path
) -> None:
    uri = f"s3://{bucket}/faces"
    version = await client.datasets.import_bucket(uri, "faces", labels_from_folders=True)
    assert version.by_reference
    assert (version.item_count, version.manifest.files, version.manifest.total_bytes) == (4, 4, 6)
    assert version.source == f"import {uri}"
    assert dict(version.splits) == {"train": 2, "test": 2}
    assert dict(version.item_labels) == {"cat": 3, "dog": 1}
    again = await client.datasets.import_bucket(f"{uri}/", "faces", labels_from_folders=True)
    assert again == version
    await client.datasets.pull("faces", tmp_path / "out")
    assert contents(tmp_path / "out") == {
        "train/cat/1.png": b"c1",
        "train/dog/1.png": b"d1",
        "test/cat/2.png": b"c2",
        "test/cat/empty": b"",
    }


async def test_a_changed_object_is_another_version(
    client: AsyncClient, bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    await client.datasets.import_bucket(f"s3://{bucket}/faces", "faces")
    s3.put(bucket, {"faces/train/cat/1.png": b"C1"})
    with pytest.raises(HatobaError, match=r"train/cat/1\.png"):
        await client.datasets.pull("faces:1", tmp_path / "old")
    second = await client.datasets.import_bucket(f"s3://{bucket}/faces", "faces")
    assert second.version == 2
    found = await client.datasets.diff("faces:1", "faces:2")
    assert [(one.id, one.change) for one in found.differences] == [("train/cat/1.png", "content")]


async def test_a_whole_bucket_may_be_imported(client: AsyncClient, bucket: str) -> None:
    version = await client.datasets.import_bucket(f"s3://{bucket}", "all")
    assert version.item_count == len(OBJECTS)


BAD_URIS = [
    ("faces", "s3://BUCKET/PREFIX"),
    ("http://bucket/x", "s3://BUCKET/PREFIX"),
    ("s3://", "s3://BUCKET/PREFIX"),
    ("s3://UPPER/x", "s3://BUCKET/PREFIX"),
    ("s3://bucket/../x", "s3://BUCKET/PREFIX"),
    ("s3://bucket/a\nb", "s3://BUCKET/PREFIX"),
]


@pytest.mark.parametrize(("uri", "words"), BAD_URIS)
async def test_an_address_that_cannot_be_one_is_refused(
    client: AsyncClient, uri: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        await client.datasets.import_bucket(uri, "faces")
    assert [one.field for one in caught.value.violations] == ["uri"]
    assert await client.datasets.list() == []


async def test_where_nothing_lies_nothing_is_stored(client: AsyncClient, bucket: str) -> None:
    with pytest.raises(NotFound, match=f"s3://{bucket}/nothing"):
        await client.datasets.import_bucket(f"s3://{bucket}/nothing", "faces")
    with pytest.raises(HatobaError, match="no-such-bucket-here"):
        await client.datasets.import_bucket("s3://no-such-bucket-here/x", "faces")
    assert await client.datasets.list() == []


async def test_names_that_are_not_safe_are_refused(
    client: AsyncClient, bucket: str, s3: S3Server
) -> None:
    s3.put(bucket, {"odd/back\\slash": b"x"})
    with pytest.raises(InvalidRequest, match="backslash"):
        await client.datasets.import_bucket(f"s3://{bucket}/odd", "faces")


@pytest.fixture
async def lost_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[HatobaServer]:
    """A server whose buckets do not answer."""
    for name, value in (CREDENTIALS | NO_PROXY).items():
        monkeypatch.setenv(name, value)
    data = configure(tmp_path / "data", "http://127.0.0.1:9")
    async with running_server(data, worker=False) as one:
        yield one


async def test_an_endpoint_that_does_not_answer_is_named(lost_server: HatobaServer) -> None:
    async with client_of(lost_server) as client:
        with pytest.raises(HatobaError, match=r"127\.0\.0\.1:9") as caught:
            await client.datasets.import_bucket("s3://some-bucket/x", "faces")
        assert "[blobs]" in caught.value.message
        assert await client.datasets.list() == []
