"""Make a virtual environment from a lock, once per content: `environment.py DIR LOCK [--project]`.

Standard library only, run by whatever Python the machine has. pip installs uv, uv installs the
lock, both with hashes checked; the project itself comes last, editable, without dependencies.
Stamps in the environment make the next call return at once.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "locks" / "bootstrap.txt"
PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
}


def main() -> int:
    """Make or renew the environment; the exit status is the first failing command's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", type=Path)
    parser.add_argument("lock", help="the name of a file in locks/, without .txt")
    parser.add_argument("--project", action="store_true", help="install the project, editable, too")
    args = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - this is where an older one is told
        found = f"{sys.executable} is {sys.version.split()[0]}"
        print(f"Hatoba needs Python 3.11 or newer; {found}. PYTHON=... names one.", file=sys.stderr)
        return 2
    environment = Environment((ROOT / args.directory).absolute(), args.lock)
    with only_one(environment.directory):
        try:
            ensure(environment, environment.stages(project=args.project))
        except subprocess.CalledProcessError as failed:
            print(f"{' '.join(failed.cmd)}: exit status {failed.returncode}", file=sys.stderr)
            return failed.returncode
    return 0


@dataclass(frozen=True)
class Stage:
    """One step of an environment: what it depends on, and how it is done."""

    name: str
    inputs: bytes
    act: Callable[[], None]


@dataclass(frozen=True)
class Environment:
    """A virtual environment and the lock it follows."""

    directory: Path
    lock: str

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.directory / "bin" / "python")

    @property
    def requirements(self) -> Path:
        """The lock's file."""
        return ROOT / "locks" / f"{self.lock}.txt"

    def stages(self, *, project: bool) -> list[Stage]:
        """All steps, in order; a step that has to be done again brings the later ones with it."""
        # Its place counts: installed scripts name their interpreter.
        base = f"{self.directory} {sys.version} {sys.base_prefix}".encode()
        stages = [
            Stage("interpreter", base, self.create),
            Stage("uv", BOOTSTRAP.read_bytes(), self.install_uv),
            Stage("lock", self.requirements.read_bytes(), self.install_lock),
        ]
        return [*stages, Stage("project", packaging(), self.install_project)] if project else stages

    def create(self) -> None:
        """Make it anew, with pip."""
        venv.create(self.directory, clear=True, with_pip=True)

    def install_uv(self) -> None:
        """pip installs uv, hashes checked."""
        run([*self.pip(), "install", "--quiet", "--require-hashes", "-r", str(BOOTSTRAP)], {})

    def install_lock(self) -> None:
        """uv brings the environment to the lock, hashes checked; what is not in it goes."""
        self.uv("sync", "--compile-bytecode", "--require-hashes", str(self.requirements))

    def install_project(self) -> None:
        """The project itself, editable; its dependencies came from the lock."""
        self.uv("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))

    def pip(self) -> list[str]:
        """How its pip is called."""
        return [self.python, "-m", "pip", "--disable-pip-version-check"]

    def uv(self, command: str, *arguments: str) -> None:
        """Run one of uv's pip commands on it, with what this machine's pip is set up for."""
        program = str(self.directory / "bin" / "uv")
        settings = pip_settings(self.pip()) | {"UV_PYTHON_DOWNLOADS": "never"}
        run([program, "pip", command, "--quiet", "--python", self.python, *arguments], settings)


def ensure(environment: Environment, stages: list[Stage]) -> None:
    """Do the first stage whose inputs changed since it was done, and all after it."""
    stamps = environment.directory / ".stamps"
    digests = {stage.name: hashlib.sha256(stage.inputs).hexdigest() for stage in stages}
    name, began, stale = environment.directory.name, time.monotonic(), False
    for stage in stages:
        stamp = stamps / stage.name
        if not stale and stamp.is_file() and stamp.read_text() == digests[stage.name]:
            continue
        if not stale:
            print(f"{name}: Python {sys.version.split()[0]}, {environment.lock}.txt", flush=True)
        stale = True
        stamp.unlink(missing_ok=True)
        stage.act()
        stamps.mkdir(exist_ok=True)
        stamp.write_text(digests[stage.name])
    if stale:
        print(
            f"{environment.directory.name}: ready after {time.monotonic() - began:.1f} s",
            flush=True,
        )


def packaging() -> bytes:
    """What an editable install depends on; a tool's settings are no part of it."""
    import tomllib  # not in the older Pythons that main() turns away

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hatch = settings["tool"]["hatch"]
    return json.dumps([settings["build-system"], settings["project"], hatch]).encode()


def pip_settings(pip: list[str]) -> dict[str, str]:
    """Where this machine's pip looks for packages, told to uv, which reads no pip configuration."""
    listed = subprocess.run([*pip, "config", "list"], check=True, capture_output=True, text=True)
    found: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        name = PIP_TO_UV.get(key.rpartition(".")[2])
        if name and name not in os.environ:
            found[name] = " ".join(str(ast.literal_eval(value)).split())
    return found


def run(command: list[str], settings: dict[str, str]) -> None:
    """Run one command; a failure raises CalledProcessError."""
    subprocess.run(command, check=True, env=os.environ | settings, cwd=ROOT)


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the lock file beside `directory`: two `make` calls must not write it at once."""
    with open(directory.with_name(f"{directory.name}.lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
