"""What moves trees of files to the server and back, for those who have them moved."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hatoba.v1 import artifact_pb2, common_pb2


class TransferFailed(Exception):
    """A tree could not be moved, and trying again would not help."""


class InputChanged(TransferFailed):
    """What was recorded by reference is not the same any more."""


class Transfers(Protocol):
    """Moves trees. All raise TransferFailed, and wait for a server that is away.

    Those that fetch raise InputChanged when an object of a bucket is not the recorded one.
    """

    async def upload(self, root: Path) -> common_pb2.ManifestRef:
        """Store what is below `root`; return what it is called."""

    async def download(self, ref: common_pb2.ManifestRef, root: Path) -> None:
        """Put a stored tree below `root`, which does not exist yet."""

    async def manifest(self, ref: common_pb2.ManifestRef) -> artifact_pb2.Manifest:
        """What a stored tree holds."""

    async def files(
        self, ref: common_pb2.ManifestRef, some: artifact_pb2.Manifest, root: Path
    ) -> None:
        """Put some of a stored tree's files below `root`, which does not exist yet."""
