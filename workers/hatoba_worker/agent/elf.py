"""What machine a program is made for, read off its first bytes."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

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
_RUNS_TOO = {"amd64": "386", "arm64": "arm"}
"""What else the kernel of a machine starts; it loads none of it into programs of its own."""
_LIBRARY = re.compile(r"\.so(\.[0-9.]+)?$")
_MACHINE_WORDS = re.compile(
    r"(?:^|[-_.])(?:x86[-_]64|amd64|x64|i[3-6]86|x86|aarch64|arm64|armv[5-8]l?|armhf|armel|arm|riscv64"
    r"|ppc64le|s390x)(?![a-z])"
)


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


def is_library(name: str) -> bool:
    """Whether a file is called as a shared library is: `NAME.so`, `NAME.so.1.2`."""
    return bool(_LIBRARY.search(name))


def first_foreign(made: Mapping[str, str], machine: str) -> str | None:
    """The first of these files, by name and what they are made for, that this machine can do
    nothing with; None: there is none.

    A tree may carry the same thing for several machines: a file of another one is passed over
    where a file of ours has the same stem, which is its name up to the first dot without words for
    machines, in whatever directory.
    """
    ours = {_stem(name) for name, what in made.items() if what == machine}
    for name, what in sorted(made.items()):
        runs = not what or what == machine or _is_started(name, what, machine)
        if not runs and _stem(name) not in ours:
            return name
    return None


def _is_started(name: str, what: str, machine: str) -> bool:
    return _RUNS_TOO.get(machine) == what and not is_library(name)


def _stem(name: str) -> str:
    bare = _MACHINE_WORDS.sub("", PurePosixPath(name).name.lower())
    return bare.partition(".")[0]
