"""What machine a program is made for, read off its first bytes."""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = b"\x7fELF"
_HEAD = 20
_MACHINES = {
    (1, 40): "arm",
    (2, 62): "amd64",
    (1, 3): "386",
    (2, 183): "arm64",
    (2, 243): "riscv64",
}
"""By class (32 or 64 bits) and e_machine, as images name their architecture."""


def architecture(head: bytes) -> str:
    """The architecture of a program, `elf-N` for one that no image names; empty: it is no ELF file,
    as a script is none.
    """
    if len(head) < _HEAD or not head.startswith(_MAGIC):
        return ""
    order = "<" if head[5] == 1 else ">"
    (machine,) = struct.unpack_from(f"{order}H", head, 18)
    return _MACHINES.get((head[4], machine), f"elf-{machine}")


def of_file(path: Path) -> str:
    """The same of a file; blocks. Raises OSError."""
    with path.open("rb") as file:
        return architecture(file.read(_HEAD))
