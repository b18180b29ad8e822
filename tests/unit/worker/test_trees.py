"""The cache of trees when a file of it was written to, and many want it at once."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from hatoba.v1 import artifact_pb2, common_pb2
from hatoba_worker.trees import TreeCache

DIGEST = "ab" * 32
REF = common_pb2.ManifestRef(digest=f"sha256:{DIGEST}")
FILES = 40
MANY = 12


class Source:
    """Has one tree."""

    def __init__(self) -> None:
        self.downloads = 0

    async def download(self, ref: common_pb2.ManifestRef, root: Path) -> None:
        """See Transfers."""
        self.downloads += 1
        await asyncio.to_thread(self._write, root)

    def _write(self, root: Path) -> None:
        root.mkdir()
        for number in range(FILES):
            (root / f"{number:02}").write_text(str(number))

    async def upload(self, root: Path) -> common_pb2.ManifestRef:
        """See Transfers."""
        raise NotImplementedError

    async def manifest(self, ref: common_pb2.ManifestRef) -> artifact_pb2.Manifest:
        """See Transfers."""
        raise NotImplementedError

    async def files(
        self, ref: common_pb2.ManifestRef, some: artifact_pb2.Manifest, root: Path
    ) -> None:
        """See Transfers."""
        raise NotImplementedError


async def test_a_spoiled_tree_is_fetched_again_for_all_who_want_it(tmp_path: Path) -> None:
    source, root = Source(), tmp_path / "trees"
    root.mkdir()
    cache = TreeCache(root, source)
    await cache.link(REF, tmp_path / "first")
    for turn in range(1, 6):
        spoil(root / DIGEST / f"{7 * turn:02}")
        targets = [tmp_path / f"{turn}-{number}" for number in range(MANY)]
        async with asyncio.TaskGroup() as tasks:
            for target in targets:
                tasks.create_task(cache.link(REF, target))
        assert source.downloads == 1 + turn
        assert {content(target) for target in targets} == {content(root / DIGEST)}
        assert [path.name for path in root.iterdir()] == [DIGEST]
    assert content(root / DIGEST) == tuple(str(number) for number in range(FILES))


def spoil(file: Path) -> None:
    """Write to a file of the cache, as a job that runs as its owner can."""
    file.chmod(0o600)
    file.write_text("spoiled")
    os.utime(file)


def content(tree: Path) -> tuple[str, ...]:
    """What its files hold, by name."""
    return tuple(path.read_text() for path in sorted(tree.iterdir()))
