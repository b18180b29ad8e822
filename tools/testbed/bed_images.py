"""The product's images on a base of Debian's, in the testbed's engine and registry.

The base is made by debootstrap, once; wheels are fetched once for what the locks say. What is
built carries the digest of the sources, so that a changed tree gets an image of its own. Images
for arm64 come about in the same way, their programs run by QEMU: see bed_arm64.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bed_archives
from bed_debian import install
from bed_docker import docker
from bed_place import ROOT, Facts, Place, Unavailable, cache
from bed_processes import run

SUITE = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
NOT_NEEDED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
)
SOURCES = ["scheduler", "plugins", "workers", "clients/python", "deploy/images", "locks/dev.txt"]
TARGETS = ("runtime", "router", "worker", "server")
ENVIRONMENT = ROOT / ".venv" / "bin" / "python"
# What the suite's C library has, the newest first; pip knows no "and older".
MANYLINUX = [*(f"manylinux_2_{minor}" for minor in range(36, 16, -1)), "manylinux2014"]
# Least of all: tests that run in the same engine come first.
SHARES = "--cpu-shares=2"


@dataclass(frozen=True)
class Architecture:
    """What differs between images for one kind of processor and for another."""

    name: str
    machine: str
    tagged: str = ""

    @property
    def base(self) -> str:
        """The name of the image below all others."""
        return f"hatoba.test/python:{SUITE}{self.tagged}"


AMD64 = Architecture("amd64", "x86_64")
ARM64 = Architecture("arm64", "aarch64", tagged="-arm64")


def prepare() -> None:
    """Have the base image."""
    base(AMD64)


def arm64_prepare() -> None:
    """Have what makes the base image; that itself needs the machine to run programs for arm64."""
    install("debootstrap")


def up(place: Place, engine: Facts, registry: Facts) -> Facts:
    """Build the runtime image as the sources are now, and push it."""
    return made(place, engine, registry, AMD64, TARGETS[:1])


def everything_up(place: Place, engine: Facts, registry: Facts) -> Facts:
    """Build all images as the sources are now, and push them."""
    return made(place, engine, registry, AMD64, TARGETS)


def arm64_up(place: Place, engine: Facts, registry: Facts, arm64: Facts) -> Facts:
    """Build all images for arm64 as the sources are now, and push them."""
    return made(place, engine, registry, ARM64, TARGETS)


def made(
    place: Place,
    engine: Facts,
    registry: Facts,
    architecture: Architecture,
    targets: Sequence[str],
) -> Facts:
    """Images by target: built where they are missing, and pushed."""
    digest, socket = sources_digest(), engine["socket"]
    where, tag = f"{registry['address']}/hatoba", f"{digest}{architecture.tagged}"
    names = {target: f"{where}/{target}:{tag}" for target in targets}
    known = docker(socket, "image", "ls", "--format={{.Repository}}:{{.Tag}}").split()
    missing = [target for target in targets if names[target] not in known]
    if missing:
        load_base(socket, architecture)
        build(place, socket, architecture, {target: names[target] for target in missing})
    for name in names.values():
        docker(socket, "push", "--quiet", name)
    return {**names, "digest": digest, "base": architecture.base}


def build(place: Place, socket: str, architecture: Architecture, names: Mapping[str, str]) -> None:
    """Run the Dockerfile for some targets, on Debian's base and with wheels at hand."""
    if not ENVIRONMENT.exists():
        raise Unavailable("the project's environment is missing: make venv")
    with tempfile.TemporaryDirectory(dir=place.make("images")) as folder:
        run(ENVIRONMENT, ROOT / "tools" / "build" / "images.py", "context", folder)
        everything = not {"worker", "server"}.isdisjoint(names)
        for lock in ("runtime", "server") if everything else ("runtime",):
            for file in wheels(Path(folder, "locks", f"{lock}.txt"), architecture).iterdir():
                shutil.copy(file, Path(folder, "wheels", lock))
        os.environ["DOCKER_BUILDKIT"] = "0"
        for target, name in names.items():
            version = f"VERSION={name.rpartition(':')[2]}"
            arguments = [f"BASE={architecture.base}", "PIP_OPTIONS=--no-index", version]
            told = [f"--build-arg={argument}" for argument in arguments]
            told += [f"--platform=linux/{architecture.name}", f"--target={target}"]
            docker(socket, "build", "--quiet", SHARES, f"--tag={name}", *told, folder)


def wheels(lock: Path, architecture: Architecture) -> Path:
    """A folder with what a lock names, fetched once."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    folder = cache() / "testbed-wheels" / f"{architecture.name}-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not folder.exists():
            fetch(lock, architecture, folder)
    return folder


def fetch(lock: Path, architecture: Architecture, folder: Path) -> None:
    """Download wheels, hashes checked."""
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    checked = ["--no-deps", "--require-hashes", "--only-binary=:all:"]
    fitting = [f"--platform={each}_{architecture.machine}" for each in MANYLINUX]
    run(*pip, *checked, *fitting, "--requirement", lock, "--dest", fresh)
    fresh.rename(folder)


def load_base(socket: str, architecture: Architecture) -> None:
    """Have the base image in the engine."""
    if not docker(socket, "image", "ls", "--quiet", architecture.base).strip():
        docker(socket, "load", "--quiet", "--input", str(base(architecture)))


def base(architecture: Architecture) -> Path:
    """An archive of the base image, made once."""
    archive = cache() / "testbed-base" / f"{SUITE}-{architecture.name}-{recipe()}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with open(archive.with_suffix(".lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not archive.exists():
            make_base(archive, architecture)
    return archive


def recipe() -> str:
    """Twelve characters that change with what the base is made of."""
    return hashlib.sha256(f"{PACKAGES} {NOT_NEEDED}".encode()).hexdigest()[:12]


def make_base(archive: Path, architecture: Architecture) -> None:
    """Run debootstrap, and pack what it made."""
    install("debootstrap")
    print("making the base image (once, minutes)", flush=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        root, layer = Path(folder, "root"), Path(folder, "layer.tar")
        bootstrap = ["nice", "debootstrap", f"--arch={architecture.name}", "--variant=minbase"]
        run(*bootstrap, f"--include={PACKAGES}", SUITE, root, mirror())
        for part in NOT_NEEDED:
            shutil.rmtree(root / part, ignore_errors=True)
        run("tar", "--create", f"--file={layer}", f"--directory={root}", "--numeric-owner", ".")
        fresh = archive.with_suffix(".new")
        bed_archives.image_file(fresh, architecture.base, layer, architecture.name)
        fresh.rename(archive)


def mirror() -> str:
    """Where this machine gets Debian's packages from."""
    known = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)").splitlines()
    places = [line.split()[0] for line in known if line.endswith(f" {SUITE}")]
    if not places:
        raise Unavailable(f"this machine's apt knows no place that has Debian {SUITE}")
    return places[0]


def sources_digest() -> str:
    """Twelve characters that change with whatever goes into the images."""
    digest = hashlib.sha256()
    for source in SOURCES:
        for file in sorted([ROOT / source, *(ROOT / source).rglob("*")]):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def down(place: Place, facts: Facts) -> None:
    """Nothing: images go with the engine's next sweep, pushed ones with the registry."""


def healthy(facts: Facts) -> bool:
    """Whether the sources are still what the images were built from."""
    return bool(facts["digest"] == sources_digest())
