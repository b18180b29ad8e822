"""Straight to the bucket and from it: checked before it counts, and files that stay in a bucket."""

from __future__ import annotations

import asyncio
import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hatoba.artifacts.errors import ObjectChanged
from hatoba.artifacts.manifest import MIB
from hatoba.artifacts.transfer import download_tree, upload_tree
from hatoba.errors import from_rpc
from hatoba.v1.artifact_pb2 import (
    ENTRY_TYPE_FILE,
    TRANSFER_DIRECTION_DOWNLOAD,
    TRANSFER_DIRECTION_UPLOAD,
    Chunk,
    ConfirmChunksRequest,
    CreateManifestRequest,
    ExternalObject,
    FindMissingChunksRequest,
    GetTransferUrlsRequest,
    Manifest,
)
from hatoba_scheduler.config import BlobsConfig
from hatoba_scheduler.errors import FailedPrecondition, Reason
from hatoba_scheduler.store.buckets import Bucket
from hatoba_scheduler.store.errors import StorageFailed

A = os.urandom(MIB + 5)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def http(url: str, data: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, data=data, method="GET" if data is None else "PUT")
    request.add_header("Content-Type", "application/octet-stream")
    with urllib.request.urlopen(request, timeout=10) as reply:
        found: bytes = reply.read()
    return found


async def upload_url(server: Any, digest: bytes) -> str:
    request = GetTransferUrlsRequest(direction=TRANSFER_DIRECTION_UPLOAD, sha256=[digest])
    reply = await server.stub.GetTransferUrls(request)
    assert reply.direct
    return str(reply.urls[0].url)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc(caught.value)
    return caught.value.code(), error.reason, error.message


@pytest.fixture
def place(bucket: BlobsConfig) -> BlobsConfig:
    return bucket


async def test_a_chunk_counts_once_it_was_confirmed(server: Any) -> None:
    url = await upload_url(server, sha(A))
    confirm = ConfirmChunksRequest(chunks=[Chunk(sha256=sha(A), size=len(A))])
    assert (await server.stub.ConfirmChunks(confirm)).missing == [sha(A)]
    await asyncio.to_thread(http, url, A)
    find = FindMissingChunksRequest(sha256=[sha(A)])
    assert (await server.stub.FindMissingChunks(find)).sha256 == [sha(A)]
    for _ in range(2):
        assert (await server.stub.ConfirmChunks(confirm)).missing == []
    assert (await server.stub.FindMissingChunks(find)).sha256 == []
    assert server.files() == [sha(A).hex()]
    request = GetTransferUrlsRequest(direction=TRANSFER_DIRECTION_DOWNLOAD, sha256=[sha(A)])
    (got,) = (await server.stub.GetTransferUrls(request)).urls
    assert await asyncio.to_thread(http, got.url) == A


@pytest.mark.parametrize(
    "sent", [A[:-1], A + b"!", bytes(9 * MIB)], ids=["shorter", "longer", "no chunk"]
)
async def test_what_is_something_else_is_refused_and_deleted(server: Any, sent: bytes) -> None:
    await asyncio.to_thread(http, await upload_url(server, sha(A)), sent)
    confirm = ConfirmChunksRequest(chunks=[Chunk(sha256=sha(A), size=len(A))])
    code, reason, message = await refused(server.stub.ConfirmChunks(confirm))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH")
    assert sha(A).hex() in message
    assert server.files() == []


async def test_big_chunks_go_by_the_bucket_and_small_ones_by_the_server(
    server: Any, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(9 * MIB))
    (source / "small").write_bytes(b"small")
    server.servicer.entered.clear()
    ref = await upload_tree(server.stub, source)
    await download_tree(server.stub, ref.digest, tmp_path / "copy")
    assert (tmp_path / "copy" / "big").read_bytes() == (source / "big").read_bytes()
    assert server.servicer.streamed == len(b"small")


# -- files that stay in a bucket ------------------------------------------------------------------


