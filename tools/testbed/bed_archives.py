"""Images made without an engine: one layer and its settings, as engines load them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from bed_debian import install
from bed_place import Facts
from bed_processes import run

BUSYBOX = "hatoba.test/busybox:1"
PAUSE = "hatoba.test/pause:1"
USERS = b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"


def busybox() -> bytes:
    """A shell and the usual programs: one static program under all its names."""
    install("busybox-static")
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as archive:
        add(archive, "bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
        for name in run("/bin/busybox", "--list").split():
            if name != "busybox":
                add_link(archive, f"bin/{name}", "busybox")
        add(archive, "etc/passwd", USERS, 0o644)
        add(archive, "etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
    return image(BUSYBOX, files.getvalue(), ["/bin/sh"])


def pause(program: Path) -> bytes:
    """What holds a pod's namespaces."""
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as archive:
        add(archive, "pause", program.read_bytes(), 0o755)
    return image(PAUSE, files.getvalue(), ["/pause"])


def image(name: str, layer: bytes, command: Sequence[str]) -> bytes:
    """An archive as `docker load` and `ctr images import` take it; the same for the same layer."""
    digest, files = hashlib.sha256(layer).hexdigest(), io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as archive:
        add(archive, "layer.tar", layer, 0o644)
        describe(archive, name, digest, "amd64", {"Cmd": list(command), "Env": ["PATH=/bin"]})
    return files.getvalue()


def image_file(path: Path, name: str, layer: Path, architecture: str) -> None:
    """The same of a layer in a file, for one too large for memory."""
    with open(layer, "rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    with tarfile.open(path, mode="w") as archive:
        archive.add(layer, "layer.tar")
        describe(archive, name, digest, architecture, {"Cmd": ["python3"]})


def describe(
    archive: tarfile.TarFile, name: str, digest: str, architecture: str, settings: Facts
) -> None:
    """Add what an engine has to know of an image's one layer."""
    about = {
        "architecture": architecture,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    config = json.dumps(about).encode()
    named = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": named, "RepoTags": [name], "Layers": ["layer.tar"]}]
    add(archive, named, config, 0o644)
    add(archive, "manifest.json", json.dumps(manifest).encode(), 0o644)


def add(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    """Add a file."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def add_link(archive: tarfile.TarFile, name: str, target: str) -> None:
    """Add a symbolic link."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)
