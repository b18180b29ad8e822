"""File trees to the server and back, by the calls of ArtifactService alone."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping

from wire import Wire

from hatoba.v1 import artifact_pb2, artifact_pb2_grpc, common_pb2

CHUNK = 8 << 20
PIECE = 1 << 20


async def put_chunks(wire: Wire, chunks: Mapping[bytes, bytes]) -> None:
    """Upload chunks by digest."""

    async def pieces() -> AsyncIterator[artifact_pb2.UploadChunksRequest]:
        for digest, data in chunks.items():
            for start in range(0, len(data), PIECE):
                yield artifact_pb2.UploadChunksRequest(
                    sha256=digest,
                    data=data[start : start + PIECE],
                    last=start + PIECE >= len(data),
                )

    stub = artifact_pb2_grpc.ArtifactServiceStub(await wire.channel())
    await stub.UploadChunks(pieces(), metadata=wire.metadata)


async def put_tree(wire: Wire, files: Mapping[str, bytes]) -> common_pb2.ManifestRef:
    """Store files by path, as a manifest that a job may name."""
    manifest, chunks = artifact_pb2.Manifest(), {}
    for path in sorted(files):
        data = files[path]
        entry = manifest.entries.add(
            path=path, type=artifact_pb2.ENTRY_TYPE_FILE, mode=0o755, size=len(data)
        )
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            digest = hashlib.sha256(part).digest()
            entry.chunks.add(sha256=digest, size=len(part))
            chunks[digest] = part
    if chunks:
        await put_chunks(wire, chunks)
    request = artifact_pb2.CreateManifestRequest(manifest=manifest)
    return (await wire.once(request, artifact_pb2.CreateManifestResponse)).ref


async def get_tree(wire: Wire, digest: str) -> dict[str, bytes]:
    """The files of a stored manifest by path; links as `-> TARGET`."""
    request = artifact_pb2.GetManifestRequest(digest=digest)
    manifest = await wire.once(request, artifact_pb2.Manifest)
    found: dict[str, bytes] = {}
    for entry in manifest.entries:
        if entry.type == artifact_pb2.ENTRY_TYPE_SYMLINK:
            found[entry.path] = f"-> {entry.target}".encode()
        elif entry.type == artifact_pb2.ENTRY_TYPE_FILE:
            found[entry.path] = await _content(wire, [chunk.sha256 for chunk in entry.chunks])
    return found


async def _content(wire: Wire, digests: list[bytes]) -> bytes:
    if not digests:
        return b""
    request = artifact_pb2.DownloadChunksRequest(sha256=digests)
    stream = wire.stream(request, artifact_pb2.DownloadChunksResponse)
    return b"".join([piece.data async for piece in stream])
