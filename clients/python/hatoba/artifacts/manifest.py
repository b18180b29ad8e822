"""What a manifest is: its digest, its sizes and the rules it must keep. No I/O."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator

from hatoba.artifacts.errors import Problem
from hatoba.v1 import artifact_pb2, common_pb2

MIB = 1024 * 1024
CHUNK_BYTES = 8 * MIB
PIECE_BYTES = 1 * MIB
DIGEST_BYTES = 32
MAX_ENTRIES = 100_000
MAX_TOTAL_BYTES = 10 * 1024 * MIB
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_DEPTH = 128
MAX_MODE = 0o777
# What one message may hold, less the room that the request around a manifest takes.
MAX_MANIFEST_BYTES = 4 * MIB - 64
MAX_PROBLEMS = 100

FILE = artifact_pb2.ENTRY_TYPE_FILE
DIRECTORY = artifact_pb2.ENTRY_TYPE_DIRECTORY
SYMLINK = artifact_pb2.ENTRY_TYPE_SYMLINK


def canonical_bytes(manifest: artifact_pb2.Manifest) -> bytes:
    """The serialisation whose hash is the manifest's digest."""
    return manifest.SerializeToString(deterministic=True)


def digest_of(canonical: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def ref_of(manifest: artifact_pb2.Manifest) -> common_pb2.ManifestRef:
    """The manifest's digest, the bytes in its files and how many files there are."""
    sizes = [entry.size for entry in manifest.entries if entry.type == FILE]
    digest = digest_of(canonical_bytes(manifest))
    return common_pb2.ManifestRef(digest=digest, total_bytes=sum(sizes), files=len(sizes))


def validate_manifest(
    manifest: artifact_pb2.Manifest, *, max_total_bytes: int = MAX_TOTAL_BYTES
) -> list[Problem]:
    """Every rule that the manifest breaks, at most 100; empty means that it is safe to unpack.

    Fields are named from the manifest on: `entries[3].chunks[0].size`.
    """
    if len(manifest.entries) > MAX_ENTRIES:
        count = len(manifest.entries)
        return [Problem("entries", f"must have at most {MAX_ENTRIES:,} entries", f"{count:,}")]
    found: list[Problem] = []
    for problem in _Rules(max_total_bytes).problems(manifest):
        found.append(problem)
        if len(found) == MAX_PROBLEMS:
            break
    return found


def path_problem(path: str) -> str:
    """The rule that a relative path breaks; empty when it is safe."""
    if not path or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        return f"must have 1 to {MAX_PATH_BYTES} bytes"
    if wrong := _text_problem(path):
        return wrong
    if not unicodedata.is_normalized("NFC", path):
        return "must be in Unicode's normal form C"
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        return f"must have at most {MAX_DEPTH} parts"
    return next(filter(None, map(_part_problem, parts)), "")


def target_problem(link: str, target: str) -> str:
    """The rule that the target of the link at `link` breaks; empty when it stays in the tree.

    `..` may stand only at the beginning. There it is taken from the link's own directory, which is
    a real one; after the name of another link it could lead anywhere.
    """
    if not target or len(target.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        return f"must have 1 to {MAX_PATH_BYTES} bytes"
    if wrong := _text_problem(target):
        return wrong
    parts = target.split("/")
    down = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    if down > link.count("/"):
        return "must stay inside the tree"
    if target == ".":
        return ""
    return next(filter(None, map(_part_problem, parts[down:])), "")


def _text_problem(text: str) -> str:
    if "\\" in text:
        return "must not contain a backslash"
    if text.isprintable():
        return ""
    bad = next((char for char in text if unicodedata.category(char) in ("Cc", "Cs")), "")
    return f"must not contain the character U+{ord(bad):04X}" if bad else ""


def _part_problem(part: str) -> str:
    if part in ("", ".", ".."):
        return "must be relative, without empty, `.` or `..` parts"
    if len(part) * 4 <= MAX_NAME_BYTES or len(part.encode()) <= MAX_NAME_BYTES:
        return ""
    return f"must have parts of at most {MAX_NAME_BYTES} bytes"


class _Rules:
    """One walk over a manifest's entries."""

    def __init__(self, max_total_bytes: int) -> None:
        self._max_total = max_total_bytes
        self._total = 0
        self._sizes: dict[bytes, int] = {}
        self._types: dict[str, int] = {}
        self._plain_parents = {""}

    def problems(self, manifest: artifact_pb2.Manifest) -> Iterator[Problem]:
        """Problems in order of the entries, then those of the whole."""
        previous = ""
        for entry in manifest.entries:
            self._types.setdefault(entry.path, entry.type)
        for index, entry in enumerate(manifest.entries):
            at = f"entries[{index}]"
            yield from self._order(at, previous, entry.path)
            yield from self._entry(at, entry)
            previous = entry.path
        if self._total > self._max_total:
            rule = f"must add up to at most {self._max_total:,} bytes"
            yield Problem("entries", rule, f"{self._total:,}")

    def _order(self, at: str, previous: str, path: str) -> Iterator[Problem]:
        if path == previous and path:
            yield Problem(f"{at}.path", "must be there once", _shown(path))
        elif path < previous:
            yield Problem(f"{at}.path", f"must be sorted: after {_shown(previous)}", _shown(path))

    def _entry(self, at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
        if wrong := path_problem(entry.path) or self._parent_problem(entry.path):
            yield Problem(f"{at}.path", wrong, _shown(entry.path))
        if entry.mode > MAX_MODE:
            yield Problem(f"{at}.mode", "must be at most 0777", f"{entry.mode:#o}")
        if entry.type == FILE:
            yield from self._file(at, entry)
        elif entry.type in (DIRECTORY, SYMLINK):
            yield from _without_content(at, entry)
        else:
            rule = "must be a file, a directory or a symbolic link"
            yield Problem(f"{at}.type", rule, str(entry.type))
        yield from _target(at, entry)

    def _parent_problem(self, path: str) -> str:
        parent = path.rpartition("/")[0]
        climbed = []
        while parent not in self._plain_parents:
            if self._types.get(parent, DIRECTORY) != DIRECTORY:
                return f"must not be below {_shown(parent)}, which is not a directory"
            climbed.append(parent)
            parent = parent.rpartition("/")[0]
        self._plain_parents.update(climbed)
        return ""

    def _file(self, at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
        size = 0
        last = len(entry.chunks) - 1
        for number, chunk in enumerate(entry.chunks):
            yield from self._chunk(f"{at}.chunks[{number}]", chunk, number == last)
            size += max(chunk.size, 0)
        if size != entry.size:
            yield Problem(f"{at}.size", f"must be the sum of its chunks, {size:,}", str(entry.size))
        self._total += size

    def _chunk(self, at: str, chunk: artifact_pb2.Chunk, last: bool) -> Iterator[Problem]:
        if len(chunk.sha256) != DIGEST_BYTES:
            yield Problem(
                f"{at}.sha256", f"must have {DIGEST_BYTES} bytes", chunk.sha256.hex()[:64]
            )
        if not 1 <= chunk.size <= CHUNK_BYTES or (not last and chunk.size != CHUNK_BYTES):
            rule = f"must be {'at most ' if last else ''}{CHUNK_BYTES:,} and more than 0"
            yield Problem(f"{at}.size", rule, str(chunk.size))
        if self._sizes.setdefault(chunk.sha256, chunk.size) != chunk.size:
            yield Problem(
                f"{at}.size", "must be the same wherever the chunk is used", str(chunk.size)
            )


def _without_content(at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
    if entry.size:
        yield Problem(f"{at}.size", "must be 0 for what is not a file", str(entry.size))
    if entry.chunks:
        rule = "must be empty for what is not a file"
        yield Problem(f"{at}.chunks", rule, f"{len(entry.chunks)} chunks")


def _target(at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
    if entry.type == SYMLINK:
        if wrong := target_problem(entry.path, entry.target):
            yield Problem(f"{at}.target", wrong, _shown(entry.target))
    elif entry.target:
        yield Problem(f"{at}.target", "must be empty for what is not a link", _shown(entry.target))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else f"{text[:64]}...")
