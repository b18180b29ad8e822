"""A system for arm64 that has Hatoba's agent in it: for far machines that are no amd64.

Its folders are laid over each other. Below is Debian with its Python, made by debootstrap, above it
what agent and model import, in the versions of the lock: both are made once for all. On top is
Hatoba as its sources are. Its programs are run by QEMU: see bed_arm64.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools" / "build")]

import bed_images  # noqa: E402
import images  # noqa: E402
from bed_device import System  # noqa: E402
from bed_images import ARM64, MANYLINUX, Architecture  # noqa: E402
from bed_place import Broken, Unavailable, cache  # noqa: E402
from bed_processes import run  # noqa: E402

HOME = "opt/hatoba"
EXTRAS = ("edge", "docker")
MORE = {"numpy"}
"""What models of tests and demos import."""
_SITE = f"{HOME}/lib/python3.11/site-packages"
_SETTINGS = "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n"


def is_made() -> bool:
    """Whether what takes minutes was done before."""
    return _debian_folder().exists()


def system(work: Path) -> System:
    """It, with what is made anew each time in `work`. Raises Unavailable."""
    try:
        below = once(_packages_folder(), _packages), once(_debian_folder(), _debian)
        top = work / "hatoba"
        with tempfile.TemporaryDirectory(dir=work) as folder:
            images.wheel(Path(folder))
            install(top / _SITE, ARM64, *Path(folder).glob("*.whl"))
    except Broken as failure:
        raise Unavailable(f"a system for arm64 cannot be made here: {failure}") from None
    bin = f"/{HOME}/bin"
    return System((top, *below), f"{bin}/python", f"{bin}:/usr/bin:/bin")


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder that is made once, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            fresh = folder.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            make(fresh)
            fresh.rename(folder)
    return folder


def _debian_folder() -> Path:
    return cache() / "arm64-system" / f"debian-{bed_images.SUITE}-{bed_images.recipe()}"


def _debian(folder: Path) -> None:
    archive = bed_images.base(ARM64)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        run("tar", "--extract", f"--file={archive}", f"--directory={beside}", "layer.tar")
        whole = f"--file={beside}/layer.tar", f"--directory={folder}", "--numeric-owner"
        run("tar", "--extract", *whole)


def lock_of(names: Iterable[str]) -> str:
    """Distributions in the versions of the lock, with their hashes."""
    known = images.locked((ROOT / "locks" / "dev.txt").read_text())
    return "".join(known[name] for name in sorted(names))


def _lock() -> str:
    """What is installed."""
    return lock_of(images.closure(EXTRAS) | MORE)


def _packages_folder() -> Path:
    digest = hashlib.sha256(_lock().encode()).hexdigest()[:12]
    return cache() / "arm64-system" / f"packages-{digest}"


def _packages(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        lock = Path(beside, "device.txt")
        lock.write_text(_lock())
        install(folder / _SITE, ARM64, *bed_images.wheels(lock, ARM64).glob("*.whl"))
    programs = folder / HOME / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("python", "python3"):
        (programs / name).symlink_to("/usr/bin/python3")
    (folder / HOME / "pyvenv.cfg").write_text(_SETTINGS)


def install(site: Path, architecture: Architecture, *wheels: Path) -> None:
    """Put wheels for an architecture into a folder that a Python 3.11 looks in; none of their
    programs is run.
    """
    site.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    fitting = [f"--platform={each}_{architecture.machine}" for each in MANYLINUX]
    only = ["--no-index", "--no-deps", "--only-binary=:all:", "--implementation=cp"]
    run(*pip, *only, *fitting, "--python-version=3.11", f"--target={site}", *wheels)
