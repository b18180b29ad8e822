"""`hatoba images build`: a job that builds through a real engine, and what is kept of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import CommandLine
from doubler import HANDLER
from server_process import ColdLauncher, running_server
from testbed_fixtures import DockerEngine, fresh_name

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
PROGRAM = """\
import platform, serve
from markupsafe import _speedups
print(platform.machine(), serve.Doubler(None).predict({"value": 3})["value"])
"""
PARTS = ("model", "--code", "code", "--handler", "serve:Doubler", "--example", '{"value": 3}')


@dataclass
class House:
    """A server whose host has an engine, with a model that is called `model`."""

    cli: CommandLine
    engine: DockerEngine
    model: str

    async def require(self, requirements: str) -> None:
        """Register version 2, which needs packages."""
        (self.cli.work / "requirements.txt").write_text(requirements)
        needs = ["--requirements", "requirements.txt"]
        code, _, err = await self.cli("models", "register", self.model, *PARTS, *needs)
        assert code == 0, err

    async def build(self, *arguments: str, version: int = 1) -> tuple[int, str, str]:
        """`hatoba images build`, on the testbed's engine."""
        name, engine = f"{self.model}:{version}", ["--engine", self.engine.socket]
        return await self.cli("images", "build", name, *engine, *arguments)

    async def images(self, version: int = 1) -> list[dict[str, str]]:
        """What is recorded of the version."""
        name = f"{self.model}:{version}"
        code, out, err = await self.cli("images", "list", name, "-o", "json")
        assert code == 0, err
        return list(json.loads(out).get("images", []))


@pytest.fixture
async def house(tmp_path: Path, docker_engine: DockerEngine) -> AsyncIterator[House]:
    launcher = ColdLauncher()
    launcher.environ = {"DOCKER_HOST": docker_engine.host}
    try:
        async with running_server(tmp_path / "data", launcher=launcher) as server:
            cli = CommandLine(server, tmp_path)
            (cli.work / "model").mkdir()
            (cli.work / "model" / "nothing.txt").write_text("nothing\n")
            (cli.work / "code").mkdir()
            (cli.work / "code" / "serve.py").write_text(HANDLER)
            model = fresh_name("m")
            code, _, err = await cli("models", "register", model, *PARTS)
            assert code == 0, err
            yield House(cli, docker_engine, model)
    finally:
        await asyncio.to_thread(launcher.close)


async def test_an_image_has_the_code_and_its_digest_is_kept_on_the_version(house: House) -> None:
    tag = f"hatoba.test/{house.model}"
    code, out, err = await house.build("--base", house.engine.busybox, "--tag", tag)
    assert code == 0, err
    assert "COPY code /opt/model/code" in out + err
    shown = house.engine.docker("run", "--rm", f"{tag}:1-amd64", "cat", "/opt/model/code/serve.py")
    assert shown == HANDLER
    (kept,) = await house.images()
    identity = house.engine.docker("image", "inspect", "-f", "{{.Id}}", f"{tag}:1-amd64").strip()
    assert (kept["architecture"], kept["digest"]) == ("amd64", identity)
    assert "pushed" not in kept
    code, out, err = await house.cli("logs", kept["job"].rpartition("/")[2])
    assert (code, "Successfully built" in out) == (0, True), err
    house.engine.docker("rmi", f"{tag}:1-amd64")


async def test_what_is_pushed_is_recorded_by_the_registrys_digest(
    house: House, registry: str
) -> None:
    tag = f"{registry}/{house.model}:new"
    code, _, err = await house.build("--base", house.engine.busybox, "--tag", tag, "--push")
    assert code == 0, err
    (kept,) = await house.images()
    assert kept["pushed"]
    house.engine.docker("rmi", f"{tag}-amd64")
    by_digest = f"{registry}/{house.model}@{kept['digest']}"
    house.engine.docker("pull", by_digest)
    assert house.engine.docker("run", "--rm", by_digest, "ls", "/opt/model/code") == "serve.py\n"
    house.engine.docker("rmi", by_digest)


async def test_a_base_of_another_architecture_is_refused_and_nothing_is_kept(house: House) -> None:
    tag = f"hatoba.test/{house.model}"
    base = ["--base", house.engine.busybox, "--arch", "arm64"]
    code, out, err = await house.build(*base, "--tag", tag)
    assert code != 0
    assert "error: " in out + err
    assert await house.images() == []


async def test_requirements_are_in_the_image_as_its_architecture_needs_them(house: House) -> None:
    await house.require("iniconfig==2.0.0\n")
    tag = f"hatoba.test/{house.model}"
    code, _, err = await house.build("--base", house.engine.busybox, "--tag", tag, version=2)
    assert code == 0, err
    listed = house.engine.docker("run", "--rm", f"{tag}:2-amd64", "ls", "/opt/model/packages")
    assert "iniconfig" in listed
    house.engine.docker("rmi", f"{tag}:2-amd64")


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_one_build_makes_an_image_for_each_architecture_and_both_run(
    arm64_images: dict[str, str], registry: str, runtime_image: str, house: House
) -> None:
    base, tag = f"hatoba.test/{house.model}-base", f"{registry}/{house.model}:both"
    house.engine.docker("tag", runtime_image, f"{base}:amd64")
    house.engine.docker("tag", arm64_images["runtime"], f"{base}:arm64")
    await house.require("markupsafe==3.0.3\n")
    wanted = ["--base", f"{base}:{{arch}}", "--arch", "amd64,arm64", "--tag", tag, "--push"]
    code, _, err = await house.build(*wanted, version=2)
    assert code == 0, err
    kept = {each["architecture"]: each["digest"] for each in await house.images(2)}
    assert sorted(kept) == ["amd64", "arm64"]
    house.engine.docker("rmi", f"{tag}-amd64", f"{tag}-arm64", f"{base}:amd64", f"{base}:arm64")
    assert run_pushed(house, registry, kept["amd64"]) == "x86_64 6\n"
    assert run_pushed(house, registry, kept["arm64"]) == "aarch64 6\n"


def run_pushed(house: House, registry: str, digest: str) -> str:
    """Its machine and the handler's answer, with the compiled package that it was built with."""
    name = f"{registry}/{house.model}@{digest}"
    house.engine.docker("pull", name)
    try:
        return house.engine.docker("run", "--rm", name, "python", "-c", PROGRAM)
    finally:
        house.engine.docker("rmi", name)


async def test_no_engine_and_no_code_are_told(house: House) -> None:
    code, _, err = await house.cli("models", "register", house.model, "model")
    assert code == 0, err
    tag = ["--base", house.engine.busybox, "--tag", "hatoba.test/none"]
    code, _, err = await house.cli("images", "build", f"{house.model}:2", *tag)
    assert (code, "no code" in err) == (2, True)
    code, out, err = await house.build(*tag, "--engine", "/nowhere.sock")
    assert (code != 0, "no Docker engine answers at /nowhere.sock" in out + err) == (True, True)
