"""The rules of manifests: everything that could harm when it is unpacked is refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from hatoba.artifacts.manifest import (
    CHUNK_BYTES,
    MAX_ENTRIES,
    canonical_bytes,
    digest_of,
    ref_of,
    validate_manifest,
)
from hatoba.v1.artifact_pb2 import (
    ENTRY_TYPE_DIRECTORY,
    ENTRY_TYPE_FILE,
    ENTRY_TYPE_SYMLINK,
    Chunk,
    Manifest,
    ManifestEntry,
)

SHA = hashlib.sha256(b"x").digest()


def file(path: str, *sizes: int, mode: int = 0o644, size: int | None = None) -> ManifestEntry:
    """A file of chunks of these sizes, each with a digest of its own."""
    chunks = [
        Chunk(sha256=hashlib.sha256(f"{number} {one}".encode()).digest(), size=one)
        for number, one in enumerate(sizes)
    ]
    total = sum(sizes) if size is None else size
    return ManifestEntry(path=path, type=ENTRY_TYPE_FILE, mode=mode, size=total, chunks=chunks)


def directory(path: str, mode: int = 0o700) -> ManifestEntry:
    return ManifestEntry(path=path, type=ENTRY_TYPE_DIRECTORY, mode=mode)


def link(path: str, target: str) -> ManifestEntry:
    return ManifestEntry(path=path, type=ENTRY_TYPE_SYMLINK, mode=0o777, target=target)


def manifest(*entries: ManifestEntry) -> Manifest:
    return Manifest(entries=entries)


def with_chunk(sha256: bytes, size: int) -> Manifest:
    entry = file("a")
    entry.chunks.add(sha256=sha256, size=size)
    entry.size = size
    return manifest(entry)


def two_sizes_for_one_digest() -> Manifest:
    entries = [file("a", 5), file("b", 6)]
    entries[1].chunks[0].sha256 = entries[0].chunks[0].sha256
    return manifest(*entries)


def bomb() -> Manifest:
    """One chunk, a million times: 8 TB out of 40 MB."""
    entry = file("bomb", CHUNK_BYTES)
    entry.chunks.extend([entry.chunks[0]] * 1_000_000)
    entry.size = CHUNK_BYTES * 1_000_001
    return manifest(entry)


def entry_with_content(kind: ManifestEntry) -> Manifest:
    kind.size = 3
    kind.chunks.add(sha256=SHA, size=3)
    return manifest(kind)


MALICIOUS: dict[str, tuple[Callable[[], Manifest], str, str]] = {
    "absolute": (lambda: manifest(file("/etc/passwd")), "entries[0].path", "relative"),
    "climbs out": (lambda: manifest(file("../x")), "entries[0].path", "`..`"),
    "climbs out later": (lambda: manifest(file("a/../../x")), "entries[0].path", "`..`"),
    "climbs and returns": (lambda: manifest(file("a/../b")), "entries[0].path", "`..`"),
    "empty": (lambda: manifest(file("")), "entries[0].path", "1 to 4096"),
    "the root itself": (lambda: manifest(directory(".")), "entries[0].path", "`.`"),
    "dot part": (lambda: manifest(file("a/./b")), "entries[0].path", "`.`"),
    "empty part": (lambda: manifest(file("a//b")), "entries[0].path", "empty"),
    "slash at the end": (lambda: manifest(directory("a/")), "entries[0].path", "empty"),
    "NUL": (lambda: manifest(file("a\0b")), "entries[0].path", "U+0000"),
    "line feed": (lambda: manifest(file("a\nb")), "entries[0].path", "U+000A"),
    "escape": (lambda: manifest(file("a\x1b[2Jb")), "entries[0].path", "U+001B"),
    "C1 control": (lambda: manifest(file("a\x9bb")), "entries[0].path", "U+009B"),
    "backslash": (lambda: manifest(file("..\\x")), "entries[0].path", "backslash"),
    "drive": (lambda: manifest(file("C:\\x")), "entries[0].path", "backslash"),
    "not NFC": (lambda: manifest(file("e\u0301")), "entries[0].path", "form C"),
    "long name": (lambda: manifest(file("n" * 256)), "entries[0].path", "255 bytes"),
    "long name in bytes": (lambda: manifest(file("波" * 86)), "entries[0].path", "255 bytes"),
    "long path": (lambda: manifest(file("/".join(["n" * 200] * 30))), "entries[0].path", "4096"),
    "too deep": (lambda: manifest(file("/".join(["n"] * 129))), "entries[0].path", "128 parts"),
    "twice": (lambda: manifest(file("a"), file("a")), "entries[1].path", "once"),
    "file and link": (lambda: manifest(file("a"), link("a", "b")), "entries[1].path", "once"),
    "unsorted": (lambda: manifest(file("b"), file("a")), "entries[1].path", "sorted"),
    "below a file": (lambda: manifest(file("a"), file("a/b")), "entries[1].path", "'a'"),
    "far below a file": (lambda: manifest(file("a"), file("a/b/c")), "entries[1].path", "'a'"),
    "below a file, apart": (
        lambda: manifest(file("a"), file("a-b"), file("a/b")),
        "entries[2].path",
        "'a'",
    ),
    "through a link": (
        lambda: manifest(link("a", "b"), file("a/x"), directory("b")),
        "entries[1].path",
        "'a'",
    ),
    "absolute target": (lambda: manifest(link("a", "/etc")), "entries[0].target", "relative"),
    "target outside": (lambda: manifest(link("a", "../x")), "entries[0].target", "inside"),
    "target far outside": (lambda: manifest(link("a/b", "../../x")), "entries[0].target", "inside"),
    "target is above": (lambda: manifest(link("a", "..")), "entries[0].target", "inside"),
    "target out by a link": (
        lambda: manifest(link("a/b/x", "../.."), link("y", "a/b/x/../z")),
        "entries[1].target",
        "`..`",
    ),
    "no target": (lambda: manifest(link("a", "")), "entries[0].target", "1 to 4096"),
    "target with NUL": (lambda: manifest(link("a", "b\0")), "entries[0].target", "U+0000"),
    "target with backslash": (
        lambda: manifest(link("a", "..\\b")),
        "entries[0].target",
        "backslash",
    ),
    "file with a target": (
        lambda: manifest(ManifestEntry(path="a", type=ENTRY_TYPE_FILE, target="b")),
        "entries[0].target",
        "not a link",
    ),
    "no type": (lambda: manifest(ManifestEntry(path="a")), "entries[0].type", "a file"),
    "unknown type": (
        lambda: manifest(ManifestEntry(path="a", type=9)),  # type: ignore[arg-type]
        "entries[0].type",
        "a file",
    ),
    "setuid": (lambda: manifest(file("a", mode=0o4755)), "entries[0].mode", "0777"),
    "sticky": (lambda: manifest(directory("a", 0o1777)), "entries[0].mode", "0777"),
    "directory with content": (
        lambda: entry_with_content(directory("a")),
        "entries[0].chunks",
        "not a file",
    ),
    "link with content": (
        lambda: entry_with_content(link("a", "b")),
        "entries[0].size",
        "not a file",
    ),
    "size too small": (lambda: manifest(file("a", 5, size=4)), "entries[0].size", "sum"),
    "size too big": (lambda: manifest(file("a", 5, size=1 << 40)), "entries[0].size", "sum"),
    "negative size": (lambda: manifest(file("a", size=-1)), "entries[0].size", "sum"),
    "short digest": (lambda: with_chunk(b"x", 1), "entries[0].chunks[0].sha256", "32 bytes"),
    "empty chunk": (lambda: with_chunk(SHA, 0), "entries[0].chunks[0].size", "more than 0"),
    "negative chunk": (lambda: with_chunk(SHA, -8), "entries[0].chunks[0].size", "more than 0"),
    "big chunk": (
        lambda: with_chunk(SHA, CHUNK_BYTES + 1),
        "entries[0].chunks[0].size",
        "8,388,608",
    ),
    "short chunk in the middle": (
        lambda: manifest(file("a", 5, 6)),
        "entries[0].chunks[0].size",
        "8,388,608",
    ),
    "two sizes for one digest": (two_sizes_for_one_digest, "entries[1].chunks[0].size", "the same"),
    "bomb": (bomb, "entries", "at most 1,099,511,627,776"),
    "too many": (
        lambda: manifest(*[directory("a")] * (MAX_ENTRIES + 1)),
        "entries",
        "1,000,000",
    ),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_manifest_is_refused_where_it_is_wrong(name: str) -> None:
    make, field, words = MALICIOUS[name]
    problems = validate_manifest(make())
    assert [found for found in problems if found.field == field and words in found.rule], problems


def test_a_good_manifest_has_no_problems() -> None:
    good = manifest(
        link("a", "b/c"),
        directory("b"),
        file("b/c", CHUNK_BYTES, CHUNK_BYTES, 1),
        link("b/self", "."),
        link("b/up", "../d e.txt"),
        file("d e.txt", mode=0o600),
        file("e-…-é-波止場-\u200d", 7),
    )
    assert validate_manifest(good) == []


def test_a_repeated_chunk_is_fine_below_the_limit_and_refused_above() -> None:
    entry = file("zeros", CHUNK_BYTES)
    entry.chunks.extend([entry.chunks[0]] * 9)
    entry.size = CHUNK_BYTES * 10
    assert validate_manifest(manifest(entry), max_total_bytes=CHUNK_BYTES * 10) == []
    assert validate_manifest(manifest(entry), max_total_bytes=CHUNK_BYTES * 10 - 1)


def test_problems_are_told_up_to_a_hundred() -> None:
    assert len(validate_manifest(manifest(*[file("../x")] * 5000))) == 100


def test_the_digest_is_that_of_the_sorted_fields() -> None:
    tree = manifest(file("a", 5), file("b"))
    ref = ref_of(tree)
    assert ref.digest == "sha256:" + hashlib.sha256(tree.SerializeToString()).hexdigest()
    assert (ref.total_bytes, ref.files) == (5, 2)
    again = Manifest.FromString(canonical_bytes(tree))
    assert digest_of(canonical_bytes(again)) == ref.digest
