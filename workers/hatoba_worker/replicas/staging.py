"""What stands ready before a replica's process starts: model, code, environment, settings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hatoba.v1 import common_pb2, worker_pb2
from hatoba_worker import tinyfiles
from hatoba_worker.environments import Environments, Interpreter, Tenant
from hatoba_worker.executors.containers.contained import Contained, Wish
from hatoba_worker.executors.containers.rights import RUN
from hatoba_worker.executors.containers.spec import HOME, PORT, Mount
from hatoba_worker.failures import AttemptFailed, no_engine, staging_failed
from hatoba_worker.host_secrets import Secrets
from hatoba_worker.keeper.messages import Limits, Spawn
from hatoba_worker.logs import FILES
from hatoba_worker.serving.config import KEPT
from hatoba_worker.staging import base_environment
from hatoba_worker.transfers import TransferFailed

MODEL, CODE, EXAMPLE, CONFIG = "model", "code", "example", "serving.json"
_ANY = "0.0.0.0"
"""Where it listens in its container; others reach it where the engine lets them."""
GRACE = 5.0
"""Seconds that a process gets beyond its drain time to end by itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """One start of a replica: the name of its process, and its directory."""

    process: str
    home: str
    run: int
    contained: bool = False

    @property
    def writable(self) -> str:
        """Where the process writes what is for us."""
        # A container may not write into its directory itself.
        return f"{self.home}/{RUN}" if self.contained else self.home

    @property
    def ready_file(self) -> str:
        """Where the process writes its address once it listens."""
        return f"{self.writable}/ready-{self.run}.json"


class Trees(Protocol):
    """Where whole trees come from."""

    async def link(self, ref: common_pb2.ManifestRef, target: Path) -> None:
        """Put a tree into `target` whose files nobody writes to. Raises TransferFailed, OSError."""


class Staging(Protocol):
    """Brings replicas in."""

    async def trees(self, spec: worker_pb2.ReplicaSpec, home: str) -> None:
        """Put model and code into the directory, anew; raises AttemptFailed."""

    async def spawn(self, spec: worker_pb2.ReplicaSpec, place: Place) -> Spawn:
        """The prepared process; raises AttemptFailed."""

    async def pin(self, spec: worker_pb2.ReplicaSpec, home: str) -> None:
        """Keep the environment that a process of an earlier worker runs in."""

    async def clear(self, name: str, home: str) -> None:
        """Remove all that was brought in for a replica."""


