"""The image of the digits example: the runtime, and what the example imports, as installed here."""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
from testbed_fixtures import DockerEngine

PACKAGES = (
    "cloudpickle",
    "joblib",
    "narwhals",
    "numpy",
    "pillow",
    "scikit-learn",
    "scipy",
    "threadpoolctl",
)
INSIDE = "/opt/digits"


@pytest.fixture(scope="session")
def digits_image(
    docker_engine: DockerEngine,
    registry: str,
    runtime_image: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """It, in the engine, which has no need to pull it, and in the registry."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    recipe = Path(__file__).read_text()
    digest = hashlib.sha256("\n".join([runtime_image, recipe, *versions]).encode()).hexdigest()[:12]
    name = f"{registry}/digits:{digest}"
    if not docker_engine.docker("image", "ls", "--quiet", name).strip():
        _build(docker_engine, runtime_image, name, tmp_path_factory.mktemp("digits-image"))
        docker_engine.docker("push", "--quiet", name)
    return name


def _build(engine: DockerEngine, runtime: str, name: str, context: Path) -> None:
    for package in PACKAGES:
        _copy(package, context / "packages")
    # Nobody in a container may write there, so that each start would compile everything again.
    hashed = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(context / "packages", quiet=2, invalidation_mode=hashed)
    # Not by PYTHONPATH, which a pod has to set for what the runner brings.
    named = f"import site; open(site.getsitepackages()[0] + '/digits.pth', 'w').write('{INSIDE}')"
    (context / "Dockerfile").write_text(
        f"FROM {runtime}\nCOPY packages {INSIDE}\n"
        f'USER root\nRUN python -c "{named}"\nUSER 10001:10001\n'
    )
    command = ["docker", "--host", engine.host, "build", "--quiet", "--tag", name, str(context)]
    plain = {**os.environ, "DOCKER_BUILDKIT": "0"}
    subprocess.run(command, check=True, capture_output=True, env=plain)


def _copy(package: str, folder: Path) -> None:
    """A package's files without its tests, which are half of some."""
    for file in metadata.files(package) or ():
        if {"tests", "__pycache__", ".."}.isdisjoint(file.parts):
            place = folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file.locate(), place)
