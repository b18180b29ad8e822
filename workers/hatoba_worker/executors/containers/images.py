"""Images of containers: brought in once for all who wait, and named by what they are."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from hatoba_worker import tinyfiles
from hatoba_worker.executors.containers import states
from hatoba_worker.executors.containers.engine import (
    Engine,
    EngineAway,
    EngineRefused,
    Facts,
    Json,
)
from hatoba_worker.executors.containers.executor import ContainerExecutor
from hatoba_worker.failures import AttemptFailed, no_engine
from hatoba_worker.host_secrets import Secrets
from hatoba_worker.tails import last_lines

log = structlog.get_logger(__name__)

CLIENT = "hatoba.dev/client"
"""Label of an image that has our packages itself."""
TELL_EVERY = 1.0
_ROOT = ("", "root", "0")
_HUB = "docker.io"
_EMULATORS = "/proc/sys/fs/binfmt_misc"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}

Pull = asyncio.Task[AttemptFailed | None]


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is here. `name` is what is recorded: `NAME@sha256:...`, or the bare digest of
    one that no registry has. `user` is empty where it names none but root; `python_path` is its own
    PYTHONPATH.
    """

    id: str
    name: str
    user: str
    has_home: bool
    has_client: bool
    python_path: str = ""


class Images:
    """Brings images in; a pull is done once however many wait for it."""

    def __init__(
        self,
        executor: ContainerExecutor,
        secrets: Secrets,
        registries: Mapping[str, str],
        root: Path,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._executor = executor
        self._secrets = secrets
        self._registries = registries
        self._root = root
        self._tasks = tasks
        self._pulls: dict[str, Pull] = {}

    def prepare(self) -> None:
        """Make what is needed; blocks."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def resolve(self, reference: str, build_log: str) -> Image:
        """The image, once it is here. Raises AttemptFailed; waits while the engine is away."""
        if await self._executor.absent():
            raise no_engine(reference)
        while True:
            engine, facts = await self._executor.engine()
            try:
                return await self._resolved(engine, facts, reference, build_log)
            except EngineAway:
                await asyncio.sleep(TELL_EVERY)

    async def _resolved(
        self, engine: Engine, facts: Facts, reference: str, build_log: str
    ) -> Image:
        here = await _found(engine, reference)
        if here is None or follows(reference):
            pull = self._pulls.get(reference) or self._begin(engine, facts, reference)
            # One file with many names: everyone who waits sees the pull as it goes.
            tinyfiles.share(self._log(reference), build_log)
            failure = await asyncio.shield(pull)
            here = await _found(engine, reference)
            if failure and here is None:
                raise failure
        if here is None:
            raise states.image_failed("missing", reference, facts.arch)
        arch = str(here.get("Architecture") or facts.arch)
        if arch != facts.arch and not await asyncio.to_thread(_runs_here, arch):
            # Behind an init it would only be said that there is no such program.
            raise states.image_failed("wrong_arch", reference, facts.arch, f"it is for {arch}")
        image = image_of(here, reference)
        tinyfiles.append(build_log, f"{reference} is {image.name}\n".encode())
        return image

    def _begin(self, engine: Engine, facts: Facts, reference: str) -> Pull:
        # Never emptied: an earlier attempt may share the old one.
        tinyfiles.fresh(self._log(reference))
        pulling = self._pull(engine, facts, reference)
        pull = self._tasks.create_task(pulling, name=f"pull {reference}")
        self._pulls[reference] = pull
        return pull

    def _log(self, reference: str) -> str:
        return f"{self._root}/{hashlib.sha256(reference.encode()).hexdigest()[:32]}.log"

    async def _pull(self, engine: Engine, facts: Facts, reference: str) -> AttemptFailed | None:
        """Bring an image in; returns why that failed. Never raises: others wait for it."""
        path = self._log(reference)
        try:
            auth = await self._credentials(reference)
            await _told(engine.pull(pulled(reference), auth), path)
        except EngineRefused as error:
            tinyfiles.append(path, f"{error}\n".encode())
            fault = states.fault_of(error.status, str(error))
            failure = states.image_failed(fault, reference, facts.arch, str(error))
            failure.lines = tuple(last_lines(path))
            return failure
        except EngineAway as error:
            return states.image_failed("transient", reference, facts.arch, str(error))
        except AttemptFailed as failure:
            return failure
        except OSError as error:
            return states.image_failed("transient", reference, facts.arch, str(error))
        finally:
            self._pulls.pop(reference, None)
        return None

    async def _credentials(self, reference: str) -> Json | None:
        """What opens the image's registry, from the host's secret of that name. Raises
        AttemptFailed (SECRET_MISSING)."""
        registry = registry_of(reference)
        name = self._registries.get(registry)
        if name is None:
            return None
        value = await asyncio.to_thread(self._secrets.value, name)
        return {**credentials(value), "serveraddress": registry}


def _runs_here(arch: str) -> bool:
    """Whether this machine runs programs of another architecture than its own. Blocks."""
    native = arch == "386" or (arch == "arm" and os.uname().machine == "aarch64")
    return native or Path(_EMULATORS, f"qemu-{_MACHINES.get(arch, arch)}").exists()


def credentials(value: str) -> Json:
    """Of a secret: `USER:PASSWORD`, or a JSON object as the engine takes it."""
    if value.startswith("{"):
        return dict(json.loads(value))
    user, _, password = value.partition(":")
    return {"username": user, "password": password}


def registry_of(reference: str) -> str:
    """The registry that a reference names; without one, the engine's default."""
    first, slash, _ = reference.partition("/")
    names_one = slash and ("." in first or ":" in first or first == "localhost")
    return first if names_one else _HUB


def follows(reference: str) -> bool:
    """Whether its registry is to be asked each time: what moves by its nature, `latest`."""
    if "@" in reference:
        return False
    _, _, tag = reference.rpartition("/")[2].partition(":")
    return tag in ("", "latest")


def tagged(reference: str) -> str:
    """The reference with the tag that it means."""
    last = reference.rpartition("/")[2]
    return reference if ":" in last or "@" in last else f"{reference}:latest"


def pulled(reference: str) -> str:
    """The reference with tag and repository as its registry knows them."""
    whole = tagged(reference)
    return whole if "/" in whole else f"{_HUB}/library/{whole}"


def image_of(seen: Json, reference: str) -> Image:
    """What the engine says of an image. Pure."""
    config = seen.get("Config") or {}
    user = str(config.get("User") or "")
    labels = config.get("Labels") or {}
    env = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    return Image(
        id=str(seen["Id"]),
        name=_name_of(seen, reference),
        user="" if user.partition(":")[0] in _ROOT else user,
        has_home="HOME" in env,
        has_client=bool(labels.get(CLIENT)),
        python_path=env.get("PYTHONPATH", ""),
    )


def _name_of(seen: Json, reference: str) -> str:
    name = reference.partition("@")[0]
    directory, slash, last = name.rpartition("/")
    name = f"{directory}{slash}{last.partition(':')[0]}"
    known = [str(one) for one in seen.get("RepoDigests") or ()]
    mine = [one for one in known if one.partition("@")[0] == name]
    return next(iter(mine or known), str(seen["Id"]))


async def _found(engine: Engine, reference: str) -> Json | None:
    try:
        return await engine.image(tagged(reference))
    except EngineRefused as error:
        if error.status == 400:
            raise states.image_failed("invalid", reference, "") from error
        return None


async def _told(steps: AsyncIterator[Json], path: str) -> None:
    """Write down how a pull goes: each change of a layer, and how far it is once a second."""
    loop = asyncio.get_running_loop()
    status: dict[str, str] = {}
    said_at = 0.0
    async for step in steps:
        layer, now = str(step.get("id", "")), str(step.get("status", ""))
        progress = str(step.get("progress", ""))
        if status.get(layer) == now and (not progress or loop.time() - said_at < TELL_EVERY):
            continue
        status[layer], said_at = now, loop.time()
        line = " ".join(part for part in (f"{layer}:" if layer else "", now, progress) if part)
        tinyfiles.append(path, f"{line}\n".encode())
