"""What releases are made of, on a device: the specification, the image, the model, the code.

A release is named by the digest of its specification, which names the rest by theirs. All of it is
here, whole and checked, before anything is switched; nothing of what may still run is ever taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import structlog
from google.protobuf.message import DecodeError

from hatoba.v1 import artifact_pb2, common_pb2, worker_pb2
from hatoba_worker.agent import disk
from hatoba_worker.agent.blobs import BlobStore, Gone, NoEngine, Source
from hatoba_worker.agent.slots import Release
from hatoba_worker.agent.trees import DeviceTrees

log = structlog.get_logger(__name__)


class Library(Source, Protocol):
    """Where content comes from: chunks, and what a tree is made of."""

    async def manifest(self, digest: str) -> artifact_pb2.Manifest:
        """What a tree holds. Raises Gone, Cut."""
        ...


class Images(Protocol):
    """Has images in the device's container engine."""

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        ...

    async def require(self, reference: str, architecture: str) -> None:
        """Raise Unusable for an image that can never be here."""
        ...

    async def fetch(self, reference: str, beside: int) -> None:
        """Have an image in the engine; `beside` are bytes that the rest of its release takes.
        Raises Cut, Gone, Wrong, Full, Unusable, OSError.
        """
        ...

    async def check(self, reference: str) -> bool:
        """Whether the engine has all of an image; one that it has not is removed. Raises
        OSError.
        """
        ...

    async def collect(self, keep: Collection[str]) -> None:
        """Remove images that are not to be kept."""
        ...


class NoImages:
    """A device that runs processes alone."""

    def prepare(self) -> None:
        """Nothing is needed."""

    async def require(self, reference: str, architecture: str) -> None:
        """Raises NoEngine."""
        del architecture
        raise NoEngine(f"this device has no container engine; {reference} is an image")

    async def fetch(self, reference: str, beside: int) -> None:
        """Raises NoEngine."""
        del beside
        await self.require(reference, "")

    async def check(self, reference: str) -> bool:
        """None is here."""
        del reference
        return False

    async def collect(self, keep: Collection[str]) -> None:
        """None is here."""


def spec_digest(spec: worker_pb2.ReplicaSpec) -> str:
    """What a release is named by: everything about it but how its server is called."""
    bare = worker_pb2.ReplicaSpec()
    bare.CopyFrom(spec)
    bare.name = bare.deployment = ""
    data = bare.SerializeToString(deterministic=True)
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class ModelContent:
    """See `Content`. Below `root` are specifications, `trees` and `blobs` have the rest. `machine`
    is what programs of processes have to be made for; empty: nobody knows.
    """

    def __init__(
        self,
        root: Path,
        trees: DeviceTrees,
        blobs: BlobStore,
        library: Library,
        images: Images | None = None,
        machine: str = "",
    ) -> None:
        self._root = root
        self._trees = trees
        self._blobs = blobs
        self._library = library
        self._images = images or NoImages()
        self._machine = machine
        self._offered: set[str] = set()
        self._fetches = 0

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._blobs.prepare()
        self._trees.prepare()
        self._images.prepare()

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
        with contextlib.suppress(OSError, DecodeError):
            spec = worker_pb2.ReplicaSpec.FromString(self._path(digest).read_bytes())
            if spec_digest(spec) == digest:
                return spec
        return None

    async def fetch(self, name: str, release: Release) -> None:
        """Have all of a release here. Raises Cut, Gone, Wrong, Full, Unusable, OSError."""
        spec = await self.spec_of(name, release)
        image = spec.serving.environment.image
        if image:
            await self._images.require(image, spec.architecture)
        self._fetches += 1
        try:
            manifests = await self._missing(spec)
            await asyncio.to_thread(self._claim, name, manifests.values())
            if image:
                await self._images.fetch(image, await self._cost(manifests.values()))
            for digest, manifest in manifests.items():
                await self._trees.bring(digest, manifest, self._library)
        finally:
            self._fetches -= 1
        if self._machine and not image:
            await self._require_ours(spec)

    async def _require_ours(self, spec: worker_pb2.ReplicaSpec) -> None:
        # What an image runs is made for the image.
        for ref in _trees_of(spec):
            await asyncio.to_thread(self._trees.require_for, self._machine, ref.digest)

    async def _missing(self, spec: worker_pb2.ReplicaSpec) -> dict[str, artifact_pb2.Manifest]:
        """What the trees hold that are not here yet. Raises Cut, Gone, Wrong."""
        digests = [ref.digest for ref in _trees_of(spec)]
        return {
            digest: await self._library.manifest(digest)
            for digest in digests
            if not await asyncio.to_thread(self._trees.has, digest)
        }

    def _claim(self, name: str, manifests: Iterable[artifact_pb2.Manifest]) -> None:
        """What came of a release that is not wanted any more makes room."""
        entries = [entry for manifest in manifests for entry in manifest.entries]
        chunks = [one.sha256.hex() for entry in entries for one in entry.chunks]
        if chunks:
            self._blobs.claim(name, (f"sha256:{one}" for one in chunks))

    async def _cost(self, manifests: Iterable[artifact_pb2.Manifest]) -> int:
        """Bytes of disk that these trees take while they come."""
        return sum([sum(await asyncio.to_thread(self._trees.plan, one)) for one in manifests])

    async def check(self, name: str, release: Release) -> bool:
        """Whether what is here of it is what was fetched; what is not is removed. Raises
        OSError.
        """
        try:
            spec = await self.spec_of(name, release)
        except Gone:
            return False
        checks = [await asyncio.to_thread(self._trees.check, ref.digest) for ref in _trees_of(spec)]
        if image := spec.serving.environment.image:
            checks.append(await self._images.check(image))
        return all(checks)

    async def collect(self, keep: Mapping[str, frozenset[Release]]) -> None:
        """Remove what is of no release of these. Where it cannot be read what one of them is made
        of, all stays.
        """
        digests = {release.digest for releases in keep.values() for release in releases}
        kept = await asyncio.to_thread(self._read_all, digests)
        if kept is None:
            log.error("agent.not_collected", reason="a specification cannot be read")
            return
        await asyncio.to_thread(self._collect, kept, self._fetches == 0)
        images = (spec.serving.environment.image for spec in kept.values())
        await self._images.collect({image for image in images if image})

    def _read_all(self, digests: Iterable[str]) -> dict[str, worker_pb2.ReplicaSpec] | None:
        """Specifications by the names of their files."""
        found = {}
        for digest in digests:
            spec = self._read(digest)
            if spec is None:
                return None
            found[self._path(digest).name] = spec
        return found

    def _collect(self, kept: Mapping[str, worker_pb2.ReplicaSpec], idle: bool) -> None:
        trees = {ref.digest for spec in kept.values() for ref in _trees_of(spec)}
        self._trees.collect(trees)
        if idle and all(self._trees.has(one) for one in trees):
            # What was fetched half is of something that is wanted no more.
            self._blobs.collect(())
        offered = {self._path(digest).name for digest in self._offered}
        for path in list(self._root.iterdir()):
            if path.name not in kept and path.name not in offered:
                path.unlink(missing_ok=True)


def _trees_of(spec: worker_pb2.ReplicaSpec) -> list[common_pb2.ManifestRef]:
    refs = [spec.model, spec.serving.code]
    return [ref for ref in refs if ref.digest]
