"""Sends trees to a server and fetches them: only the chunks that are missing, a piece at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from hatoba.artifacts.errors import DigestMismatch, TreeChanged
from hatoba.artifacts.manifest import (
    MAX_MANIFEST_BYTES,
    canonical_bytes,
    digest_of,
    pieces_of,
    ref_of,
)
from hatoba.artifacts.options import (
    DEFAULT,
    Progress,
    TransferOptions,
    batches,
    typed_errors,
    uninterrupted,
)
from hatoba.artifacts.pack import PackedTree, pack_tree
from hatoba.artifacts.receiving import Receiving
from hatoba.artifacts.sending import Sending
from hatoba.artifacts.unpack import Unpacking
from hatoba.errors import Exhausted
from hatoba.streams import open_stream
from hatoba.v1 import artifact_pb2, artifact_pb2_grpc, common_pb2

__all__ = [
    "DEFAULT",
    "Progress",
    "TransferOptions",
    "download_files",
    "download_tree",
    "fetch_manifest",
    "upload_tree",
]

FIND_BATCH = 10_000


async def upload_tree(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    tree: str | Path | PackedTree,
    options: TransferOptions = DEFAULT,
) -> common_pb2.ManifestRef:
    """Store a tree on the server; what it returns is durable there.

    A directory is packed as code (see `pack_tree` for other trees). After an error, the same call
    again sends only what the server has not got yet. Raises TreeRefused, TreeChanged, and the
    HatobaError that the server's status stands for.
    """
    packed = tree if isinstance(tree, PackedTree) else await asyncio.to_thread(pack_tree, tree)
    with typed_errors(options):
        if await _is_stored(stub, packed.ref, options):
            return packed.ref
        await asyncio.to_thread(packed.load)
        missing = await _missing(stub, packed, options)
        try:
            await Sending(stub, {sha: packed.sources[sha] for sha in missing}, options).run()
        except TreeChanged:
            await asyncio.to_thread(packed.distrust)
            raise
        return await _create(stub, packed, options)


async def _is_stored(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    ref: common_pb2.ManifestRef,
    options: TransferOptions,
) -> bool:
    sha256 = bytes.fromhex(ref.digest.partition(":")[2])
    reply = await stub.FindMissingChunks(
        artifact_pb2.FindMissingChunksRequest(manifests=[sha256]),
        timeout=options.call_seconds,
        metadata=options.metadata,
    )
    return sha256 in reply.manifests


async def _missing(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    packed: PackedTree,
    options: TransferOptions,
) -> list[bytes]:
    missing: list[bytes] = []
    for batch in batches(list(packed.sources), FIND_BATCH):
        reply = await stub.FindMissingChunks(
            artifact_pb2.FindMissingChunksRequest(sha256=batch),
            timeout=options.call_seconds,
            metadata=options.metadata,
        )
        missing.extend(reply.sha256)
    return missing


async def _create(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    packed: PackedTree,
    options: TransferOptions,
) -> common_pb2.ManifestRef:
    canonical = await asyncio.to_thread(canonical_bytes, packed.manifest)
    if len(canonical) <= MAX_MANIFEST_BYTES:
        request = artifact_pb2.CreateManifestRequest(manifest=packed.manifest)
        reply = await stub.CreateManifest(
            request, timeout=options.call_seconds, metadata=options.metadata
        )
        return reply.ref

    async def pieces() -> AsyncIterator[artifact_pb2.UploadManifestRequest]:
        for piece in pieces_of(canonical):
            yield artifact_pb2.UploadManifestRequest(data=piece)

    async with open_stream(stub.UploadManifest(pieces(), metadata=options.metadata)) as call:
        return (await call).ref


async def fetch_manifest(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    digest: str,
    options: TransferOptions = DEFAULT,
) -> artifact_pb2.Manifest:
    """A manifest by digest, checked against it. Raises NotFound, DigestMismatch, HatobaError."""
    try:
        with typed_errors(options):
            manifest = await stub.GetManifest(
                artifact_pb2.GetManifestRequest(digest=digest),
                timeout=options.call_seconds,
                metadata=options.metadata,
            )
    except Exhausted as error:
        if error.reason != "MESSAGE_TOO_LARGE":
            raise
        return await _large_manifest(stub, digest, options)
    found = digest_of(canonical_bytes(manifest))
    if found != digest:
        raise DigestMismatch(f"the server sent manifest {found} instead of {digest}")
    return manifest


async def _large_manifest(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub, digest: str, options: TransferOptions
) -> artifact_pb2.Manifest:
    """One that is larger than a message."""
    request = artifact_pb2.DownloadManifestRequest(digest=digest)
    with typed_errors(options):
        async with open_stream(stub.DownloadManifest(request, metadata=options.metadata)) as call:
            raw = b"".join([reply.data async for reply in call])
    found = digest_of(raw)
    if found != digest:
        raise DigestMismatch(f"the server sent manifest {found} instead of {digest}")
    return await asyncio.to_thread(artifact_pb2.Manifest.FromString, raw)


async def download_tree(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    digest: str,
    target: str | Path,
    options: TransferOptions = DEFAULT,
) -> common_pb2.ManifestRef:
    """Fetch a tree into `target`, which must be absent or an empty directory.

    The target appears when all of it is there and checked; after an error nothing is left behind.
    Raises NotFound, BadManifest, DigestMismatch, ObjectChanged, UnpackFailed, HatobaError.
    """
    manifest = await fetch_manifest(stub, digest, options)
    if options.only:
        manifest = await asyncio.to_thread(_part, manifest, options.only)
    await download_files(stub, manifest, target, options, digest=digest)
    return ref_of(manifest)


async def download_files(
    stub: artifact_pb2_grpc.ArtifactServiceAsyncStub,
    manifest: artifact_pb2.Manifest,
    target: str | Path,
    options: TransferOptions = DEFAULT,
    *,
    digest: str = "",
) -> None:
    """Fetch what a manifest at hand names, as `download_tree` does; it need not be a stored one.

    `digest` is that of a stored one that names the same objects of buckets, if there are any.
    """
    unpacking = await asyncio.to_thread(Unpacking, manifest, target)
    try:
        await uninterrupted(unpacking.begin)
        await Receiving(stub, unpacking, options, digest).run()
        await uninterrupted(unpacking.finish)
    finally:
        await uninterrupted(unpacking.discard)


def _part(whole: artifact_pb2.Manifest, paths: frozenset[str]) -> artifact_pb2.Manifest:
    """The tree with nothing but the files at these paths."""
    return artifact_pb2.Manifest(entries=[one for one in whole.entries if one.path in paths])
