"""An image of Debian's Python with what models of demos import, made and pushed without an engine.

It has two layers: Debian, and the packages in the versions of the lock. Both are made once for all.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import bed_images
import bed_system
from bed_images import AMD64
from bed_place import cache
from bed_processes import run

PACKAGES = "usr/lib/python3/dist-packages"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYERS = ("debian", "packages")
# What is packed better takes longer than it saves here.
_QUICK = 1


class Pushed(NamedTuple):
    """An image in a registry: its name there, its digest, and the bytes of its layers."""

    name: str
    digest: str
    size: int

    @property
    def reference(self) -> str:
        """By its digest."""
        return f"{self.name}@{self.digest}"


def made() -> Path:
    """A folder with the layers, each as NAME.tar.gz and, by its digest when unpacked, NAME.id.
    Raises Unavailable and Broken.
    """
    digest = hashlib.sha256(f"{bed_images.recipe()} {_lock()}".encode()).hexdigest()[:12]
    return bed_system.once(cache() / "python-image" / digest, _make)


def _lock() -> str:
    return bed_system.lock_of(bed_system.MORE)


def _make(folder: Path) -> None:
    archive = bed_images.base(AMD64)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        run("tar", "--extract", f"--file={archive}", f"--directory={beside}", "layer.tar")
        _pack(Path(beside, "layer.tar"), folder, "debian")
        _packages(Path(beside), Path(beside, "packages.tar"))
        _pack(Path(beside, "packages.tar"), folder, "packages")


def _packages(beside: Path, layer: Path) -> None:
    lock, root = beside / "packages.txt", beside / "root"
    lock.write_text(_lock())
    bed_system.install(root / PACKAGES, AMD64, *bed_images.wheels(lock, AMD64).glob("*.whl"))
    owned = ["--numeric-owner", "--owner=0", "--group=0", "--sort=name", "--mtime=@0"]
    run("tar", "--create", f"--file={layer}", f"--directory={root}", *owned, "usr")


def _pack(layer: Path, folder: Path, name: str) -> None:
    (folder / f"{name}.id").write_text(_digest(layer))
    with layer.open("rb") as plain, gzip.open(folder / f"{name}.tar.gz", "wb", _QUICK) as packed:
        shutil.copyfileobj(plain, packed, 1 << 20)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


# -- pushing --------------------------------------------------------------------------------------


def push(registry: str, folder: Path, name: str = "python") -> Pushed:
    """Have it in a registry, which is spoken to without TLS."""
    at = f"http://{registry}/v2/{name}"
    layers = [_layer(at, folder / f"{each}.tar.gz") for each in LAYERS]
    about = {
        "architecture": AMD64.name,
        "os": "linux",
        "config": {"Cmd": ["python3"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [(folder / f"{each}.id").read_text() for each in LAYERS],
        },
    }
    config = _blob(at, json.dumps(about).encode(), CONFIG)
    whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    manifest = json.dumps(whole).encode()
    digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    _send("PUT", f"{at}/manifests/{digest}", manifest, {"Content-Type": MANIFEST})
    return Pushed(f"{registry}/{name}", digest, sum(one["size"] for one in layers))


def _layer(at: str, path: Path) -> Mapping[str, Any]:
    size, digest = path.stat().st_size, _digest(path)
    with path.open("rb") as file:
        _upload(at, digest, file, size)
    return {"mediaType": LAYER, "digest": digest, "size": size}


def _blob(at: str, data: bytes, media_type: str) -> Mapping[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _upload(at, digest, data, len(data))
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _upload(at: str, digest: str, data: bytes | BinaryIO, size: int) -> None:
    place = _send("POST", f"{at}/blobs/uploads/", b"", {})["Location"]
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
    _send("PUT", f"{place}&digest={digest}", data, headers)


def _send(
    method: str, url: str, data: bytes | BinaryIO, headers: Mapping[str, str]
) -> Mapping[str, str]:
    """What it answers; no proxy stands between."""
    request = urllib.request.Request(url, data, dict(headers), method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as reply:
        return dict(reply.headers)
