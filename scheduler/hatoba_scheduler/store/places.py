"""Where `[blobs]` says that chunks are kept."""

from __future__ import annotations

from pathlib import Path

from hatoba_scheduler.config import BlobsConfig
from hatoba_scheduler.store.blob_files import BlobFiles
from hatoba_scheduler.store.blob_place import RESERVE_BYTES, BlobPlace


def open_place(settings: BlobsConfig, root: Path, reserve: int = RESERVE_BYTES) -> BlobPlace:
    """The bucket, else the directory `root`, which is needed for unfinished files either way.

    Blocks; raises FailedPrecondition for an address that cannot be opened.
    """
    if not settings.url:
        return BlobFiles(root, reserve)
    # Most servers have no bucket, and loading its driver takes a while.
    from hatoba_scheduler.store.buckets import Bucket
    from hatoba_scheduler.store.object_blobs import BlobObjects

    return BlobObjects(Bucket(settings), root, reserve)
