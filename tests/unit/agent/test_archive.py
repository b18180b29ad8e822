"""What a program is made for is read off the image itself: labels may lie."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pushed_images import digest_of

from hatoba_worker.agent import elf
from hatoba_worker.agent.archive import archive, require_program
from hatoba_worker.agent.blobs import Unusable
from hatoba_worker.agent.registry import Blob, Manifest


def program(bits: int, machine: int, *, big: bool = False) -> bytes:
    order = ">" if big else "<"
    head = b"\x7fELF" + bytes([bits, 2 if big else 1, 1]) + bytes(9)
    return head + struct.pack(f"{order}HH", 2, machine) + bytes(44)


ARM64, AMD64 = program(2, 183), program(2, 62)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ARM64, "arm64"),
        (AMD64, "amd64"),
        (program(1, 40), "arm"),
        (program(1, 3), "386"),
        (program(2, 21, big=True), "elf-21"),
        (b"#!/bin/sh\n", ""),
        (b"\x7fELF", ""),
        (b"", ""),
    ],
)
def test_the_first_bytes_tell(data: bytes, found: str) -> None:
    assert elf.architecture(data) == found


def test_this_interpreter_is_made_for_this_machine() -> None:
    assert elf.of_file(Path(sys.executable).resolve()) in ("amd64", "arm64")


class Image:
    """An image on the disk, in layers of files, links and what is taken away."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs: dict[str, Path] = {}
        self.layers: list[Blob] = []

    def layer(self, files: Mapping[str, bytes | str], *, packed: bool = True) -> None:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as out:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                if isinstance(data, str):
                    info.type, info.linkname = tarfile.SYMTYPE, data
                    out.addfile(info)
                else:
                    info.size = len(data)
                    out.addfile(info, io.BytesIO(data))
        data = gzip.compress(made.getvalue()) if packed else made.getvalue()
        self.layers.append(self._kept(data))

    def _kept(self, data: bytes) -> Blob:
        digest = digest_of(data)
        self.blobs[digest] = self.root / digest[7:]
        self.blobs[digest].write_bytes(data)
        return Blob(digest, len(data))

    def manifest(self, config: bytes = b"{}") -> Manifest:
        return Manifest("sha256:" + "0" * 64, self._kept(config), tuple(self.layers))

    def check(self, architecture: str, **config: Any) -> None:
        require_program({"config": config}, self.manifest(), self.blobs, architecture)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path)


def test_a_program_for_another_machine_is_named(image: Image) -> None:
    image.layer({"app/main": AMD64})
    image.check("amd64", Entrypoint=["/app/main"])
    with pytest.raises(Unusable) as caught:
        image.check("arm64", Entrypoint=["/app/main"])
    assert str(caught.value) == ("/app/main in the image is made for amd64, this device is arm64")


def test_the_last_layer_that_has_it_counts(image: Image) -> None:
    image.layer({"./app/main": AMD64})
    image.layer({"app/main": ARM64}, packed=False)
    image.check("arm64", Entrypoint=["/app/main"])
    image.layer({"app/.wh.main": b""})
    image.check("amd64", Entrypoint=["/app/main"])


def test_links_are_followed(image: Image) -> None:
    image.layer({"bin": "usr/bin", "usr/bin/python3": "python3.11", "usr/bin/python3.11": AMD64})
    with pytest.raises(Unusable, match="made for amd64"):
        image.check("arm64", Entrypoint=["/bin/python3"], Cmd=["-m", "x"])
    with pytest.raises(Unusable, match="made for amd64"):
        image.check("arm64", Cmd=["python3"], Env=["PATH=/opt:/usr/bin"])
    with pytest.raises(Unusable, match="made for amd64"):
        image.check("arm64", Cmd=["./python3"], WorkingDir="/usr/bin")


def test_of_scripts_and_what_is_not_there_nobody_can_tell(image: Image) -> None:
    image.layer({"main": b"#!/bin/sh\n", "round": "round", "usr/bin/x": "/gone"})
    for line in (["/main"], ["/round"], ["/usr/bin/x"], ["nothing"], []):
        image.check("arm64", Entrypoint=line)
    image.check("arm64")


def test_the_archive_has_all_parts_once(image: Image) -> None:
    image.layer({"a": b"1"})
    image.layer({"b": b"2"})
    image.layers.append(image.layers[0])
    manifest = image.manifest(b'{"architecture": "arm64"}')
    data = b"".join(archive(manifest, image.blobs, "hatoba/x:1"))
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        names = found.getnames()
        assert names[0] == "manifest.json"
        assert len(names) == len(set(names)) == 4
        for name in names[1:]:
            file = found.extractfile(name)
            assert file is not None
            digest = f"sha256:{name.partition('.')[0]}"
            assert digest_of(file.read()) == digest
