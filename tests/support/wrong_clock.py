"""Programs whose clock is wrong: the date is another one, what counts seconds is not touched."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def why_not() -> str:
    """What keeps this machine from having them; empty: nothing."""
    return "" if shutil.which("cc") else "there is no C compiler to make a wrong clock with"


def built(directory: Path) -> Path:
    """The library that programs load before all else; blocks."""
    library = directory / "wrong_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def wrong_by(seconds: float, library: Path) -> dict[str, str]:
    """What a program has in its environment whose clock is wrong by so much."""
    return {"LD_PRELOAD": str(library), "WRONG_CLOCK": f"{round(seconds)}"}


@dataclass(frozen=True, slots=True)
class JumpingClock:
    """A clock that is changed while programs run by it; right at first."""

    library: Path
    path: Path

    @classmethod
    def made(cls, library: Path) -> JumpingClock:
        """One more; blocks."""
        clock = cls(library, library.with_suffix(".seconds"))
        clock.path.write_bytes(struct.pack("@l", 0))
        return clock

    @property
    def environ(self) -> dict[str, str]:
        """What a program has in its environment that goes by it."""
        return {"LD_PRELOAD": str(self.library), "WRONG_CLOCK_FILE": str(self.path)}

    def jump(self, seconds: float) -> None:
        """Be wrong by so much from now on; blocks."""
        handle = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(handle, struct.pack("@l", round(seconds)), 0)
        finally:
            os.close(handle)
