"""`python -m hatoba.imaging`: build a model's images; its outputs say what was built.

Run as a job of `hatoba images build`. Exit code 2: what was asked for cannot be; 1: a step failed,
and its words stand above.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hatoba.imaging.context import dockerfile, pack
from hatoba.imaging.engine import Engine, EngineError
from hatoba.job_context import current_job

PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
# Whom this machine trusts; uv's name for it has changed.
SYSTEMS_AUTHORITIES = {"UV_NATIVE_TLS": "1", "UV_SYSTEM_CERTS": "1"}
STANDARD = "/var/run/docker.sock"
NO_CREDENTIALS = base64.urlsafe_b64encode(b"{}").decode()
AUTH = "DOCKER_AUTH_CONFIG"
"""Environment variable with what `docker login` writes, for the registry that is pushed to."""


class Failed(Exception):
    """A step failed; the message says which, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one image for each architecture, and write `images.json` to the job's outputs."""
    said = _parser().parse_args(arguments)
    job = current_job()
    engine = Engine(socket_of(said.engine, os.environ))
    try:
        built = [
            build(engine, said, architecture, Path(job.inputs["code"]))
            for architecture in said.arch.split(",")
        ]
    except (Failed, EngineError) as failure:
        sys.stderr.write(f"error: {failure}\n")
        return 1
    (Path(job.outputs) / "images.json").write_text(json.dumps(built, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hatoba.imaging", description=__doc__)
    parser.add_argument("--base", required=True, help="image below; {arch} is replaced")
    parser.add_argument("--tag", required=True, help="REGISTRY/NAME:TAG; -ARCH is appended")
    parser.add_argument("--arch", required=True, help="amd64, arm64 or both with a comma")
    parser.add_argument("--python", default="3.11", help="Python version of the base")
    parser.add_argument("--requirements", default="", help="in pip's file format, as a text")
    parser.add_argument("--label", action="append", default=[], metavar="K=V")
    parser.add_argument("--push", action="store_true")
    parser.add_argument("--engine", default="", help="its unix socket")
    return parser


def build(
    engine: Engine, said: argparse.Namespace, architecture: str, code: Path
) -> dict[str, Any]:
    """One image; what is recorded of it."""
    tag = f"{said.tag}-{architecture}"
    say(f"== {tag}")
    labels = dict(one.partition("=")[::2] for one in said.label)
    recipe = dockerfile(said.base.replace("{arch}", architecture), labels)
    with tempfile.TemporaryDirectory() as folder:
        packages = Path(folder)
        fetch(said.requirements, said.python, architecture, packages)
        for line in engine.build(pack(recipe, code, packages), tag, f"linux/{architecture}"):
            say(line)
    about = engine.inspect(tag)
    if about["Architecture"] != architecture:
        found = about["Architecture"]
        raise Failed(f"{tag} became {found}: the base {said.base} is not for {architecture}")
    digest = push(engine, tag) if said.push else about["Id"]
    record = {"reference": tag, "digest": digest, "pushed": said.push}
    return {"architecture": architecture, **record}


def fetch(requirements: str, python: str, architecture: str, folder: Path) -> None:
    """Install what the code needs, as the architecture needs it, without running any of it."""
    if not requirements.strip():
        return
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        raise Failed("packages are fetched by uv, and there is none; pip install 'hatoba[worker]'")
    file = folder.with_suffix(".requirements")
    file.write_text(requirements)
    place = ["--python-version", python, "--python-platform", PLATFORMS[architecture]]
    command = [uv, "pip", "install", "--target", str(folder), "--only-binary", ":all:", *place]
    try:
        environ = {**os.environ, **SYSTEMS_AUTHORITIES}
        if subprocess.run([*command, "--requirement", str(file)], env=environ).returncode:
            raise Failed(f"the requirements cannot be had for {architecture} and Python {python}")
    finally:
        file.unlink()


def push(engine: Engine, tag: str) -> str:
    """Push one image; answers its digest in the registry."""
    digest = ""
    for digest in engine.push(tag, credentials_for(tag, os.environ.get(AUTH, ""))):
        say(digest)
    return digest


def credentials_for(tag: str, config: str) -> str:
    """What the engine sends to the tag's registry, out of a file as `docker login` writes it."""
    if not config:
        return NO_CREDENTIALS
    try:
        known = json.loads(config).get("auths", {}).get(tag.partition("/")[0], {})
        user, _, password = base64.b64decode(known.get("auth", "")).decode().partition(":")
    except (ValueError, AttributeError):
        raise Failed(f"{AUTH} is not what `docker login` writes") from None
    about = {"username": user, "password": password, "serveraddress": tag.partition("/")[0]}
    return base64.urlsafe_b64encode(json.dumps(about).encode()).decode()


def socket_of(told: str, environ: Mapping[str, str]) -> str:
    """The engine's socket: as told, by DOCKER_HOST, else the standard one."""
    return told or environ.get("DOCKER_HOST", "").removeprefix("unix://") or STANDARD


def say(line: str) -> None:
    """A line of the build's log, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
