"""What this machine has to give away, and who it is."""

from __future__ import annotations

import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from hatoba_worker.keeper.procfs import boot_id

SLOTS_PER_CORE = 32
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

__all__ = ["Identity", "boot_id", "core_count", "memory_bytes"]


def core_count() -> int:
    """Cores of this machine."""
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of this machine in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(slots=True)
class Identity:
    """The host's name, kept from its first start, and the installation it belongs to."""

    path: Path
    name: str
    cluster_id: str = ""

    @classmethod
    def load(cls, data: Path, wanted: str, *, embedded: bool) -> Identity:
        """See `find`; kept from now on."""
        known = cls.find(data, wanted, embedded=embedded)
        known.save()
        return known

    @classmethod
    def find(cls, data: Path, wanted: str, *, embedded: bool) -> Identity:
        """Read what is kept in the directory, or choose a name; raises ValueError for a bad one."""
        path = data / "host.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            known = cls(path, str(found["name"]), str(found["cluster_id"]))
        except (OSError, ValueError, KeyError, TypeError):
            known = cls(path, wanted or _chosen(embedded=embedded))
        if wanted and wanted != known.name:
            raise ValueError(
                f"this directory belongs to the host {known.name!r}; give {wanted!r} one of its own"
            )
        if not _NAME.fullmatch(known.name):
            raise ValueError(
                f"{known.name!r} is not a host's name: small letters, digits and dashes, at most 63"
            )
        return known

    def save(self) -> None:
        """Write it down; blocks."""
        fresh = self.path.with_suffix(".new")
        body = {"name": self.name, "cluster_id": self.cluster_id}
        fresh.write_text(json.dumps(body), encoding="utf-8")
        fresh.replace(self.path)


def _chosen(*, embedded: bool) -> str:
    machine = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower()).strip("-")[:48] or "host"
    # Two workers of one machine are two hosts.
    return machine if embedded else f"{machine}-{os.urandom(3).hex()}"
