"""`hatoba images ...`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hatoba.cli.exits import Exit
from hatoba.cli.output import emit, output_option, table
from hatoba.cli.root import Group
from hatoba.cli.session import open_client, say, server_options, with_client

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient, AsyncJob
    from hatoba.v1 import model_pb2

ARCHITECTURES = ("amd64", "arm64")
ENGINE_LABEL = "hatoba/engine"
AUTH = "DOCKER_AUTH_CONFIG"


@click.group(cls=Group)
def images() -> None:
    """Images with a model version's code and environment, for backends that run containers."""


def _architectures(_context: click.Context, _option: click.Parameter, told: str) -> list[str]:
    wanted = list(dict.fromkeys(told.split(",")))
    for one in wanted:
        if one not in ARCHITECTURES:
            raise click.BadParameter(f"{one!r}: write {' or '.join(ARCHITECTURES)}")
    return wanted


def _tag(_context: click.Context, _option: click.Parameter, told: str) -> str:
    name = told.rpartition("/")[2]
    if "@" in told or not name.partition(":")[0]:
        raise click.BadParameter(f"{told!r} is no name of an image: write REGISTRY/NAME[:TAG]")
    return told


@images.command()
@click.argument("version")
@click.option("--base", required=True, metavar="IMAGE", help="Image below it, with our runner.")
@click.option("--tag", required=True, callback=_tag, metavar="NAME", help="REGISTRY/NAME[:TAG].")
@click.option(
    "--arch",
    default="amd64",
    show_default=True,
    callback=_architectures,
    metavar="A,B",
    help="Architectures.",
)
@click.option("--python", default="3.11", show_default=True, help="Python version of the base.")
@click.option("--push", is_flag=True, help="Push them to the registry that the name begins with.")
@click.option(
    "--registry-secret", metavar="NAME", help="Secret with what `docker login` writes, to push."
)
@click.option("--engine", default="", metavar="PATH", help="Socket of the engine on its host.")
@server_options()
def build(version: str, **said: Any) -> None:
    """Build images of model version VERSION, and keep their digests on it.

    It runs as a job on a host with a Docker engine; its log is the job's. IMAGE and NAME may have
    {arch} in them. Without --push the images stay in that engine.
    """
    raise SystemExit(asyncio.run(_build(version, said)))


async def _build(name: str, said: Mapping[str, Any]) -> Exit:
    from hatoba.cli.following import Follower, finish
    from hatoba.following import LogQuery

    async with open_client() as client:
        version = await client.models.get(name)
        job = await _submit(client, version, said)
        say(f"submitted {job.name}")
        record = await Follower(client, job.record.name, LogQuery(job.record.name)).to_end()
        code = finish(record)
        if code is Exit.OK:
            kept = await client.models.record_images(version.name, await _built(job))
            show(kept.images)
        return code


async def _submit(
    client: AsyncClient, version: model_pb2.ModelVersion, said: Mapping[str, Any]
) -> AsyncJob:
    from hatoba.errors import InvalidSpec
    from hatoba.models import short_name
    from hatoba.options import build_parcel

    if not version.serving.code.digest:
        raise InvalidSpec(
            f"{short_name(version.name)} has no code to make an image of",
            remedy="register it with a handler and its code",
        )
    model = version.name.split("/")[3]
    parcel = build_parcel(
        command_of(version, said),
        {
            "name": f"image-{model}"[:48].strip("-"),
            "code": None,
            "require": [ENGINE_LABEL],
            "secrets": [f"{said['registry_secret']}={AUTH}"] if said["registry_secret"] else [],
        },
    )
    parcel.spec.inputs.add(name="code", manifest=version.serving.code)
    return await client.submit_parcel(parcel)


def command_of(version: model_pb2.ModelVersion, said: Mapping[str, Any]) -> list[str]:
    """What the job runs."""
    words = [
        "python",
        "-m",
        "hatoba.imaging",
        "--base",
        said["base"],
        "--tag",
        _full(version, said),
    ]
    words += ["--arch", ",".join(said["arch"]), "--python", said["python"]]
    words += ["--label", f"dev.hatoba.model={version.name}"]
    words += ["--label", f"dev.hatoba.code={version.serving.code.digest}"]
    if version.serving.environment.requirements:
        words += ["--requirements", version.serving.environment.requirements]
    if said["push"]:
        words.append("--push")
    if said["engine"]:
        words += ["--engine", said["engine"]]
    return words


def _full(version: model_pb2.ModelVersion, said: Mapping[str, Any]) -> str:
    """The name with a tag: the version's number when none was said."""
    tag: str = said["tag"]
    return tag if ":" in tag.rpartition("/")[2] else f"{tag}:{version.version}"


async def _built(job: AsyncJob) -> Sequence[model_pb2.ModelImage]:
    from hatoba.v1 import model_pb2

    with tempfile.TemporaryDirectory() as folder:
        await job.outputs(folder)
        told = json.loads(await asyncio.to_thread((Path(folder) / "images.json").read_text))
    return [model_pb2.ModelImage(**one, job=job.record.name) for one in told]


@images.command("list")
@click.argument("version")
@output_option
@server_options()
def list_images(version: str, output: str) -> None:
    """List the images of model version VERSION."""
    found = with_client(lambda client: client.models.get(version))
    emit(found, output, lambda: show(found.images))


def show(found: Sequence[model_pb2.ModelImage]) -> None:
    """A table of images."""
    rows = [
        [one.architecture, one.reference, one.digest, "yes" if one.pushed else "no", one.job]
        for one in found
    ]
    table(["ARCH", "IMAGE", "DIGEST", "PUSHED", "JOB"], rows)