class ReplicaStager:
    """Stages with what the worker has for attempts."""

    def __init__(
        self,
        data: Path,
        environ: Mapping[str, str],
        trees: Trees,
        environments: Environments,
        secrets: Secrets,
        *,
        serve_address: str,
        serving_tls: Callable[[], Mapping[str, object] | None],
        host_has_gpus: bool,
        contained: Contained | None = None,
        keeps: bool = False,
        port_of: Callable[[str], int] = lambda _: 0,
    ) -> None:
        """With `keeps` its servers keep predictions: nobody stands before them who does. `port_of`
        tells where that of a deployment listens, and blocks; 0: wherever there is room.
        """
        self._keeps = keeps
        self._library = str(data / "lib")
        self._base = base_environment(environ)
        self._trees = trees
        self._environments = environments
        self._secrets = secrets
        self._serve_address = serve_address
        self._serving_tls = serving_tls
        self._host_has_gpus = host_has_gpus
        self._contained = contained
        self._port_of = port_of

    async def trees(self, spec: worker_pb2.ReplicaSpec, home: str) -> None:
        """Put model and code into the directory, anew; raises AttemptFailed."""
        model, code = Path(home, MODEL), Path(home, CODE)
        try:
            await asyncio.to_thread(_emptied, model, code)
            await self._trees.link(spec.model, model)
            if spec.serving.code.digest:
                await self._trees.link(spec.serving.code, code)
        except (TransferFailed, OSError) as error:
            raise staging_failed(f"model or code could not be brought in: {error}") from error

    async def spawn(self, spec: worker_pb2.ReplicaSpec, place: Place) -> Spawn:
        """The prepared process or container; raises AttemptFailed."""
        if spec.serving.environment.image:
            return await self._contain(spec, place)
        try:
            interpreter = await self._environments.resolve(_tenant(spec, place.home))
            secrets = await asyncio.to_thread(self._secrets.resolve, list(spec.secrets))
            await asyncio.to_thread(self._write_settings, spec, place)
        except OSError as error:
            raise staging_failed(f"its settings could not be written: {error}") from error
        python = interpreter.python or "python3"
        config = f"{place.home}/{CONFIG}"
        return Spawn(
            attempt=place.process,
            argv=[python, "-m", "hatoba_worker.serving", "serve", "--config", config],
            env=self._environment(spec, place, interpreter, secrets),
            cwd=f"{place.home}/{CODE}",
            stdout=f"{place.home}/{FILES['stdout']}",
            stderr=f"{place.home}/{FILES['stderr']}",
            limits=Limits(memory_bytes=spec.resources.memory_bytes or None),
        )

    async def _contain(self, spec: worker_pb2.ReplicaSpec, place: Place) -> Spawn:
        reference = spec.serving.environment.image
        if self._contained is None:
            raise no_engine(reference)
        build_log = f"{place.home}/{FILES['build']}"
        try:
            tinyfiles.remove(build_log)
            image = await self._contained.image(reference, build_log)
            secrets = await asyncio.to_thread(self._secrets.resolve, list(spec.secrets))
            await asyncio.to_thread(self._write_settings, spec, place, contained=True)
            port = await asyncio.to_thread(self._port_of, spec.deployment)
        except OSError as error:
            raise staging_failed(f"its settings could not be written: {error}") from error
        serve = ("python3", "-m", "hatoba_worker.serving", "serve", "--config")
        return await self._contained.spawn(
            Wish(
                name=place.process,
                home=place.home,
                image=image,
                command=[*serve, f"{HOME}/{CONFIG}"],
                env={**spec.env, **secrets, **_ours(spec, f"{HOME}/{RUN}")},
                cwd=f"{HOME}/{CODE}",
                cpus=spec.resources.cpus,
                memory_bytes=spec.resources.memory_bytes,
                gpus=tuple(spec.gpus),
                publish=self._serve_address,
                publish_port=port,
                labels={"hatoba.dev/replica": spec.name, "hatoba.dev/deployment": spec.deployment},
                mounts=tuple(_read_only(place.home)),
                needs_library=True,
            )
        )

    async def pin(self, spec: worker_pb2.ReplicaSpec, home: str) -> None:
        """Keep the environment that a process of an earlier worker runs in."""
        if spec.serving.environment.requirements:
            with contextlib.suppress(AttemptFailed, OSError):
                await self._environments.resolve(_tenant(spec, home))

    async def clear(self, name: str, home: str) -> None:
        """Remove all that was brought in for a replica."""
        self._environments.release(name)
        await asyncio.to_thread(shutil.rmtree, home, True)

    def _write_settings(
        self, spec: worker_pb2.ReplicaSpec, place: Place, *, contained: bool = False
    ) -> None:
        """Put its settings into its directory, with paths as it sees them; blocks."""
        if spec.serving.HasField("example"):
            Path(place.home, EXAMPLE).write_bytes(spec.serving.example.data)
        tls = self._serving_tls()
        if contained:
            seen, listens = replace(place, home=HOME), (_ANY, PORT)
            tls = _brought_in(tls, place.home) if tls else None
        else:
            seen, listens = place, (self._serve_address, self._port_of(spec.deployment))
        config = config_of(spec, seen, listens) | {"tls": tls}
        if self._keeps:
            config |= {"keep": _kept(spec, seen)}
        settings = json.dumps(config, indent=1)
        tinyfiles.write(f"{place.home}/{CONFIG}", settings.encode())

    def _environment(
        self,
        spec: worker_pb2.ReplicaSpec,
        place: Place,
        interpreter: Interpreter,
        secrets: Mapping[str, str],
    ) -> dict[str, str]:
        """The host's few variables, the user's, then ours, which nobody overrides."""
        env = self._base | dict(spec.env) | dict(secrets)
        if interpreter.bin:
            env["PATH"] = f"{interpreter.bin}:{env.get('PATH', os.defpath)}"
        # The server is always of this worker's own version, whatever the environment has.
        parts = [env.get("PYTHONPATH", ""), self._library]
        env["PYTHONPATH"] = ":".join(part for part in parts if part)
        if spec.gpus or self._host_has_gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(spec.gpus)
        return env | _ours(spec, place.home)


