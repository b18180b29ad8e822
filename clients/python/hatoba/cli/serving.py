"""`hatoba models serve`: brings a version here, and becomes what serves it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf import json_format

from hatoba import packing, settings
from hatoba.errors import InvalidSpec
from hatoba.models import READY, short_name, state_word
from hatoba.v1 import common_pb2, job_pb2, model_pb2

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient

NEEDED = ("hatoba_worker", "h11", "structlog")


class Place(NamedTuple):
    """Where to listen, and another Python than the model's own, if one was said."""

    host: str
    port: int
    python: str


async def bring(client: AsyncClient, name: str, place: Place) -> list[str]:
    """Fetch model and code, write the server's settings; the command that serves.

    Raises InvalidSpec for a version that cannot be served, or without the extra `worker`.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise InvalidSpec(
            f"`hatoba models serve` needs {', '.join(missing)}, which is not installed",
            remedy="pip install 'hatoba[worker]'",
        )
    version = await client.models.get(name)
    _check(version)
    cache = settings.state_dir() / "serving"
    model = await _tree(client, version.manifest, cache)
    code = await _tree(client, version.serving.code, cache)
    home = await asyncio.to_thread(_home, cache)
    await asyncio.to_thread(_write, home, version, (model, code), place)
    files = ["--config", str(home / "config.json"), "--environment", str(home / "environment.json")]
    module = ["-m", "hatoba_worker.local_serving"]
    return [sys.executable, *module, *files, "--cache", str(cache)]


def run(command: list[str]) -> None:
    """Become the command: signals and the exit code are its own."""
    os.execv(command[0], command)


def _check(version: model_pb2.ModelVersion) -> None:
    name = short_name(version.name)
    if version.state != READY:
        raise InvalidSpec(
            f"{name} is {state_word(version.state)}, and only READY versions are served",
            remedy=f"`hatoba models get {name}` says why",
        )
    if not version.serving.handler:
        raise InvalidSpec(
            f"{name} has no handler, so it cannot be served",
            remedy="register it again with --handler",
        )
    if version.serving.environment.image:
        raise InvalidSpec(
            f"{name} runs in the image {version.serving.environment.image}",
            remedy="run that image, or register the model with requirements",
        )


async def _tree(client: AsyncClient, ref: common_pb2.ManifestRef, cache: Path) -> Path:
    """A tree in the cache, fetched whole or not at all."""
    target = cache / "trees" / ref.digest.partition(":")[2]
    if await asyncio.to_thread(target.is_dir):
        return target
    partial = Path(await asyncio.to_thread(_partial, target.parent))
    try:
        await packing.fetch(client, ref, partial / "tree")
        await asyncio.to_thread(_publish, partial / "tree", target)
    finally:
        await asyncio.to_thread(shutil.rmtree, partial, True)
    return target


def _partial(directory: Path) -> str:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.mkdtemp(prefix="partial-", dir=directory)


def _publish(tree: Path, target: Path) -> None:
    try:
        tree.rename(target)
    except OSError:
        # Somebody else fetched the same meanwhile.
        if not target.is_dir():
            raise


def _home(cache: Path) -> Path:
    homes = cache / "running"
    homes.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=homes))


def _write(
    home: Path, version: model_pb2.ModelVersion, trees: tuple[Path, Path], place: Place
) -> None:
    serving = version.serving
    example = None
    if serving.HasField("example"):
        (home / "example").write_bytes(serving.example.data)
        media_type = serving.example.media_type or "application/json"
        example = {"path": str(home / "example"), "media_type": media_type}
    config = {
        "name": short_name(version.name),
        "model_version": version.name,
        "model_dir": str(trees[0]),
        "code_dir": str(trees[1]),
        "handler": serving.handler,
        "example": example,
        "golden": serving.golden,
        "host": place.host,
        "port": place.port,
        "ready_file": str(home / "ready.json"),
        "batching": {"max_batch": serving.max_batch, "batch_wait_ms": serving.batch_wait_ms},
    }
    (home / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    environment = json_format.MessageToJson(_environment(serving.environment, place.python))
    (home / "environment.json").write_text(environment, encoding="utf-8")


def _environment(own: job_pb2.Environment, python: str) -> job_pb2.Environment:
    if not python:
        return own
    return job_pb2.Environment(python=python, requirements=own.requirements)
