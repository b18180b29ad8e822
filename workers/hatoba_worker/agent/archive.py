"""An image that is here whole, as the archive that an engine loads; and what it would run.

An engine gives an image back as such an archive, too, which is how it is looked at again.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hatoba_worker.agent import elf
from hatoba_worker.agent.blobs import Unusable
from hatoba_worker.agent.registry import Blob, Manifest

PIECE = 256 << 10
LINKS_MOST = 8
_BLOCK = 512
_PATHS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
_UNREADABLE = (tarfile.TarError, EOFError, OSError, ValueError, TypeError, zlib.error)
Json = Mapping[str, Any]


def archive(manifest: Manifest, blobs: Mapping[str, Path], tag: str) -> Iterator[bytes]:
    """The archive piece by piece; `blobs` are the parts by digest. A layer that is not among them
    is one that the engine has: it is named, and left out. Blocks. Raises OSError.
    """
    names = {part.digest: f"{_hex(part.digest)}.tar" for part in manifest.layers}
    config = f"{_hex(manifest.config.digest)}.json"
    told = [
        {
            "Config": config,
            "RepoTags": [tag],
            "Layers": [names[part.digest] for part in manifest.layers],
        }
    ]
    index = json.dumps(told).encode()
    yield _header("manifest.json", len(index))
    yield _padded(index)
    yield from _file(config, manifest.config, blobs)
    for part in {one.digest: one for one in manifest.layers if one.digest in blobs}.values():
        yield from _file(names[part.digest], part, blobs)
    yield bytes(2 * _BLOCK)


def _hex(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _BLOCK)


def _file(name: str, part: Blob, blobs: Mapping[str, Path]) -> Iterator[bytes]:
    yield _header(name, part.size)
    with blobs[part.digest].open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            yield piece
    if rest := -part.size % _BLOCK:
        yield bytes(rest)


# -- what it runs ---------------------------------------------------------------------------------


def require_program(
    config: Json,
    manifest: Manifest,
    blobs: Mapping[str, Path],
    architecture: str,
    *others: str,
) -> None:
    """Raise Unusable where the program that the image begins with, or one of `others` in it, is
    made for another machine, whatever index, manifest and configuration say. Blocks.
    """
    told = config.get("config") or {}
    layers = [blobs[part.digest] for part in manifest.layers if part.digest in blobs]
    try:
        files, links = _indexed(layers)
        for program in filter(None, (_program(told), *others)):
            found = _machine(layers, _candidates(program, told), files, links)
            if found not in ("", architecture):
                raise Unusable(
                    f"{program} in the image is made for {found}, this device is {architecture}"
                )
    except _UNREADABLE:
        # Packed in another way than we know, or damaged: what becomes of it the engine decides.
        return


def _program(config: Json) -> str:
    line = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
    return str(line[0]) if line else ""


def _candidates(program: str, config: Json) -> list[str]:
    """Where it is looked for, as the engine does."""
    if "/" in program:
        base = str(config.get("WorkingDir") or "/")
        return [posixpath.normpath(posixpath.join(base, program))]
    variables = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    path = variables.get("PATH", ":".join(_PATHS)).split(":")
    return [posixpath.join(directory, program) for directory in path]


def _machine(
    layers: Sequence[Path],
    wanted: Sequence[str],
    files: Mapping[str, int],
    links: Mapping[str, str],
) -> str:
    """What the first of these paths is made for; links are followed. Empty: nobody can tell."""
    for path in wanted:
        found = _followed(path, files, links)
        if found is not None:
            return elf.architecture(_head(layers[files[found]], found))
    return ""


def _followed(path: str, files: Mapping[str, int], links: Mapping[str, str]) -> str | None:
    """Where a path leads, links of its directories followed as well; None: to nothing."""
    for _ in range(LINKS_MOST):
        if path in files:
            return path
        link = next((one for one in _prefixes(path) if one in links), None)
        if link is None:
            return None
        target = posixpath.join(posixpath.dirname(link), links[link])
        path = posixpath.normpath(target + path[len(link) :])
    return None


def _prefixes(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(2, len(parts) + 1)]


def _indexed(layers: Sequence[Path]) -> tuple[dict[str, int], dict[str, str]]:
    """Files by path, with the layer that has them last, and links with their targets."""
    files: dict[str, int] = {}
    links: dict[str, str] = {}
    for number, layer in enumerate(layers):
        with tarfile.open(layer, mode="r|*") as packed:
            for member in _members(packed):
                path = _absolute(member.name)
                files.pop(path, None)
                links.pop(path, None)
                if member.isreg():
                    files[path] = number
                elif member.issym():
                    links[path] = member.linkname
                elif member.islnk():
                    links[path] = _absolute(member.linkname)
                _white_out(path, files, links)
    return files, links


def _members(packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """One by one: all that were seen would be kept else, which are megabytes for an image."""
    while (member := packed.next()) is not None:
        yield member
        packed.members.clear()  # type: ignore[attr-defined]


def _white_out(path: str, files: dict[str, int], links: dict[str, str]) -> None:
    """A layer takes away what is named so in those below it."""
    directory, _, name = path.rpartition("/")
    if name.startswith(".wh."):
        gone = f"{directory}/{name[4:]}"
        files.pop(gone, None)
        links.pop(gone, None)


def _absolute(name: str) -> str:
    return posixpath.normpath("/" + name.lstrip("./")) if name.strip("./") else "/"


def _head(layer: Path, path: str) -> bytes:
    with tarfile.open(layer, mode="r|*") as packed:
        for member in _members(packed):
            if _absolute(member.name) == path:
                file: IO[bytes] | None = packed.extractfile(member)
                return file.read(64) if file is not None else b""
    return b""


# -- what an engine gives back --------------------------------------------------------------------


class Digests:
    """Of the files of an archive that comes in pieces."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._header = bytearray()
        self._left = self._rest = 0
        """Bytes that are missing of a file, and of what fills its last block."""
        self._hash = hashlib.sha256()

    def take(self, data: bytes) -> None:
        """The next piece. Raises tarfile.TarError for what is no archive."""
        view = memoryview(data)
        while view:
            if self._left:
                view = view[self._content(view[: self._left]) :]
            elif self._rest:
                skipped = min(self._rest, len(view))
                self._rest -= skipped
                view = view[skipped:]
            else:
                missing = _BLOCK - len(self._header)
                self._header += view[:missing]
                view = view[missing:]
                self._begin()

    def _content(self, data: memoryview) -> int:
        self._hash.update(data)
        self._left -= len(data)
        if not self._left:
            self.found.add(f"sha256:{self._hash.hexdigest()}")
        return len(data)

    def _begin(self) -> None:
        """Go on with the file that a whole header begins; one of zeros begins none."""
        if len(self._header) < _BLOCK:
            return
        header, self._header = bytes(self._header), bytearray()
        if any(header):
            size = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
            self._left, self._rest = size, -size % _BLOCK
            self._hash = hashlib.sha256()
