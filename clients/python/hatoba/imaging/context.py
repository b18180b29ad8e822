"""What an image is built from: code and packages as they are, on a base that has a runner.

There is no step that runs in the image, so that one machine builds for every architecture.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

CODE, PACKAGES = "/opt/model/code", "/opt/model/packages"
PIECE = 1 << 20


def dockerfile(base: str, labels: Mapping[str, str]) -> str:
    """The recipe; `labels` say what the image was made of."""
    lines = [
        f"FROM {base}",
        f"COPY packages {PACKAGES}",
        f"COPY code {CODE}",
        f"ENV PYTHONPATH={CODE}:{PACKAGES}",
        *(f'LABEL {key}="{value}"' for key, value in sorted(labels.items())),
    ]
    return "\n".join(lines) + "\n"


def pack(recipe: str, code: Path, packages: Path) -> Iterator[bytes]:
    """The context as a tar; the same for the same files."""
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            _add_text(archive, "Dockerfile", recipe)
            _add_tree(archive, code, "code")
            _add_tree(archive, packages, "packages")
        file.seek(0)
        while piece := file.read(PIECE):
            yield piece


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _add_tree(archive: tarfile.TarFile, folder: Path, name: str) -> None:
    archive.add(folder, name, recursive=False, filter=_plain)
    for path in sorted(folder.rglob("*")):
        if "__pycache__" not in path.parts:
            archive.add(path, f"{name}/{path.relative_to(folder)}", recursive=False, filter=_plain)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Root's and of no time; readable to whoever runs in the image."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
    return entry
