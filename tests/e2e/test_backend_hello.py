"""A third party's backend as its users get it: installed beside the wheel, held to the kit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HELLO = ROOT / "examples" / "backend-hello"
UV = Path(sys.executable).parent / "uv"
OURS = dict.fromkeys(
    ["batch-spot", "ecs", "hosts", "iot-edge-arm", "k8s-gpu", "mock", "null"], "hatoba"
)

LIST_BACKENDS = """
import dataclasses, json
from hatoba_plugins.loader import load
loaded = load()
print(json.dumps({
    "types": {name: one.distribution for name, one in loaded.types.items()},
    "failures": [dataclasses.asdict(one) for one in loaded.failures],
}))
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a program to its end; a failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=os.environ | {"UV_PYTHON_DOWNLOADS": "never", "UV_LINK_MODE": "copy"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def wheel_of(project: Path, out: Path) -> Path:
    """Build a project's wheel without fetching anything."""
    build: list[str | Path] = [UV, "build", "--wheel", "--offline", "--no-build-isolation"]
    run(*build, "--python", sys.executable, "--out-dir", out, project)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own with both wheels; dependencies are those of the dev environment."""
    home = tmp_path_factory.mktemp("hello") / "venv"
    run(UV, "venv", "--offline", "--python", sys.executable, home)
    python = home / "bin" / "python"
    # Searched last, and its own .pth files, our editable install among them, are not read.
    site = home / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheels = [wheel_of(one, tmp_path_factory.mktemp("wheel")) for one in (ROOT, HELLO)]
    run(UV, "pip", "install", "--offline", "--no-deps", "--python", python, *wheels)
    return python


def backends(python: Path) -> dict[str, object]:
    """What the loader finds there."""
    listed: dict[str, object] = json.loads(run(python, "-I", "-c", LIST_BACKENDS).splitlines()[-1])
    return listed


def installed(python: Path) -> Path:
    """Where the example's package is."""
    code = "import importlib.util as u; print(u.find_spec('hatoba_backend_hello').origin)"
    origin = Path(run(python, "-I", "-c", code).strip())
    assert python.parents[1] in origin.parents
    return origin


def test_it_is_found_and_passes_the_kit(python: Path, tmp_path: Path) -> None:
    found = backends(python)
    assert found["failures"] == []
    assert found["types"] == {**OURS, "hello": "hatoba-backend-hello"}
    tests = tmp_path / "tests"
    tests.symlink_to(HELLO / "tests")
    pytest_there: list[str | Path] = [python, "-I", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    said = run(*pytest_there, "-c", HELLO / "pyproject.toml", "--rootdir", tmp_path, tests)
    assert " passed" in said
    assert " failed" not in said


def test_a_broken_import_is_listed_and_stops_nobody(python: Path) -> None:
    source = installed(python)
    content = source.read_text()
    first = "from hatoba_backend_hello.backend import HelloType"
    assert first in content
    source.write_text(content.replace(first, f"import no_such_module_anywhere\n{first}"))
    try:
        found = backends(python)
    finally:
        source.write_text(content)
    assert found["types"] == OURS
    assert found["failures"] == [
        {
            "name": "hello",
            "reason": "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
            "remedy": "pip install no_such_module_anywhere",
            "distribution": "hatoba-backend-hello",
        }
    ]
