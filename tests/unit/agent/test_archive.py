"""What a program is made for is read off the image itself: labels may lie."""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pushed_images import digest_of

from hatoba_worker.agent import elf
from hatoba_worker.agent.archive import Digests, archive, require_program
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
        self.layers.append(self.kept(data))

    def kept(self, data: bytes) -> Blob:
        digest = digest_of(data)
        self.blobs[digest] = self.root / digest[7:]
        self.blobs[digest].write_bytes(data)
        return Blob(digest, len(data))

    def manifest(self, config: bytes = b"{}") -> Manifest:
        return Manifest("sha256:" + "0" * 64, self.kept(config), tuple(self.layers))

    def check(self, architecture: str, *others: str, **config: Any) -> None:
        require_program({"config": config}, self.manifest(), self.blobs, architecture, *others)


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


def test_a_program_that_will_be_run_is_looked_at_too(image: Image) -> None:
    image.layer({"bin/sh": AMD64, "usr/bin/python3": ARM64})
    image.check("amd64", Entrypoint=["/bin/sh"])
    with pytest.raises(Unusable, match="python3 in the image is made for arm64"):
        image.check("amd64", "python3", Entrypoint=["/bin/sh"])


@pytest.mark.parametrize("data", [b"\x28\xb5\x2f\xfd packed in another way", b"\x1f\x8b", b""])
def test_what_cannot_be_unpacked_here_is_left_to_the_engine(image: Image, data: bytes) -> None:
    image.layer({"bin/sh": AMD64})
    image.layers.append(image.kept(data))
    image.check("arm64", Entrypoint=["/bin/sh"])


@pytest.mark.parametrize("line", [5, [5], {"a": 1}])
def test_a_command_that_is_none_is_left_to_the_engine(image: Image, line: Any) -> None:
    image.layer({"bin/sh": AMD64})
    image.check("arm64", Entrypoint=line)


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


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_a_part_of_any_size_ends_where_it_ends(image: Image, size: int) -> None:
    image.layers.append(image.kept(b"x" * size))
    pieces = list(archive(image.manifest(b"{}".ljust(512)), image.blobs, "hatoba/x:1"))
    # An empty piece would be taken for the end.
    assert b"" not in pieces
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as found:
        assert {one.size for one in found.getmembers()[1:]} == {size, 512}


def test_a_layer_that_the_engine_has_is_named_and_left_out(image: Image) -> None:
    image.layer({"a": b"1"})
    image.layer({"b": b"2"})
    manifest = image.manifest()
    blobs = {digest: path for digest, path in image.blobs.items() if digest != image.layers[0][0]}
    data = b"".join(archive(manifest, blobs, "hatoba/x:1"))
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        index = found.extractfile("manifest.json")
        assert index is not None
        (told,) = json.load(index)
        assert len(told["Layers"]) == 2
        assert told["Layers"][0] not in found.getnames()
        assert told["Layers"][1] in found.getnames()


@given(st.lists(st.binary(max_size=2_000), max_size=5), st.integers(1, 3_000))
def test_what_an_archive_holds_is_known_however_it_comes(files: list[bytes], step: int) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as out:
        for number, content in enumerate(files):
            info = tarfile.TarInfo(f"{number}/layer.tar")
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    data, digests = made.getvalue(), Digests()
    for at in range(0, len(data), step):
        digests.take(data[at : at + step])
    assert digests.found == {digest_of(content) for content in files if content}


def test_what_is_no_archive_is_found_out() -> None:
    with pytest.raises(tarfile.TarError):
        Digests().take(b"no archive" * 100)
