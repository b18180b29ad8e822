"""The wheel alone, as a user's own environment gets it: what it holds and what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PACKAGES = {"hatoba", "hatoba_plugins", "hatoba_scheduler", "hatoba_worker"}


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a program to its end and return its output; a failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=os.environ | (env or {}) | {"UV_PYTHON_DOWNLOADS": "never"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built from this checkout without fetching anything."""
    out = tmp_path_factory.mktemp("wheel")
    build: list[str | Path] = [BIN / "uv", "build", "--wheel", "--offline", "--no-build-isolation"]
    run(*build, "--python", sys.executable, "--out-dir", out, ROOT)
    (built,) = out.glob("hatoba-*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a directory, not installed."""
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and the base dependencies, nothing else."""
    home = tmp_path_factory.mktemp("base") / "venv"
    uv, python = BIN / "uv", home / "bin" / "python"
    run(uv, "venv", "--python", sys.executable, home)
    install: list[str | Path] = [uv, "pip", "install", "--python", python]
    # The same versions as in the dev lock, so uv's cache has them.
    run(*install, "--require-hashes", "-r", ROOT / "locks" / "base.txt")
    run(*install, "--no-deps", wheel)
    return python


def test_it_holds_our_packages_and_no_other(unpacked: Path) -> None:
    found = {path.name for path in unpacked.iterdir()}
    (metadata,) = unpacked.glob("*.dist-info")
    assert found == PACKAGES | {metadata.name}
    assert list(unpacked.rglob("py.typed")) != []
    assert (unpacked / "hatoba" / "schema" / "job.json").is_file()


def test_inside_a_job_the_standard_library_is_enough(unpacked: Path) -> None:
    path = f"import sys; sys.path.insert(0, {str(unpacked)!r})"
    code = f"{path}; import hatoba; print(hatoba.current_job())"
    assert run(sys.executable, "-I", "-S", "-c", code) != ""


def test_every_stub_imports_with_the_base_dependencies(base_python: Path, unpacked: Path) -> None:
    stubs = sorted((unpacked / "hatoba").rglob("*_pb2*.py"))
    names = [".".join(path.relative_to(unpacked).with_suffix("").parts) for path in stubs]
    assert len(names) > 10
    imports = "\n".join(f"import {name}" for name in names)
    code = f"{imports}\nimport sys; print('buf' in sys.modules)"
    assert run(base_python, "-I", "-W", "error", "-c", code).strip() == "False"


def test_the_command_starts_with_the_base_dependencies(base_python: Path) -> None:
    assert "Usage" in run(base_python.parent / "hatoba", "--help")
