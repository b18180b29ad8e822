"""Programs whose clock is wrong: the date is another one, what counts seconds is not touched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def why_not() -> str:
    """What keeps this machine from having them; empty: nothing."""
    return "" if shutil.which("cc") else "there is no C compiler to make a wrong clock with"


def built(directory: Path) -> Path:
    """The library that programs load before all else; blocks."""
    library = directory / "wrong_clock.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def wrong_by(seconds: float, library: Path) -> dict[str, str]:
    """What a program has in its environment whose clock is wrong by so much."""
    return {"LD_PRELOAD": str(library), "WRONG_CLOCK": f"{round(seconds)}"}
