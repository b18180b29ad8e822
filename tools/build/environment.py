"""Make a virtual environment from a lock, once per content: `environment.py DIR LOCK [--project]`.

Standard library only, run by whatever Python the machine has. pip installs uv, uv installs the
lock, both with hashes checked; the project itself comes last, editable, without dependencies.
A stamp in the environment makes the next call return at once.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
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
        print(
            f"Hatoba needs Python 3.11 or newer; {found}. Name one: make PYTHON=...",
            file=sys.stderr,
        )
        return 2
    directory = (ROOT / args.directory).absolute()
    lock = ROOT / "locks" / f"{args.lock}.txt"
    with only_one(directory):
        try:
            ensure(directory, lock, project=args.project)
        except subprocess.CalledProcessError as failed:
            print(f"{directory.name}: {' '.join(failed.cmd)}: {failed.returncode}", file=sys.stderr)
            return failed.returncode
    return 0


def ensure(directory: Path, lock: Path, *, project: bool) -> None:
    """Bring `directory` to what `lock` says; nothing is done where its stamp matches."""
    stamp = directory / ".stamp"
    wanted = fingerprint(directory, lock, project=project)
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    began = time.monotonic()
    print(f"{directory.name}: Python {sys.version.split()[0]}, locks/{lock.name}", flush=True)
    stamp.unlink(missing_ok=True)
    create(directory)
    install(directory, lock, project=project)
    stamp.write_text(wanted)
    print(f"{directory.name}: ready after {time.monotonic() - began:.1f} s", flush=True)


def fingerprint(directory: Path, lock: Path, *, project: bool) -> str:
    """All that the environment depends on, hashed; its place too, since scripts name it."""
    digest = hashlib.sha256(f"{directory} {sys.version} {sys.base_prefix}".encode())
    for path in [Path(__file__), BOOTSTRAP, lock, *([ROOT / "pyproject.toml"] if project else [])]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def create(directory: Path) -> None:
    """Make the environment anew, unless a usable one of this very interpreter is there."""
    python = directory / "bin" / "python"
    marker = directory / "pyvenv.cfg"
    same = f"{directory} {sys.version}"
    made_by = directory / ".made-by"
    if made_by.is_file() and made_by.read_text() == same and python.exists() and marker.is_file():
        return
    venv.create(directory, clear=True, with_pip=True)
    made_by.write_text(same)


def install(directory: Path, lock: Path, *, project: bool) -> None:
    """pip brings uv, uv brings the lock, and the project comes without dependencies."""
    python = str(directory / "bin" / "python")
    uv = str(directory / "bin" / "uv")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--require-hashes", "-r", str(BOOTSTRAP)], os.environ)
    env = os.environ | pip_settings(pip) | {"UV_PYTHON_DOWNLOADS": "never"}
    sync = ["--compile-bytecode", "--require-hashes", str(lock)]
    run([uv, "pip", "sync", "--quiet", "--python", python, *sync], env)
    if project:
        editable = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
        run([uv, "pip", "install", "--quiet", "--python", python, *editable], env)


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


def run(command: list[str], env: os._Environ[str] | dict[str, str]) -> None:
    """Run one command; a failure raises CalledProcessError."""
    subprocess.run(command, check=True, env=dict(env), cwd=ROOT)


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the lock file beside `directory`: two `make` calls must not write it at once."""
    with open(directory.with_name(f"{directory.name}.lock"), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