def _ours(spec: worker_pb2.ReplicaSpec, home: str) -> dict[str, str]:
    """What a replica is told of itself, with its directory as it sees it."""
    return {
        "HATOBA_REPLICA": spec.name,
        "HATOBA_DEPLOYMENT": spec.deployment,
        "HATOBA_REVISION": str(spec.revision),
        "HATOBA_MODEL_VERSION": spec.model_version,
        "HATOBA_DIR": home,
    }


def _read_only(home: str) -> Iterator[Mount]:
    """Model and code may be the very files of the host's cache, and its container the same user."""
    for name in (MODEL, CODE):
        yield Mount(f"{home}/{name}", f"{HOME}/{name}")


def _brought_in(tls: Mapping[str, object], home: str) -> dict[str, object]:
    """The settings for TLS with copies of their files, which its container can read; blocks."""
    found = dict(tls)
    for name in ("certificate", "authority"):
        copy = f"{home}/{name}.pem"
        tinyfiles.write(copy, Path(str(tls[name])).read_bytes())
        found[name] = f"{HOME}/{name}.pem"
    return found


def config_of(
    spec: worker_pb2.ReplicaSpec, place: Place, listens: tuple[str, int]
) -> dict[str, Any]:
    """The settings of its server, which listens at an address and port; 0 and null mean its
    defaults."""
    serving, limits = spec.serving, spec.limits
    example = None
    if serving.HasField("example"):
        media_type = serving.example.media_type or "application/json"
        example = {"path": f"{place.home}/{EXAMPLE}", "media_type": media_type}
    return {
        "name": spec.name,
        "deployment": spec.deployment,
        "model_version": spec.model_version,
        "model_dir": f"{place.home}/{MODEL}",
        "code_dir": f"{place.home}/{CODE}",
        "handler": serving.handler,
        "example": example,
        "golden": serving.golden,
        "host": listens[0],
        "port": listens[1],
        "ready_file": place.ready_file,
        "limits": {
            "max_body_bytes": limits.max_body_bytes,
            "max_queue": limits.max_queue,
            "timeout_seconds": limits.timeout.ToTimedelta().total_seconds(),
            "concurrency": limits.concurrency,
        },
        "batching": {"max_batch": serving.max_batch, "batch_wait_ms": serving.batch_wait_ms},
        "drain_seconds": drain_seconds(spec),
    }


def _kept(spec: worker_pb2.ReplicaSpec, place: Place) -> dict[str, Any]:
    return {
        "path": f"{place.writable}/{KEPT}",
        "rate": spec.capture_rate,
        "revision": spec.revision,
    }


def _tenant(spec: worker_pb2.ReplicaSpec, home: str) -> Tenant:
    return Tenant(spec.name, spec.serving.environment, f"{home}/{FILES['build']}")


def drain_seconds(spec: worker_pb2.ReplicaSpec) -> float:
    """How long it may go on with what it has."""
    return spec.drain.ToTimedelta().total_seconds()


def _emptied(*directories: Path) -> None:
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
