"""What lies in a bucket, recorded by reference: keys, entity tags and sizes, no bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from hatoba.artifacts.manifest import FILE, MAX_ENTRIES, path_problem
from hatoba.v1 import artifact_pb2, common_pb2
from hatoba_scheduler.control.items import MODE, ItemWriter
from hatoba_scheduler.domain.datasets import Item, Tally, item_line
from hatoba_scheduler.errors import FailedPrecondition, InvalidArgument, NotFound, Reason
from hatoba_scheduler.store.blobs import ChunkStore
from hatoba_scheduler.store.buckets import Bucket, ExternalMeta, Place, parse_uri
from hatoba_scheduler.store.errors import StorageFailed

Buckets = Callable[[str], Bucket]
"""A user's bucket by name, opened with the server's own credentials."""
_AT_ONCE = 1_000


class Imported(NamedTuple):
    """The content of a version that stays in its bucket."""

    manifest: common_pb2.ManifestRef
    items: common_pb2.ManifestRef | None
    tally: Tally


async def imported(buckets: Buckets, blobs: ChunkStore, uri: str, *, labelled: bool) -> Imported:
    """Record all objects below `s3://BUCKET/PREFIX`; `labelled`: folders are labels.

    Raises InvalidArgument for an address that cannot be one, NotFound when nothing lies there,
    FailedPrecondition when the bucket denies or does not answer.
    """
    place = _place_of(uri)
    try:
        found = await _listed(buckets, place, uri)
    except StorageFailed as error:
        raise FailedPrecondition(error.message, reason=Reason.BLOBS_REFUSED) from error
    except FileNotFoundError as error:
        raise NotFound(f"nothing lies at {uri}: {error}") from error
    if not found:
        raise NotFound(f"no object lies below {uri}; look with the tools of the bucket's owner")
    entries = sorted(found.items())
    manifest = await asyncio.to_thread(_manifest, place.bucket, entries)
    ref = await blobs.put_manifest(manifest)
    if not labelled:
        return Imported(ref, None, Tally(len(entries)))
    tally = Tally()
    async with ItemWriter(blobs) as writer:
        for start in range(0, len(entries), _AT_ONCE):
            paths = [path for path, _ in entries[start : start + _AT_ONCE]]
            await writer.write(_lines(paths, tally))
        return Imported(ref, await writer.finish(), tally)


def _place_of(uri: str) -> Place:
    place = parse_uri(uri)
    if any(part in (".", "..") for part in place.key.split("/")) or not place.key.isprintable():
        raise InvalidArgument.field("uri", "must be `s3://BUCKET/PREFIX`", value=uri)
    return place


async def _listed(buckets: Buckets, place: Place, uri: str) -> dict[str, ExternalMeta]:
    """Objects by their paths below the prefix."""
    bucket = await asyncio.to_thread(buckets, place.bucket)
    prefix = place.key.rstrip("/")
    objects = bucket.objects(prefix)
    found: dict[str, ExternalMeta] = {}
    while some := await asyncio.to_thread(_some, objects):
        for one in some:
            path = _path_of(one.key, prefix)
            # An empty object whose key ends in a slash is how consoles draw a folder.
            if path and not path.endswith("/"):
                found[path] = _checked(one, path, uri)
        if len(found) > MAX_ENTRIES:
            raise InvalidArgument.field(
                "uri", f"has more than {MAX_ENTRIES:,} objects", value=uri, remedy="name a folder"
            )
    return found


def _some(objects: Iterator[ExternalMeta]) -> list[ExternalMeta]:
    return list(islice(objects, _AT_ONCE))


def _path_of(key: str, prefix: str) -> str:
    if not prefix:
        return key
    if key == prefix:
        return key.rpartition("/")[2]
    return key.removeprefix(f"{prefix}/") if key.startswith(f"{prefix}/") else ""


def _checked(one: ExternalMeta, path: str, uri: str) -> ExternalMeta:
    wrong = path_problem(path)
    if wrong:
        raise InvalidArgument.field(
            "uri", f"has an object whose key {wrong}", value=one.key, remedy="rename it there"
        )
    if not one.etag:
        raise FailedPrecondition(
            f"{uri}: the bucket tells no entity tag of {one.key}, so a change would go unnoticed"
        )
    return one


def _manifest(bucket: str, entries: list[tuple[str, ExternalMeta]]) -> artifact_pb2.Manifest:
    manifest = artifact_pb2.Manifest()
    for path, one in entries:
        entry = manifest.entries.add(path=path, type=FILE, mode=MODE, size=one.size)
        entry.external.uri = f"s3://{bucket}/{one.key}"
        entry.external.etag = one.etag
    return manifest


def _lines(paths: list[str], tally: Tally) -> bytes:
    items = [Item(path, path, folder_attributes(path)) for path in paths]
    for item in items:
        tally.add(item)
    return b"".join(map(item_line, items))


def folder_attributes(path: str) -> dict[str, str]:
    """Label, or split and label, from the folders in front of a file."""
    folders = path.split("/")[:-1]
    if not folders:
        return {}
    if len(folders) == 1:
        return {"label": folders[0]}
    return {"split": folders[0], "label": folders[1]}
