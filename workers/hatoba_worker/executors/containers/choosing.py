"""Which engine a worker drives, and what containers on it see of the host."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hatoba_worker.executors.containers.spec import Mount

STANDARD = "/var/run/docker.sock"
NONE = "none"
LABEL = "hatoba/engine"
"""Label of a host that runs containers: `docker`."""


def key_of(host: str, data: Path) -> str:
    """What tells this worker's containers from those of others on its engine."""
    return f"{host}-{hashlib.sha256(str(data).encode()).hexdigest()[:12]}"


def socket_of(told: str, environ: Mapping[str, str]) -> str:
    """The engine's socket: as told, by DOCKER_HOST, else the standard one; empty: none is wanted.

    A DOCKER_HOST that names no unix socket names no engine of this host.
    """
    if told == NONE:
        return ""
    wanted = told or environ.get("DOCKER_HOST", "")
    if not wanted:
        return STANDARD
    path = wanted.removeprefix("unix://")
    return path if path.startswith("/") else ""


def mount_of(text: str) -> Mount:
    """`SOURCE[:TARGET][:ro]`; raises ValueError."""
    parts = text.split(":")
    writable = parts[-1] != "ro"
    paths = parts if writable else parts[:-1]
    if not 1 <= len(paths) <= 2 or not all(path.startswith("/") for path in paths):
        raise ValueError(f"{text!r} is no mount: write /SOURCE[:/TARGET][:ro]")
    return Mount(paths[0], paths[-1], read_only=not writable)


def mounts_of(texts: Iterable[str]) -> list[Mount]:
    """All mounts of the settings; raises ValueError."""
    return [mount_of(text) for text in texts]
