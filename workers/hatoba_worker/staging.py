"""What stands ready before the command starts: directories, trees, environment, variables."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format

from hatoba.v1 import common_pb2, job_pb2, worker_pb2
from hatoba_worker import spool, streams_in, tinyfiles
from hatoba_worker.attempts import Attempt, GangPlace
from hatoba_worker.environments import Environments, Interpreter, Tenant
from hatoba_worker.executors.containers.contained import Contained, Wish, inside
from hatoba_worker.executors.containers.images import Image
from hatoba_worker.executors.containers.spec import HOME
from hatoba_worker.failures import input_changed, no_engine, staging_failed
from hatoba_worker.homes import Homes
from hatoba_worker.host_secrets import Secrets
from hatoba_worker.keeper.messages import Limits, Spawn
from hatoba_worker.logs import FILES
from hatoba_worker.spans import exec_context
from hatoba_worker.transfers import InputChanged, TransferFailed
from hatoba_worker.trees import TreeCache

PARAMS = "params.json"
STOP_FILE = "stop"
SAVE_FILE = "save"
"""Stands in an attempt's directory once it was asked to save a checkpoint."""
RESTORE = "restore"
# What a job may import, and what a model's server needs, where an environment has no such thing.
_LIBRARY = ("hatoba", "hatoba_worker", "h11")
_LANGUAGE = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")
_PERSON = ("HOME", "USER", "LOGNAME", "SHELL")
_PASSED = frozenset({"PATH", "TMPDIR", "LD_LIBRARY_PATH", *_LANGUAGE, *_PERSON})


@dataclass(frozen=True, slots=True)
class Stage:
    """What staging found: interpreter or image, variables of the secrets, and a checkpoint's
    directory."""

    interpreter: Interpreter
    secrets: Mapping[str, str]
    restore: str = ""
    image: Image | None = None


