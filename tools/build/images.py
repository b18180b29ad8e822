"""What `deploy/images/Dockerfile` is built from: `images.py context DIR` makes its context.

The project's wheel, and two lists of what is installed beside it, taken with their hashes from
`locks/dev.txt`: `runtime.txt` for what stands beside jobs, `server.txt` for the control plane with
the drivers of all backends.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {
    "runtime": ("worker",),
    "server": ("server", "worker", "docker", "k8s", "aws"),
}


def main() -> int:
    """Make the context."""
    if len(sys.argv) != 3 or sys.argv[1] != "context":
        print("usage: images.py context DIR", file=sys.stderr)
        return 2
    context(Path(sys.argv[2]))
    return 0


def context(directory: Path) -> None:
    """Fill an empty directory."""
    for part in ("dist", "locks", *(f"wheels/{name}" for name in EXTRAS)):
        (directory / part).mkdir(parents=True, exist_ok=True)
        (directory / part / ".keep").touch()
    shutil.copy(ROOT / "deploy" / "images" / "Dockerfile", directory)
    wheel(directory / "dist")
    known = locked((ROOT / "locks" / "dev.txt").read_text())
    for name, extras in EXTRAS.items():
        wanted = closure(extras)
        entries = [known[each] for each in sorted(wanted)]
        (directory / "locks" / f"{name}.txt").write_text("".join(entries))


def wheel(directory: Path) -> None:
    """Build the project's wheel."""
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "-d", str(directory)]
    quiet = {**os.environ, "HATCH_QUIET": "1"}
    subprocess.run(build, cwd=ROOT, env=quiet, check=True, stdout=subprocess.DEVNULL)


def locked(text: str) -> dict[str, str]:
    """The entries of a lock, each with its hashes, by name; some have several, for several
    Pythons, of which pip takes the right one.
    """
    known: dict[str, str] = {}
    for entry in re.findall(r"^[a-z0-9][^\n]*\\\n(?:    [^\n]*\n)+", text, re.MULTILINE):
        name = entry.partition("==")[0].partition("[")[0]
        known[name] = known.get(name, "") + entry
    return known


def closure(extras: Iterable[str]) -> set[str]:
    """The names of all that the project needs with these extras, as this environment knows it."""
    seen, waiting = set[str](), [Requirement(f"hatoba[{','.join(extras)}]")]
    while waiting:
        one = waiting.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        needed = map(Requirement, requires(one.name) or ())
        waiting.extend(each for each in needed if applies(each, one.extras))
    return {canonical(Requirement(one).name) for one in seen} - {"hatoba"}


def applies(needed: Requirement, extras: Iterable[str]) -> bool:
    """Whether it is needed with these extras, on this kind of machine."""
    if needed.marker is None:
        return True
    return any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def canonical(name: str) -> str:
    """A distribution's name as locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
