"""What releases are made of, on a device: the specification, the model, the code.

A release is named by the digest of its specification, which names the rest by theirs. All of it is
here, whole and checked, before anything is switched; nothing of what may still run is ever taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from hatoba.v1 import artifact_pb2, common_pb2, worker_pb2
from hatoba_worker.agent import disk
from hatoba_worker.agent.blobs import BlobStore, Gone, Source
from hatoba_worker.agent.slots import Release
from hatoba_worker.agent.trees import DeviceTrees


class Library(Source, Protocol):
    """Where content comes from: chunks, and what a tree is made of."""

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        """What a tree holds. Raises Gone, Cut."""
        ...


def spec_digest(spec: worker_pb2.ReplicaSpec) -> str:
    """What a release is named by: everything about it but how its server is called."""
    bare = worker_pb2.ReplicaSpec()
    bare.CopyFrom(spec)
    bare.name = bare.deployment = ""
    data = bare.SerializeToString(deterministic=True)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class ModelContent:
    """See `Content`. Below `root` are specifications, `trees` and `blobs` have the rest."""

    def __init__(self, root: Path, trees: DeviceTrees, blobs: BlobStore, library: Library) -> None:
        self._root = root
        self._trees = trees
        self._blobs = blobs
        self._library = library
        self._offered: set[str] = set()
        self._fetches = 0

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blobs.prepare()
        self._trees.prepare()

    async def offer(self, spec: worker_pb2.ReplicaSpec) -> str:
        """Keep a specification that may be wanted; its digest. Raises OSError."""
        digest = spec_digest(spec)
        self._offered.add(digest)
        path = self._path(digest)
        if not await asyncio.to_thread(path.exists):
            data = spec.SerializeToString(deterministic=True)
            await asyncio.to_thread(disk.replace, path, data)
        return digest

    def _path(self, digest: str) -> Path:
        return self._root / self._blobs.path(digest).name

    async def spec_of(self, name: str, release: Release) -> worker_pb2.ReplicaSpec:
        """The specification of a release. Raises Gone, for one that was never offered or is
        damaged."""
        del name
        found = await asyncio.to_thread(self._read, release.digest)
        if found is None:
            raise Gone(f"the specification of revision {release.revision} is not on this device")
        return found

    def _read(self, digest: str) -> worker_pb2.ReplicaSpec | None:
        with contextlib.suppress(OSError, ValueError):
            spec = worker_pb2.ReplicaSpec.FromString(self._path(digest).read_bytes())
            if spec_digest(spec) == digest:
                return spec
        return None

    async def fetch(self, name: str, release: Release) -> None:
        """Have all of a release here. Raises Cut, Gone, Wrong, Full, OSError."""
        spec = await self.spec_of(name, release)
        self._fetches += 1
        try:
            for ref in _trees_of(spec):
                if not await asyncio.to_thread(self._trees.has, ref.digest):
                    manifest = await self._library.manifest(ref.digest)
                    await self._trees.bring(ref.digest, manifest, self._library)
        finally:
            self._fetches -= 1

    async def check(self, name: str, release: Release) -> bool:
        """Whether what is here of it is what was fetched; what is not is removed."""
        try:
            spec = await self.spec_of(name, release)
        except Gone:
            return False
        checks = [await asyncio.to_thread(self._trees.check, ref.digest) for ref in _trees_of(spec)]
        return all(checks)

    async def collect(self, keep: Mapping[str, frozenset[Release]]) -> None:
        """Remove what is of no release of these."""
        digests = {release.digest for releases in keep.values() for release in releases}
        await asyncio.to_thread(self._collect, digests, self._fetches == 0)

    def _collect(self, digests: Iterable[str], blobs: bool) -> None:
        kept = {self._path(digest).name: self._read(digest) for digest in digests}
        trees = [ref.digest for spec in kept.values() if spec for ref in _trees_of(spec)]
        self._trees.collect(trees)
        if blobs:
            # What was fetched half, and nobody fetches now, is of something that is wanted no more.
            self._blobs.collect(())
        offered = {self._path(digest).name for digest in self._offered}
        for path in list(self._root.iterdir()):
            if path.name not in kept and path.name not in offered:
                path.unlink(missing_ok=True)


def _trees_of(spec: worker_pb2.ReplicaSpec) -> list[common_pb2.ManifestRef]:
    refs = [spec.model, spec.serving.code]
    return [ref for ref in refs if ref.digest]