class Stager:
    """Prepares attempts. One that asks for nothing is prepared without leaving the event loop."""

    def __init__(
        self,
        data: Path,
        environ: Mapping[str, str],
        homes: Homes,
        trees: TreeCache,
        environments: Environments,
        secrets: Secrets,
        *,
        host_has_gpus: bool,
        base: Mapping[str, str] | None = None,
        contained: Contained | None = None,
    ) -> None:
        """`base`: what every command has in its environment; else the host's few variables.
        `contained` makes containers, where there may be some."""
        self._library = data / "lib"
        self._no_params = str(self._library / "no-params.json")
        self._homes = homes
        self._trees = trees
        self._environments = environments
        self._secrets = secrets
        self._host_has_gpus = host_has_gpus
        self._contained = contained
        self._base = base_environment(environ) if base is None else dict(base)

    def prepare(self) -> None:
        """Make what all attempts share; blocks."""
        self._library.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A directory with nothing but these in it: beside them may stand a whole environment.
        link_library(self._library)
        Path(self._no_params).write_text("{}", encoding="utf-8")
        if self._contained is not None:
            self._contained.prepare()

    def at_once(self, attempt: Attempt, restore: job_pb2.Checkpoint | None) -> Spawn | None:
        """The prepared command, or None when something has to be brought in first."""
        launch = attempt.launch
        if restore or launch.code.digest or launch.inputs or launch.secrets:
            return None
        interpreter = self._environments.known(launch.environment)
        if interpreter is None:
            return None
        if tinyfiles.exists(attempt.home):
            return None
        self._make_home(attempt)
        return self._spawn(attempt, Stage(interpreter, {}))

    async def bring(self, attempt: Attempt, restore: job_pb2.Checkpoint | None) -> Spawn:
        """Bring everything in, and return the prepared command; raises AttemptFailed."""
        if tinyfiles.exists(attempt.home):
            await asyncio.to_thread(shutil.rmtree, attempt.home, True)
        self._make_home(attempt)
        try:
            stage = await self._stage(attempt, restore)
        except InputChanged as error:
            raise input_changed(str(error)) from error
        except (TransferFailed, OSError) as error:
            raise staging_failed(f"code or inputs could not be brought in: {error}") from error
        if stage.image is not None:
            return await self._contain(attempt, stage, stage.image)
        return self._spawn(attempt, stage)

    async def _stage(self, attempt: Attempt, restore: job_pb2.Checkpoint | None) -> Stage:
        launch = attempt.launch
        secrets: dict[str, str] = {}
        if launch.secrets:
            secrets = await asyncio.to_thread(self._secrets.resolve, list(launch.secrets))
        interpreter, image = Interpreter(), None
        build_log = attempt.path(FILES["build"])
        if attempt.contained:
            image = await self._image(launch.environment.image, build_log)
        else:
            tenant = Tenant(attempt.name, launch.environment, build_log)
            interpreter = await self._environments.resolve(tenant)
        if launch.code.digest:
            await self._trees.copy(launch.code, Path(attempt.path("work")))
        for each in launch.inputs:
            await self._bring_input(attempt, each)
        restored = await self._restored(attempt, restore)
        return Stage(interpreter, secrets, restored, image)

    async def _image(self, reference: str, build_log: str) -> Image:
        if self._contained is None:
            raise no_engine(reference)
        return await self._contained.image(reference, build_log)

    async def _bring_input(self, attempt: Attempt, told: job_pb2.Input) -> None:
        if told.items.digest:
            await self._trees.link(told.items, Path(attempt.path("items")) / told.name)
        target = Path(attempt.path("inputs")) / told.name
        if told.mode == job_pb2.INPUT_MODE_STREAM:
            await asyncio.to_thread(streams_in.prepare, attempt.home, told)
        elif told.mode == job_pb2.INPUT_MODE_COPY:
            await self._trees.copy(told.manifest, target)
        else:
            await self._trees.link(told.manifest, target)

    async def _restored(self, attempt: Attempt, restore: job_pb2.Checkpoint | None) -> str:
        if restore is None:
            return ""
        directory = attempt.path(f"{RESTORE}/step-{restore.step}")
        manifest: common_pb2.ManifestRef = restore.manifest
        await self._trees.copy(manifest, Path(directory))
        return directory

    def _make_home(self, attempt: Attempt) -> None:
        self._homes.make(attempt.home)
        try:
            if attempt.launch.params:
                tinyfiles.write(attempt.path(PARAMS), _params(attempt.launch))
        except OSError as error:
            raise staging_failed(f"no room for the parameters: {error}") from error

    def _spawn(self, attempt: Attempt, stage: Stage) -> Spawn:
        launch = attempt.launch
        return Spawn(
            attempt=attempt.name,
            argv=stage.interpreter.command(list(launch.command)),
            env=self._environment(attempt, stage),
            cwd=attempt.path("work"),
            stdout=attempt.path(FILES["stdout"]),
            stderr=attempt.path(FILES["stderr"]),
            limits=Limits(memory_bytes=launch.resources.memory_bytes or None),
        )

    async def _contain(self, attempt: Attempt, stage: Stage, image: Image) -> Spawn:
        assert self._contained is not None
        launch = attempt.launch
        if not launch.params:
            tinyfiles.write(attempt.path(PARAMS), b"{}")
        restore = inside(stage.restore, attempt.home) if stage.restore else ""
        ours = {**_ours(attempt, HOME, restore), "HATOBA_PARAMS": f"{HOME}/{PARAMS}"}
        return await self._contained.spawn(
            Wish(
                name=attempt.name,
                home=attempt.home,
                image=image,
                command=launch.command,
                env={**launch.env, **stage.secrets, **ours},
                cwd=f"{HOME}/work",
                cpus=launch.resources.cpus,
                memory_bytes=launch.resources.memory_bytes,
                gpus=tuple(launch.gpus),
                # Members of a gang meet at addresses of their hosts.
                host_network=bool(launch.gang_size),
                labels=_labels(launch),
            )
        )

    def _environment(self, attempt: Attempt, stage: Stage) -> dict[str, str]:
        """The job's variables: the host's few, the user's, then ours, which nobody overrides."""
        launch = attempt.launch
        env = self._base | dict(launch.env) | dict(stage.secrets)
        interpreter = stage.interpreter
        if interpreter.bin:
            env["PATH"] = f"{interpreter.bin}:{env.get('PATH', os.defpath)}"
        if interpreter.lacks_client:
            parts = [env.get("PYTHONPATH", ""), str(self._library)]
            env["PYTHONPATH"] = ":".join(part for part in parts if part)
        if launch.gpus or self._host_has_gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(launch.gpus)
        env |= _ours(attempt, attempt.home, stage.restore)
        env["HATOBA_PARAMS"] = attempt.path(PARAMS) if launch.params else self._no_params
        return env


