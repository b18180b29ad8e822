"""The wheel, and environments that hold it with the dependencies of one lock."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import environment
import pytest
from house_fixtures import own_server, own_wire, server, wire

__all__ = ["own_server", "own_wire", "server", "wire"]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PIP = [sys.executable, "-m", "pip"]


def run(*command: str | Path) -> str:
    """Run a program to its end and return its output; a failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=os.environ | environment.pip_settings(PIP) | {"UV_PYTHON_DOWNLOADS": "never"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from this checkout without fetching anything."""
    out = tmp_path_factory.mktemp("wheel")
    build: list[str | Path] = [BIN / "uv", "build", "--wheel", "--offline", "--no-build-isolation"]
    run(*build, "--python", sys.executable, "--out-dir", out, ROOT)
    (built,) = out.glob("hatoba-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the bin directory of an environment that holds the wheel and what a lock names."""

    @cache
    def install(lock: str) -> Path:
        home = tmp_path_factory.mktemp(lock) / "venv"
        run(BIN / "uv", "venv", "--python", sys.executable, home)
        pip: list[str | Path] = [BIN / "uv", "pip", "install", "--python", home / "bin" / "python"]
        run(*pip, "--require-hashes", "-r", ROOT / "locks" / f"{lock}.txt")
        run(*pip, "--no-deps", wheel)
        return home / "bin"

    return install
