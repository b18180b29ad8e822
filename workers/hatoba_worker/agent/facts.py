"""What this machine is and has, as a server is told. All that reads files blocks."""

from __future__ import annotations

import os
import re
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from hatoba.v1 import device_pb2
from hatoba_worker import host
from hatoba_worker.agent import disk
from hatoba_worker.keeper import cgroups

BITS = 8 * struct.calcsize("P")
"""Of the programs that run here, which may be fewer than the kernel's."""
_ARM_32 = ("arm", "v7")
_MACHINES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armv8l": _ARM_32,
    "armv7l": _ARM_32,
    "armv6l": ("arm", "v6"),
}
# A kernel of 64 bits under a system of 32, as Raspberry Pi OS has it.
_NARROW = {"aarch64": _ARM_32, "x86_64": ("386", "")}
_INSTALLATION = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while the agent runs."""

    platform: device_pb2.DevicePlatform
    boot: str
    installation: str

    @classmethod
    def read(cls, data: Path) -> Facts:
        """Those of this machine and a data directory. Raises OSError."""
        return cls(platform_of(os.uname().machine), host.boot_id(), installation(data))


def platform_of(machine: str, bits: int = BITS) -> device_pb2.DevicePlatform:
    """What programs have to be made for, from the kernel's word and the width of a pointer."""
    known = _NARROW if bits == 32 and machine in _NARROW else _MACHINES
    architecture, variant = known.get(machine, (re.sub(r"[^a-z0-9_]", "_", machine.lower()), ""))
    return device_pb2.DevicePlatform(architecture=architecture, variant=variant)


def capacity(data: Path, *, images: bool) -> device_pb2.DeviceCapacity:
    """What there is for our work now; `images`: containers can run here."""
    return device_pb2.DeviceCapacity(
        cpus=host.core_count(),
        memory_bytes=host.memory_bytes(),
        disk_bytes=disk.free_bytes(data),
        limits_memory=cgroups.may_limit(),
        images=images,
    )


def installation(data: Path) -> str:
    """The mark of a data directory, made once. Raises OSError."""
    path = data / "installation"
    try:
        known = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        known = ""
    if not _INSTALLATION.fullmatch(known):
        known = uuid.uuid4().hex
        disk.replace(path, known.encode())
    return known
