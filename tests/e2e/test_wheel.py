"""The wheel alone, as a user's own environment gets it: what it holds and what it needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

PACKAGES = {"hatoba", "hatoba_plugins", "hatoba_scheduler", "hatoba_worker"}
LOCKS = ["base", "server", "server-pb6"]


def python(interpreter: str | Path, *arguments: str) -> str:
    """Run Python apart from the checkout and the user's settings, and return its output."""
    done = subprocess.run(
        [str(interpreter), "-I", "-W", "error", *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a directory, not installed."""
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_it_holds_our_packages_and_no_other(unpacked: Path) -> None:
    found = {path.name for path in unpacked.iterdir()}
    (metadata,) = unpacked.glob("*.dist-info")
    assert found == PACKAGES | {metadata.name}
    assert all((unpacked / package / "py.typed").is_file() for package in PACKAGES)
    assert (unpacked / "hatoba" / "schema" / "job.json").is_file()


def test_inside_a_job_the_standard_library_is_enough(unpacked: Path) -> None:
    path = f"import sys; sys.path.insert(0, {str(unpacked)!r})"
    code = f"{path}; import hatoba; print(type(hatoba.current_job()).__name__)"
    assert python(sys.executable, "-S", "-c", code).strip() == "JobContext"


@pytest.mark.parametrize("lock", LOCKS)
def test_every_stub_imports(lock: str, installed: Callable[[str], Path], unpacked: Path) -> None:
    stubs = sorted((unpacked / "hatoba").rglob("*_pb2*.py"))
    names = [".".join(path.relative_to(unpacked).with_suffix("").parts) for path in stubs]
    assert len(names) > 10
    imports = "\n".join(f"import {name}" for name in names)
    code = f"{imports}\nimport sys; print('buf' in sys.modules)"
    assert python(installed(lock) / "python", "-c", code).strip() == "False"


@pytest.mark.parametrize("lock", ["server", "server-pb6"])
def test_rules_are_enforced(lock: str, installed: Callable[[str], Path]) -> None:
    code = """
import protovalidate
from hatoba.v1 import job_pb2
try:
    protovalidate.validate(job_pb2.JobSpec(name="Not A Name", command=["true"]))
except protovalidate.ValidationError as error:
    print([violation.proto.rule_id for violation in error.violations])
"""
    assert "string.pattern" in python(installed(lock) / "python", "-c", code)


def test_the_command_starts_with_the_base_dependencies(installed: Callable[[str], Path]) -> None:
    assert "Usage" in python(installed("base") / "python", "-m", "hatoba", "--help")
