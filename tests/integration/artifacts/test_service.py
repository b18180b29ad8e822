"""ArtifactService over the wire: order, digests, limits, and nothing kept of what is wrong."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hatoba.artifacts.manifest import CHUNK_BYTES, MIB, canonical_bytes, digest_of, pieces_of
from hatoba.artifacts.transfer import fetch_manifest
from hatoba.errors import from_rpc
from hatoba.streams import open_stream
from hatoba.v1.artifact_pb2 import (
    ENTRY_TYPE_FILE,
    TRANSFER_DIRECTION_DOWNLOAD,
    Chunk,
    ConfirmChunksRequest,
    CreateManifestRequest,
    DownloadChunksRequest,
    DownloadManifestRequest,
    FindMissingChunksRequest,
    GetManifestRequest,
    GetTransferUrlsRequest,
    Manifest,
    ManifestEntry,
    UploadChunksRequest,
    UploadChunksResponse,
    UploadManifestRequest,
    WholeChunk,
)
from hatoba_scheduler.services.artifacts import ArtifactLimits

A, B, C = b"alpha", b"beta", b"gamma"


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def whole(data: bytes) -> UploadChunksRequest:
    return UploadChunksRequest(sha256=sha(data), data=data, last=True)


async def upload(server: Any, requests: Sequence[UploadChunksRequest]) -> UploadChunksResponse:
    async def sending() -> AsyncIterator[UploadChunksRequest]:
        for request in requests:
            yield request

    reply: UploadChunksResponse = await server.stub.UploadChunks(sending())
    return reply


async def stored(server: Any, *contents: bytes) -> list[bytes]:
    """Which of these the server has."""
    digests = [sha(content) for content in contents]
    reply = await server.stub.FindMissingChunks(FindMissingChunksRequest(sha256=digests))
    return [content for content in contents if sha(content) not in reply.sha256]


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and message of a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc(caught.value)
    return caught.value.code(), error.reason, error.message


def tree(**contents: bytes) -> Manifest:
    manifest = Manifest()
    for path, data in sorted(contents.items()):
        entry = manifest.entries.add(path=path, type=ENTRY_TYPE_FILE, mode=0o644, size=len(data))
        if data:
            entry.chunks.add(sha256=sha(data), size=len(data))
    return manifest


async def test_chunks_in_pieces_are_stored_and_sent_back_in_the_order_asked(server: Any) -> None:
    requests = [
        UploadChunksRequest(sha256=sha(A), data=A[:2]),
        UploadChunksRequest(data=A[2:4]),
        UploadChunksRequest(sha256=sha(A), data=A[4:], last=True),
        whole(B),
        UploadChunksRequest(sha256=sha(C), data=C),
        UploadChunksRequest(last=True),
    ]
    reply = await upload(server, requests)
    assert (reply.chunks, reply.bytes) == (3, len(A + B + C))
    assert await stored(server, A, B, C, b"other") == [A, B, C]
    call = server.stub.DownloadChunks(DownloadChunksRequest(sha256=[sha(C), sha(A), sha(C)]))
    async with open_stream(call):
        got = [(reply.position, reply.data, reply.last) async for reply in call]
    assert got == [(0, C, True), (1, A, True), (2, C, True)]


async def test_pieces_sent_back_have_at_most_a_mebibyte(server: Any) -> None:
    big = bytes(2 * MIB + 5)
    parts = [UploadChunksRequest(sha256=sha(big), data=big[at : at + MIB]) for at in (0, MIB)]
    await upload(server, [*parts, UploadChunksRequest(data=big[2 * MIB :], last=True)])
    call = server.stub.DownloadChunks(DownloadChunksRequest(sha256=[sha(big)]))
    async with open_stream(call):
        got = [(len(reply.data), reply.last) async for reply in call]
    assert got == [(MIB, False), (MIB, False), (5, True)]


async def test_a_chunk_comes_from_a_byte_on(server: Any) -> None:
    big = bytes(range(256)) * (MIB // 128)
    parts = [UploadChunksRequest(sha256=sha(big), data=big[at : at + MIB]) for at in (0, MIB)]
    parts[-1].last = True
    await upload(server, parts)
    for offset in (1, MIB - 1, MIB, len(big) - 1, len(big), len(big) + 7):
        request = DownloadChunksRequest(sha256=[sha(big)], offset=offset, whole=True)
        call = server.stub.DownloadChunks(request)
        async with open_stream(call):
            got = [reply async for reply in call]
        assert b"".join(reply.data for reply in got) == big[offset:]
        assert [reply.last for reply in got] == [False] * (len(got) - 1) + [True]


async def test_several_chunks_have_no_byte_to_begin_at(server: Any) -> None:
    await upload(server, [whole(A)])
    call = server.stub.DownloadChunks(DownloadChunksRequest(sha256=[sha(A), sha(A)], offset=1))
    async with open_stream(call):
        code, _, message = await refused(call.read())
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "offset" in message


async def test_small_chunks_travel_many_in_one_message(server: Any) -> None:
    big = bytes(MIB + 1)
    requests = [
        UploadChunksRequest(whole=[WholeChunk(sha256=sha(one), data=one) for one in (A, B)]),
        UploadChunksRequest(sha256=sha(big), data=big[:MIB]),
        UploadChunksRequest(data=big[MIB:], last=True),
        UploadChunksRequest(whole=[WholeChunk(sha256=sha(C), data=C)]),
    ]
    reply = await upload(server, requests)
    assert (reply.chunks, reply.bytes) == (4, len(A + B + C + big))
    wanted = [sha(one) for one in (A, B, big, C)]
    call = server.stub.DownloadChunks(DownloadChunksRequest(sha256=wanted, whole=True))
    async with open_stream(call):
        got = [reply async for reply in call]
    assert [(one.position, list(one.whole), len(one.data), one.last) for one in got] == [
        (0, [A, B], 0, False),
        (2, [], MIB, False),
        (2, [], 1, True),
        (3, [C], 0, False),
    ]


async def test_a_manifest_of_any_size_comes_and_goes_in_pieces(server: Any) -> None:
    await upload(server, [whole(A)])
    manifest = tree(**{f"folder/item-{number:06}": A for number in range(70_000)})
    canonical = canonical_bytes(manifest)
    assert len(canonical) > 4 * MIB
    pieces = [UploadManifestRequest(data=piece) for piece in pieces_of(canonical)]
    ref = (await server.stub.UploadManifest(iter_async(pieces))).ref
    assert (ref.digest, ref.files) == (digest_of(canonical), 70_000)
    call = server.stub.DownloadManifest(DownloadManifestRequest(digest=ref.digest))
    async with open_stream(call):
        assert b"".join([reply.data async for reply in call]) == canonical
    request = GetManifestRequest(digest=ref.digest)
    code, reason, message = await refused(server.stub.GetManifest(request))
    assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert "DownloadManifest" in message
    assert await fetch_manifest(server.stub, ref.digest) == manifest


async def iter_async(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"junk", "entries[0]"),
        (b"\n\x05ab", "ends in the middle"),
        (b"\n\xff\xff\xff\xff\xff\x01", "has no size"),
        (b"\n\xff\xff\xff\x7f", "has more than"),
        (b"\n\x06\x10\x01\x0a\x02ab", "not serialised deterministically"),
        (b"\n\x02\x28\x01", "entries[0]"),
    ],
)
async def test_what_is_no_manifest_is_refused(server: Any, raw: bytes, words: str) -> None:
    call = server.stub.UploadManifest(iter_async([UploadManifestRequest(data=raw)]))
    code, _, message = await refused(call)
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert words in message
    assert server.files() == []


async def test_stored_manifests_are_told_and_unknown_ones_are_not(server: Any) -> None:
    await upload(server, [whole(A)])
    ref = (await server.stub.CreateManifest(CreateManifestRequest(manifest=tree(a=A)))).ref
    known = bytes.fromhex(ref.digest.partition(":")[2])
    request = FindMissingChunksRequest(manifests=[sha(B), known])
    assert list((await server.stub.FindMissingChunks(request)).manifests) == [known]


async def test_a_directory_gives_out_no_addresses(serving: Any, tmp_path: Path) -> None:
    async with serving(tmp_path / "blobs") as server:
        request = GetTransferUrlsRequest(direction=TRANSFER_DIRECTION_DOWNLOAD, sha256=[sha(A)])
        reply = await server.stub.GetTransferUrls(request)
        assert (reply.direct, len(reply.urls)) == (False, 0)
        confirm = ConfirmChunksRequest(chunks=[Chunk(sha256=sha(A), size=len(A))])
        code, _, message = await refused(server.stub.ConfirmChunks(confirm))
        assert code == grpc.StatusCode.FAILED_PRECONDITION
        assert "UploadChunks" in message


async def test_a_known_chunk_is_accepted_again_and_still_checked(server: Any) -> None:
    await upload(server, [whole(A)])
    reply = await upload(server, [whole(A), whole(A)])
    assert (reply.chunks, reply.bytes) == (2, 2 * len(A))
    wrong = UploadChunksRequest(sha256=sha(A), data=B, last=True)
    assert (await refused(upload(server, [wrong])))[1] == "DIGEST_MISMATCH"
    assert await stored(server, A, B) == [A]
    assert server.files() == [sha(A).hex()]


async def test_nothing_is_kept_of_a_wrong_digest_and_what_came_before_is(server: Any) -> None:
    wrong = UploadChunksRequest(sha256=sha(B), data=b"not beta", last=True)
    code, reason, message = await refused(upload(server, [whole(A), wrong, whole(C)]))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH")
    assert sha(B).hex() in message
    assert sha(b"not beta").hex() in message
    assert await stored(server, A, B, C) == [A]
    assert server.files() == [sha(A).hex()]


WRONG_STREAMS: dict[str, tuple[list[UploadChunksRequest], str]] = {
    "no digest": ([UploadChunksRequest(data=B, last=True)], "sha256: must have 32 bytes"),
    "short digest": ([UploadChunksRequest(sha256=b"x", data=B, last=True)], "sha256: must have 32"),
    "another chunk begins": (
        [UploadChunksRequest(sha256=sha(B), data=B), whole(C)],
        "sha256: must be absent or that of the chunk",
    ),
    "stops in the middle": ([UploadChunksRequest(sha256=sha(B), data=B)], "last: must be set"),
    "empty chunk": (
        [UploadChunksRequest(sha256=sha(b""), last=True)],
        "data: must have at least 1 byte",
    ),
    "empty piece": ([UploadChunksRequest(sha256=sha(B))], "data: must not be empty"),
    "big piece": (
        [UploadChunksRequest(sha256=sha(B), data=bytes(MIB + 1), last=True)],
        "data: must be at most 1048576 bytes",
    ),
    "whole with a piece": (
        [UploadChunksRequest(sha256=sha(B), whole=[WholeChunk(sha256=sha(B), data=B)])],
        "whole: must stand alone",
    ),
    "whole within a chunk": (
        [
            UploadChunksRequest(sha256=sha(B), data=B),
            UploadChunksRequest(whole=[WholeChunk(sha256=sha(C), data=C)]),
        ],
        "whole: must stand alone",
    ),
    "big chunk": (
        [UploadChunksRequest(sha256=sha(B), data=bytes(MIB)) for _ in range(9)],
        "data: must add up to at most 8,388,608",
    ),
}


@pytest.mark.parametrize("name", WRONG_STREAMS)
async def test_a_stream_out_of_order_is_refused_and_leaves_no_piece(server: Any, name: str) -> None:
    requests, words = WRONG_STREAMS[name]
    code, _, message = await refused(upload(server, [whole(A), *requests]))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message.replace("1,048,576", "1048576").startswith(words)
    assert server.files() == [sha(A).hex()]


async def test_a_broken_stream_keeps_what_was_whole(server: Any) -> None:
    async with open_stream(server.stub.UploadChunks()) as call:
        await call.write(whole(A))
        await call.write(UploadChunksRequest(sha256=sha(B), data=B[:2]))
        await server.servicer.entered.wait()
    await server.servicer.left.wait()
    assert server.files() in ([sha(A).hex()], [])
    await upload(server, [whole(A), whole(B)])
    assert await stored(server, A, B) == [A, B]


async def test_a_missing_chunk_is_named_before_anything_is_sent(server: Any) -> None:
    await upload(server, [whole(A)])
    call = server.stub.DownloadChunks(DownloadChunksRequest(sha256=[sha(A), sha(B)]))
    async with open_stream(call):
        code, reason, message = await refused(call.read())
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert sha(B).hex() in message


async def test_a_manifest_is_stored_once_all_its_chunks_are(server: Any) -> None:
    manifest = tree(a=A, b=B, empty=b"")
    await upload(server, [whole(A)])
    request = CreateManifestRequest(manifest=manifest)
    code, reason, message = await refused(server.stub.CreateManifest(request))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CHUNKS_MISSING")
    assert sha(B).hex() in message
    assert sha(A).hex() not in message
    await upload(server, [whole(B)])
    first = (await server.stub.CreateManifest(request)).ref
    assert (first.total_bytes, first.files) == (len(A + B), 3)
    assert (await server.stub.CreateManifest(request)).ref == first
    assert await server.stub.GetManifest(GetManifestRequest(digest=first.digest)) == manifest
    assert await server.store.ref(first.digest) == first


def lying_about_size() -> Manifest:
    manifest = tree(a=A)
    manifest.entries[0].chunks[0].size = manifest.entries[0].size = len(A) + 1
    return manifest


WRONG_MANIFESTS = {
    "path traversal": (tree(**{"../evil": A}), "manifest.entries[0].path"),
    "wrong size": (lying_about_size(), "manifest.entries[0].chunks[0].size"),
    "short digest": (
        Manifest(
            entries=[
                ManifestEntry(
                    path="a", type=ENTRY_TYPE_FILE, size=1, chunks=[Chunk(sha256=b"x", size=1)]
                )
            ]
        ),
        "manifest.entries[0].chunks[0].sha256",
    ),
    "bomb": (
        Manifest(
            entries=[
                ManifestEntry(
                    path="a",
                    type=ENTRY_TYPE_FILE,
                    size=CHUNK_BYTES * 2000,
                    chunks=[Chunk(sha256=sha(A), size=CHUNK_BYTES)] * 2000,
                )
            ]
        ),
        "manifest.entries",
    ),
}


@pytest.mark.parametrize("name", WRONG_MANIFESTS)
async def test_a_wrong_manifest_is_refused_by_field_and_not_stored(server: Any, name: str) -> None:
    manifest, field = WRONG_MANIFESTS[name]
    await upload(server, [whole(A)])
    call = server.stub.CreateManifest(CreateManifestRequest(manifest=manifest))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert field in [violation.field for violation in from_rpc(caught.value).violations]
    assert server.files() == [sha(A).hex()]


@pytest.mark.parametrize(
    "digest", ["", "sha256:../../../etc/passwd", "sha256:" + "A" * 64, "md5:0"]
)
async def test_a_digest_that_is_none_is_refused(server: Any, digest: str) -> None:
    code, _, message = await refused(server.stub.GetManifest(GetManifestRequest(digest=digest)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("digest: must be")


async def test_an_unknown_manifest_is_not_found(server: Any) -> None:
    request = GetManifestRequest(digest="sha256:" + "0" * 64)
    code, reason, _ = await refused(server.stub.GetManifest(request))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_more_streams_than_may_wait_are_sent_away(tmp_path: Path, serving: Any) -> None:
    async with (
        serving(tmp_path / "blobs", ArtifactLimits(streams=1, waiting=0)) as server,
        open_stream(server.stub.UploadChunks()) as first,
    ):
        await first.write(UploadChunksRequest(sha256=sha(A), data=A[:2]))
        await server.servicer.entered.wait()
        code, reason, _ = await refused(upload(server, [whole(B)]))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        await first.write(UploadChunksRequest(data=A[2:], last=True))
        await first.done_writing()
        assert (await first).chunks == 1
        assert (await upload(server, [whole(B)])).chunks == 1


async def test_streams_that_wait_are_served_in_turn(tmp_path: Path, serving: Any) -> None:
    contents = [b"%d" % number for number in range(12)]
    async with (
        serving(tmp_path / "blobs", ArtifactLimits(streams=2)) as server,
        asyncio.TaskGroup() as group,
    ):
        for content in contents:
            group.create_task(upload(server, [whole(content), whole(A)]), name="upload")
    async with serving(tmp_path / "blobs") as again:
        assert await stored(again, *contents, A) == [*contents, A]


async def test_a_stream_that_stands_still_is_ended(tmp_path: Path, serving: Any) -> None:
    limits = ArtifactLimits(streams=1, stall_seconds=0.02)
    async with serving(tmp_path / "blobs", limits) as server:
        async with open_stream(server.stub.UploadChunks()) as call:
            await call.write(UploadChunksRequest(sha256=sha(A), data=A[:2]))
            code, _, _ = await refused(call)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert server.files() == []
        assert (await upload(server, [whole(A)])).chunks == 1
