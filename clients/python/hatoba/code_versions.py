"""Code as jobs ran it: recorded by content, with where it came from."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hatoba import packing
from hatoba.artifacts.source import git_patch, git_source
from hatoba.v1 import common_pb2, dataset_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.client import _LoopThread

PATCH_FILE = "dirty.patch"
_PAGE = 1_000


@dataclass(frozen=True)
class Origin:
    """Where a directory's code came from; `patch` is empty when it is as its commit."""

    source: Mapping[str, str] = field(default_factory=dict)
    patch: bytes = b""


def origin_of(directory: Path) -> Origin:
    """What git knows of a directory. Blocks."""
    source = git_source(directory)
    dirty = source.get("dirty") == "true" and "commit" in source
    return Origin(source, git_patch(directory) if dirty else b"")


async def record(
    client: AsyncClient, name: str, manifest: common_pb2.ManifestRef, origin: Origin
) -> dataset_pb2.CodeVersion:
    """Record stored code under a name. The same content and origin again is the same version."""
    source = origin.source
    request = dataset_pb2.CreateCodeVersionRequest(
        project=client.project,
        code=name,
        manifest=manifest,
        git_remote=source.get("remote", ""),
        git_commit=source.get("commit", ""),
        dirty=source.get("dirty") == "true",
    )
    if origin.patch:
        async with packing.on_thread(packing.one_file(PATCH_FILE, [origin.patch])) as packed:
            request.patch.CopyFrom(await packing.upload(client, packed))
    return await client.call(request, dataset_pb2.CodeVersion)


class AsyncCode:
    """Code of a client's project. Versions are `train:3`; `train` is the newest."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, name: str) -> dataset_pb2.CodeVersion:
        """One version."""
        request = dataset_pb2.GetCodeVersionRequest(project=self._client.project, name=name)
        return await self._client.call(request, dataset_pb2.CodeVersion)

    async def versions(
        self, name: str = "", *, limit: int = 100
    ) -> Sequence[dataset_pb2.CodeVersion]:
        """The newest versions of one name, or of all, at most `limit`."""
        request = dataset_pb2.ListCodeVersionsRequest(project=self._client.project, code=name)
        found: list[dataset_pb2.CodeVersion] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), _PAGE)
            page = await self._client.call(request, dataset_pb2.ListCodeVersionsResponse)
            found.extend(page.versions)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        return found

    async def pull(self, name: str, directory: str | Path) -> dataset_pb2.CodeVersion:
        """Fetch a version's files into a directory, which must be absent or empty."""
        version = await self.get(name)
        await packing.fetch(self._client, version.manifest, Path(directory))
        return version

    async def patch(self, name: str) -> str:
        """How a version differed from its commit; empty when it did not."""
        version = await self.get(name)
        if not version.patch.digest:
            return ""
        async with packing.on_thread(packing.scratch()) as made:
            tree = made / "patch"
            await packing.fetch(self._client, version.patch, tree)
            return await asyncio.to_thread(_text_of, tree / PATCH_FILE)


class Code:
    """Code, for callers without an event loop; see AsyncCode."""

    def __init__(self, loop: _LoopThread, code: AsyncCode) -> None:
        self._loop = loop
        self._code = code

    def get(self, name: str) -> dataset_pb2.CodeVersion:
        """See AsyncCode.get."""
        return self._loop.run(self._code.get(name))

    def versions(self, name: str = "", *, limit: int = 100) -> Sequence[dataset_pb2.CodeVersion]:
        """See AsyncCode.versions."""
        return self._loop.run(self._code.versions(name, limit=limit))

    def pull(self, name: str, directory: str | Path) -> dataset_pb2.CodeVersion:
        """See AsyncCode.pull."""
        return self._loop.run(self._code.pull(name, directory))

    def patch(self, name: str) -> str:
        """See AsyncCode.patch."""
        return self._loop.run(self._code.patch(name))


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
