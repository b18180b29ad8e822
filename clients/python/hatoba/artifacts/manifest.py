"""What a manifest is: its digest, its sizes and the rules it must keep. No I/O."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

from google.protobuf.message import DecodeError

from hatoba.artifacts.errors import BadManifest, Problem
from hatoba.v1 import artifact_pb2, common_pb2

MIB = 1024 * 1024
CHUNK_BYTES = 8 * MIB
PIECE_BYTES = 1 * MIB
# Chunks from this size on go to an object store by a request each; smaller ones many at a time.
DIRECT_BYTES = 1 * MIB
DIGEST_BYTES = 32
MAX_ENTRIES = 1_000_000
MAX_TOTAL_BYTES = 1024 * 1024 * MIB
MAX_ENTRY_BYTES = 16 * MIB
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

_ENTRY_TAG = 0x0A
_LONGEST_VARINT = 5
_EXTERNAL = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/\S(.*\S)?")


def canonical_bytes(manifest: artifact_pb2.Manifest) -> bytes:
    """The serialisation whose hash is the manifest's digest."""
    return manifest.SerializeToString(deterministic=True)


def digest_of(canonical: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def ref_of(manifest: artifact_pb2.Manifest) -> common_pb2.ManifestRef:
    """The manifest's digest, the bytes in its files and how many files there are.

    Files that stay in a bucket count with their sizes.
    """
    sizes = [entry.size for entry in manifest.entries if entry.type == FILE]
    digest = digest_of(canonical_bytes(manifest))
    return common_pb2.ManifestRef(digest=digest, total_bytes=sum(sizes), files=len(sizes))


def pieces_of(canonical: bytes) -> Iterator[bytes]:
    """A serialisation in pieces as messages carry them."""
    for start in range(0, len(canonical), PIECE_BYTES):
        yield canonical[start : start + PIECE_BYTES]


def entries_of(pieces: Iterable[bytes]) -> Iterator[artifact_pb2.ManifestEntry]:
    """The entries of a deterministic serialisation that comes in pieces, one at a time.

    Raises BadManifest where it is not a manifest's, or not the deterministic one.
    """
    held = bytearray()
    count = 0
    for piece in pieces:
        held += piece
        start = 0
        while (found := _next_entry(held, start, count)) is not None:
            entry, start = found
            count += 1
            yield entry
        del held[:start]
    if held:
        raise _undecodable(count, "ends in the middle of an entry")


def _next_entry(
    held: bytearray, start: int, count: int
) -> tuple[artifact_pb2.ManifestEntry, int] | None:
    """The entry at `start` and where the next one begins; None when not all of it is there."""
    head = _entry_size(held, start, count)
    if head is None:
        return None
    begin, size = head
    if len(held) < begin + size:
        return None
    raw = bytes(held[begin : begin + size])
    try:
        entry = artifact_pb2.ManifestEntry.FromString(raw)
    except DecodeError:
        raise _undecodable(count, "is not an entry") from None
    if entry.SerializeToString(deterministic=True) != raw:
        raise _undecodable(count, "is not serialised deterministically")
    return entry, begin + size


def _entry_size(held: bytearray, start: int, count: int) -> tuple[int, int] | None:
    """Where the entry's bytes begin and how many they are; None when that is not there yet."""
    if start == len(held):
        return None
    if held[start] != _ENTRY_TAG:
        raise _undecodable(count, "is not an entry")
    size = 0
    for at in range(_LONGEST_VARINT):
        if start + 1 + at >= len(held):
            return None
        byte = held[start + 1 + at]
        size |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            if size > MAX_ENTRY_BYTES:
                raise _undecodable(count, f"has more than {MAX_ENTRY_BYTES:,} bytes")
            return start + 2 + at, size
    raise _undecodable(count, "has no size")


def _undecodable(count: int, why: str) -> BadManifest:
    return BadManifest([Problem(f"entries[{count}]", why)])


def validate_manifest(
    manifest: artifact_pb2.Manifest, *, max_total_bytes: int = MAX_TOTAL_BYTES
) -> list[Problem]:
    """Every rule that the manifest breaks, at most 100; empty means that it is safe to unpack.

    Fields are named from the manifest on: `entries[3].chunks[0].size`.
    """
    if len(manifest.entries) > MAX_ENTRIES:
        return [_too_many(len(manifest.entries))]
    rules = Rules(max_total_bytes, sizes={})
    for entry in manifest.entries:
        rules.take(entry)
        if len(rules.problems) == MAX_PROBLEMS:
            return rules.problems
    rules.end()
    return rules.problems


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


class Rules:
    """One walk over a manifest's entries, in their order; `problems` are the first 100.

    `sizes`, when given, remembers every chunk's size, to find one that has two.
    """

    def __init__(self, max_total_bytes: int, sizes: dict[bytes, int] | None = None) -> None:
        self.problems: list[Problem] = []
        self.files = 0
        self.total_bytes = 0
        self._max_total = max_total_bytes
        self._stored_bytes = 0
        self._sizes = sizes
        self._count = 0
        self._previous = ""
        # Of what is not a directory, those that the last path begins with: in sorted order all
        # that begins with the same text follows on one another.
        self._plain: list[str] = []

    def take(self, entry: artifact_pb2.ManifestEntry) -> None:
        """Look at the next entry."""
        if self._count >= MAX_ENTRIES:
            self._note([_too_many(self._count + 1)])
            return
        self._note(self._all_of(f"entries[{self._count}]", entry))
        self._count += 1
        self._previous = entry.path

    def end(self) -> None:
        """Look at the whole, after the last entry."""
        if self._stored_bytes > self._max_total:
            rule = f"must add up to at most {self._max_total:,} bytes"
            self._note([Problem("entries", rule, f"{self._stored_bytes:,}")])

    def _note(self, found: Iterable[Problem]) -> None:
        for problem in found:
            if len(self.problems) < MAX_PROBLEMS:
                self.problems.append(problem)

    def _all_of(self, at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
        yield from self._order(at, entry.path)
        if wrong := path_problem(entry.path) or self._parent_problem(entry):
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
        if entry.target or entry.type == SYMLINK:
            yield from _target(at, entry)

    def _order(self, at: str, path: str) -> Iterator[Problem]:
        if path == self._previous and path:
            yield Problem(f"{at}.path", "must be there once", _shown(path))
        elif path < self._previous:
            rule = f"must be sorted: after {_shown(self._previous)}"
            yield Problem(f"{at}.path", rule, _shown(path))

    def _parent_problem(self, entry: artifact_pb2.ManifestEntry) -> str:
        path, plain = entry.path, self._plain
        while plain and not path.startswith(plain[-1]):
            plain.pop()
        above = next((one for one in plain if path.startswith(f"{one}/")), None)
        if entry.type != DIRECTORY:
            plain.append(path)
        return (
            "" if above is None else f"must not be below {_shown(above)}, which is not a directory"
        )

    def _file(self, at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
        self.files += 1
        self.total_bytes += max(entry.size, 0)
        if entry.HasField("external"):
            yield from _external(at, entry)
            return
        size = 0
        last = len(entry.chunks) - 1
        for number, chunk in enumerate(entry.chunks):
            if wrong := self._chunk_problem(chunk, number == last):
                yield from (
                    Problem(f"{at}.chunks[{number}].{one.field}", one.rule, one.value)
                    for one in wrong
                )
            size += max(chunk.size, 0)
        if size != entry.size:
            yield Problem(f"{at}.size", f"must be the sum of its chunks, {size:,}", str(entry.size))
        self._stored_bytes += size

    def _chunk_problem(self, chunk: artifact_pb2.Chunk, last: bool) -> list[Problem]:
        found = []
        sha256, size = chunk.sha256, chunk.size
        if len(sha256) != DIGEST_BYTES:
            found.append(Problem("sha256", f"must have {DIGEST_BYTES} bytes", sha256.hex()[:64]))
        if not 1 <= size <= CHUNK_BYTES or (not last and size != CHUNK_BYTES):
            rule = f"must be {'at most ' if last else ''}{CHUNK_BYTES:,} and more than 0"
            found.append(Problem("size", rule, str(size)))
        if self._sizes is not None and self._sizes.setdefault(sha256, size) != size:
            found.append(Problem("size", "must be the same wherever the chunk is used", str(size)))
        return found


def _too_many(count: int) -> Problem:
    return Problem("entries", f"must have at most {MAX_ENTRIES:,} entries", f"{count:,}")


def _external(at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
    if entry.size < 0:
        yield Problem(f"{at}.size", "must be 0 or more", str(entry.size))
    if entry.chunks:
        rule = "must be empty for a file that stays in a bucket"
        yield Problem(f"{at}.chunks", rule, f"{len(entry.chunks)} chunks")
    if not _EXTERNAL.fullmatch(entry.external.uri):
        rule = "must be `s3://BUCKET/KEY`"
        yield Problem(f"{at}.external.uri", rule, _shown(entry.external.uri))
    if not entry.external.etag:
        yield Problem(f"{at}.external.etag", "must not be empty", "''")


def _without_content(at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
    if entry.size:
        yield Problem(f"{at}.size", "must be 0 for what is not a file", str(entry.size))
    if entry.chunks:
        rule = "must be empty for what is not a file"
        yield Problem(f"{at}.chunks", rule, f"{len(entry.chunks)} chunks")
    if entry.HasField("external"):
        rule = "must be absent for what is not a file"
        yield Problem(f"{at}.external", rule, _shown(entry.external.uri))


def _target(at: str, entry: artifact_pb2.ManifestEntry) -> Iterator[Problem]:
    if entry.type == SYMLINK:
        if wrong := target_problem(entry.path, entry.target):
            yield Problem(f"{at}.target", wrong, _shown(entry.target))
    elif entry.target:
        yield Problem(f"{at}.target", "must be empty for what is not a link", _shown(entry.target))


def _shown(text: str) -> str:
    return repr(text if len(text) <= 64 else f"{text[:64]}...")
