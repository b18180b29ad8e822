"""Users' buckets that are kept open."""

from __future__ import annotations

from hatoba_scheduler.config import BlobsConfig
from hatoba_scheduler.store.buckets import MOST_OPEN, Externals


def test_a_bucket_stays_open_until_many_others_were_named() -> None:
    externals = Externals(BlobsConfig(region="us-east-1"))
    first = externals.bucket("first")
    for number in range(MOST_OPEN - 1):
        externals.bucket(f"other-{number}")
    assert externals.bucket("first") is first
    externals.bucket("one-more")
    assert externals.bucket("first") is not first
