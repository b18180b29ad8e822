"""`hatoba-entrypoint serve`: a replica's container. Fetches the model, then becomes its server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from hatoba.replica_names import task_name
from hatoba.v1 import worker_pb2
from hatoba_worker import tinyfiles
from hatoba_worker.dial import Connection, connection
from hatoba_worker.entrypoint import codes
from hatoba_worker.entrypoint.claims import Unreached
from hatoba_worker.entrypoint.main import say
from hatoba_worker.entrypoint.places import directory_of
from hatoba_worker.entrypoint.platform import run_of
from hatoba_worker.entrypoint.settings import BadSettings, claim_seconds, port_of, target_of
from hatoba_worker.entrypoint.signals import on_end
from hatoba_worker.entrypoint.staging import PlatformSecrets, container_environment
from hatoba_worker.entrypoint.ways import unless
from hatoba_worker.environments import Environments
from hatoba_worker.failures import AttemptFailed
from hatoba_worker.keeper.messages import Spawn
from hatoba_worker.replicas.staging import CONFIG, Place, ReplicaStager
from hatoba_worker.server_transfers import ServerTransfers
from hatoba_worker.staging import link_library
from hatoba_worker.trees import TreeCache

EVERYWHERE = "0.0.0.0"


@dataclass(frozen=True, slots=True)
class Told:
    """What the platform says of the replica."""

    spec: worker_pb2.ReplicaSpec
    port: int
    seconds: float


def told_of(environ: Mapping[str, str]) -> Told:
    """Read the variables of a replica, and ask the platform who it is; raises BadSettings. Blocks
    up to 2 s."""
    try:
        text = environ.get("HATOBA_REPLICA", "")
        spec = json_format.Parse(text, worker_pb2.ReplicaSpec())
    except json_format.ParseError as error:
        raise BadSettings(f"HATOBA_REPLICA is no replica's specification: {error}") from error
    if not spec.model.digest:
        raise BadSettings("HATOBA_REPLICA names no model's files")
    if not spec.name:
        spec.name = _own_name(environ)
    # The image is its environment.
    if spec.serving.environment.image:
        spec.serving.ClearField("environment")
    # Where the image has its packages: our library goes behind it, not in its place.
    if path := environ.get("PYTHONPATH", ""):
        spec.env["PYTHONPATH"] = path
    return Told(spec, port_of(environ), claim_seconds(environ))


def _own_name(environ: Mapping[str, str]) -> str:
    """Where the platform begins all replicas alike, each is named after its task."""
    prefix = environ.get("HATOBA_REPLICA_PREFIX", "")
    return task_name(prefix, run_of(environ)) if prefix else socket.gethostname()


class OpenLink:
    """The connection of a replica, which shows one credential."""

    def __init__(self, link: Connection) -> None:
        self._link = link

    async def link(self) -> Connection:
        """The open connection."""
        return self._link


async def _settled(way: Coroutine[Any, Any, Spawn]) -> Spawn | AttemptFailed:
    try:
        return await way
    except AttemptFailed as failed:
        return failed


class Replica:
    """One start of a replica in its container."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._told = told_of(environ)
        self._target = target_of(environ, environ.get("HATOBA_CREDENTIAL", ""))
        self._data = directory_of(environ)
        self._asked = asyncio.Event()
        self.spawn: Spawn | None = None
        """What is to be run, once it is staged."""

    async def run(self) -> int:
        """Fetch and prepare; 0 when `spawn` is to be run. Raises BadSettings and Unreached."""
        on_end(self._asked.set)
        try:
            async with connection(self._target) as link:
                self.spawn = await unless(self._asked, self._stage(link))
        except AttemptFailed as failed:
            return say(codes.NOT_STARTED, f"the replica cannot be served: {failed}")
        return 0 if self.spawn else codes.ENDED

    async def _stage(self, link: Connection) -> Spawn:
        try:
            async with asyncio.timeout(self._told.seconds):
                await link.control.channel_ready()
        except TimeoutError as error:
            raise Unreached(f"{self._target.address} does not answer") from error
        spec, home = self._told.spec, str(self._data / "replica")
        await asyncio.to_thread(self._prepare, home)
        async with asyncio.TaskGroup() as tasks:
            found = await _settled(self._bring(self._stager(link, tasks), spec, home))
        # Raised outside the group, which would wrap it.
        if isinstance(found, AttemptFailed):
            raise found
        return found

    async def _bring(self, stager: ReplicaStager, spec: worker_pb2.ReplicaSpec, home: str) -> Spawn:
        await stager.trees(spec, home)
        return await stager.spawn(spec, Place(spec.name, home, 1))

    def _prepare(self, home: str) -> None:
        for directory in (self._data / "lib", self._data / "cache" / "trees", Path(home)):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        link_library(self._data / "lib")
        (self._data / "venvs").mkdir(mode=0o700, exist_ok=True)

    def _stager(self, link: Connection, tasks: asyncio.TaskGroup) -> ReplicaStager:
        environ, data = self._environ, self._data
        return ReplicaStager(
            data,
            environ,
            TreeCache(data / "cache" / "trees", ServerTransfers(OpenLink(link))),
            Environments(data, environ, tasks, embedded=False),
            PlatformSecrets(data, environ),
            serve_address=EVERYWHERE,
            serving_tls=lambda: None,
            host_has_gpus=False,
        )

    def become(self, spawn: Spawn) -> int:
        """Become the model server, at the port that the platform knows. Does not return."""
        config = Path(self._data, "replica", CONFIG)
        settings = json.loads(config.read_text(encoding="utf-8"))
        tinyfiles.write(str(config), json.dumps({**settings, "port": self._told.port}).encode())
        program = shutil.which(spawn.argv[0], path=spawn.env.get("PATH")) or spawn.argv[0]
        os.chdir(spawn.cwd)
        os.execve(program, list(spawn.argv), container_environment(self._environ) | dict(spawn.env))