def _ours(attempt: Attempt, home: str, restore: str) -> dict[str, str]:
    """What an attempt is told of itself, with its directory as it sees it."""
    launch = attempt.launch
    env = {
        "HATOBA_ATTEMPT": launch.attempt,
        "HATOBA_JOB": launch.job,
        "HATOBA_INDEX": str(launch.index),
        "HATOBA_TASK_COUNT": str(launch.task_count),
        "HATOBA_ATTEMPT_NUMBER": str(launch.number),
        "HATOBA_DIR": home,
        "HATOBA_SPOOL": f"{home}/{spool.FILE}",
        "HATOBA_INPUTS": f"{home}/inputs",
        "HATOBA_OUTPUTS": f"{home}/outputs",
        "HATOBA_CHECKPOINTS": f"{home}/checkpoints",
    }
    if launch.traceparent:
        env["TRACEPARENT"] = exec_context(launch.attempt, launch.traceparent)
    if restore:
        env["HATOBA_RESTORE"] = restore
    return env | gang_environment(attempt.gang)


def _labels(launch: worker_pb2.LaunchAttempt) -> dict[str, str]:
    """What its container says of it to people and to tools."""
    return {
        "hatoba.dev/job": launch.job,
        "hatoba.dev/index": str(launch.index),
        "hatoba.dev/number": str(launch.number),
        "hatoba.dev/fence": str(launch.fence),
    }


def gang_environment(place: GangPlace | None) -> dict[str, str]:
    """What a gang's member is told of the others, also by the names that `torchrun` uses."""
    if place is None:
        return {}
    host, _, port = place.addresses[0].rpartition(":")
    rank, size = str(place.rank), str(len(place.addresses))
    return {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": "0",
        "MASTER_ADDR": host.strip("[]"),
        "MASTER_PORT": port,
        "HATOBA_GANG_RANK": rank,
        "HATOBA_GANG_SIZE": size,
        "HATOBA_GANG_GENERATION": str(place.generation),
        "HATOBA_GANG_ADDRESSES": ",".join(place.addresses),
    }


def base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The host's few variables that everything here gets."""
    passed = {name: value for name, value in environ.items() if name in _PASSED}
    return passed | {"PYTHONUNBUFFERED": "1"}


def link_library(directory: Path) -> None:
    """Name in a directory what a model's environment may lack: our packages, and theirs."""
    for package in _LIBRARY:
        link = directory / package
        link.unlink(missing_ok=True)
        link.symlink_to(_home_of(package))


def _home_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is missing here: pip install 'hatoba[worker]'")
    return Path(spec.origin).parent


def _params(launch: worker_pb2.LaunchAttempt) -> bytes:
    values = {name: _plain(json_format.MessageToDict(each)) for name, each in launch.params.items()}
    return json.dumps(values, ensure_ascii=False).encode()


def _plain(value: object) -> object:
    """Numbers travel as doubles; those that are whole are written without a point."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