async def with_object(server: Any, s3: Any, data: bytes) -> tuple[str, ExternalObject]:
    """A stored tree of one file, an object that is there now; its digest, and the object."""
    place = server.settings.url.removeprefix("s3://").partition("/")[0]
    await asyncio.to_thread(s3.put, place, {"users/digit.png": data})
    etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
    found = ExternalObject(uri=f"s3://{place}/users/digit.png", etag=etag)
    tree = Manifest()
    tree.entries.add(
        path="digit.png", type=ENTRY_TYPE_FILE, mode=0o644, size=len(data), external=found
    )
    reply = await server.stub.CreateManifest(CreateManifestRequest(manifest=tree))
    return reply.ref.digest, found


async def test_a_file_that_stays_in_a_bucket_is_fetched_from_there(
    server: Any, s3: Any, tmp_path: Path
) -> None:
    digest, _ = await with_object(server, s3, A)
    await download_tree(server.stub, digest, tmp_path / "copy")
    assert (tmp_path / "copy" / "digit.png").read_bytes() == A


@pytest.mark.parametrize("data", [b"another one", A[::-1]], ids=["shorter", "as long"])
async def test_an_object_that_changed_is_told(
    server: Any, s3: Any, tmp_path: Path, data: bytes
) -> None:
    digest, found = await with_object(server, s3, A)
    place, _, key = found.uri.removeprefix("s3://").partition("/")
    await asyncio.to_thread(s3.put, place, {key: data})
    with pytest.raises(ObjectChanged, match=r"digit\.png"):
        await download_tree(server.stub, digest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


async def test_only_what_a_stored_tree_names_can_be_had(server: Any, s3: Any) -> None:
    digest, found = await with_object(server, s3, A)
    for other in (
        ExternalObject(uri=found.uri + "x", etag=found.etag),
        ExternalObject(uri=found.uri, etag="other"),
        ExternalObject(uri="s3://elsewhere/secret", etag=found.etag),
    ):
        request = GetTransferUrlsRequest(
            direction=TRANSFER_DIRECTION_DOWNLOAD, external=[found, other], manifest=digest
        )
        code, _, message = await refused(server.stub.GetTransferUrls(request))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith("external[1]: must be an object that manifest")


# -- endpoints that are wrong or deny --------------------------------------------------------------


async def test_a_bucket_that_is_not_there_keeps_the_server_from_starting(
    tmp_path: Path, bucket: BlobsConfig, opening: Any
) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        async with opening(tmp_path / "blobs", bucket.of_bucket("no-such-bucket")):
            pass
    assert caught.value.reason is Reason.BLOBS_REFUSED
    for word in ("s3://no-such-bucket", bucket.endpoint, "NoSuchBucket", "AWS_ACCESS_KEY_ID"):
        assert word in caught.value.message


async def test_an_endpoint_where_nothing_answers_is_told_in_calls_and_nothing_is_lost(
    tmp_path: Path, bucket: BlobsConfig, serving: Any, source: Path
) -> None:
    nowhere = BlobsConfig(bucket.url, "http://127.0.0.1:9", "us-east-1", allow_http=True)
    async with serving(tmp_path / "blobs", settings=nowhere) as server:
        find = FindMissingChunksRequest(sha256=[sha(A)])
        code, reason, message = await refused(server.stub.FindMissingChunks(find))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert "http://127.0.0.1:9" in message
        assert "[blobs]" in message
    async with serving(tmp_path / "blobs", settings=bucket) as server:
        ref = await upload_tree(server.stub, source)
        assert await server.store.ref(ref.digest) == ref


def test_a_check_says_what_is_wrong_with_a_bucket(bucket: BlobsConfig) -> None:
    Bucket(bucket).check()
    with pytest.raises(FailedPrecondition, match="NoSuchBucket"):
        Bucket(bucket.of_bucket("no-such-bucket")).check()
    with pytest.raises(StorageFailed, match="does not answer"):
        Bucket(BlobsConfig(bucket.url, "http://127.0.0.1:9", "us-east-1", True)).check()
    with pytest.raises(FailedPrecondition, match="cannot be opened"):
        Bucket(BlobsConfig("what://bucket")).check()
