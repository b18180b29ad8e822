"""What the agent needs comes as wheels to devices: the package index that is set up is asked."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import uv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
LINUX = ("linux", *(f"manylinux{each}" for each in ("2014", "_2_17", "_2_28", "_2_31", "_2_34")))
"""What wheels say that they are for, beside the machine."""
COMPILED = {"aarch64": set[str](), "armv7l": {"cffi", "pyyaml"}}
"""By machine: what has no wheel there, and is compiled where it is installed; the documents say
so.
"""


@pytest.fixture(scope="module")
def requirements() -> dict[str, str]:
    """What the lock has of all that `hatoba[edge]` needs, by name."""
    locked = ["--extra", "edge", "--constraint", "locks/dev.txt", "--python-version", "3.11"]
    quiet = ["--quiet", "--universal", "--no-header", "--no-annotate"]
    done = subprocess.run(
        [uv.find_uv_bin(), "pip", "compile", *quiet, *locked, "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition(";")[0].strip() for line in done.stdout.splitlines()]
    return {re.split(r"[=\[]", line)[0]: line for line in lines if line}


def has_wheels(machine: str, requirements: Iterable[str], target: Path) -> bool:
    """Whether there are wheels for Python 3.11 on this machine; nothing is installed."""
    done = subprocess.run(
        [*_pip(machine), "--target", str(target), *requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or "No matching distribution" in done.stderr, done.stderr
    return done.returncode == 0


def _pip(machine: str) -> Sequence[str]:
    platforms = [f"--platform={each}_{machine}" for each in LINUX]
    python = ["--python-version=3.11", "--implementation=cp"]
    abis = [f"--abi={each}" for each in ("cp311", "abi3", "none")]
    how = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:"]
    return [sys.executable, "-m", "pip", "install", "-q", *how, *python, *abis, *platforms]


@pytest.mark.parametrize("machine", ["aarch64", "armv7l"])
def test_all_but_what_is_said_has_wheels(
    machine: str, requirements: dict[str, str], full_round: bool, tmp_path: Path
) -> None:
    if not full_round:
        pytest.skip("asks a package index: make long")
    others = [line for name, line in requirements.items() if name not in COMPILED[machine]]
    assert has_wheels(machine, others, tmp_path)
    for name in COMPILED[machine]:
        assert not has_wheels(machine, [requirements[name]], tmp_path), f"say so of {name}"
