"""What a caller may say about a job, made into the specification that is sent."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypedDict, TypeVar

from hatoba.errors import InvalidSpec
from hatoba.terms import set_terms
from hatoba.units import parse_array, parse_duration, parse_memory
from hatoba.v1 import job_pb2

T = TypeVar("T", int, float)

ParamValue = float | bool | str
NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")
INTERPRETERS = re.compile(r"^(?:.*/)?python[0-9.]*$")
MAX_NAME = 48
SOURCES = ("datasets/", "models/", "jobs/", "projects/")
"""With these begins what the server has; a directory of such a name is written `./datasets`."""
MODES = {
    "copy": job_pb2.INPUT_MODE_COPY,
    "cache": job_pb2.INPUT_MODE_CACHE,
    "stream": job_pb2.INPUT_MODE_STREAM,
}


class SubmitOptions(TypedDict, total=False):
    """Options of a submit. Every one may be left out.

    `memory` is bytes or a text such as `4Gi`; `timeout` and `stop_grace` are seconds or a text such
    as `10m`; `array` is a number of tasks or a range such as `0-9`; `after` names jobs that must
    succeed first; `requirements` is a file in pip's format; `code` is the directory to bring along
    (None: nothing); `inputs` are, by name, directories or what the server has (`datasets/faces:3`,
    `models/digits@production`, `jobs/digits-42/outputs`; `:copy` or `:stream` behind it say how it
    is brought in); `secrets` are `NAME` or `NAME=ENVVAR`.

    `replicas` start together or not at all; `gang_policy` is `fail` or `restart`. `require` and
    `prefer` ask for labels of hosts (`zone=a,b`, `!ssd`), `apart_from` and `near` for labels of
    jobs that run there (`team=vision`); `strategy` is `spread` or `pack`. `start_after` and
    `deadline` are times or texts such as `2026-12-01T08:00:00Z` or `2h` (from now);
    `max_queue_time`, `stop_after`, `lost_after`, `gang_timeout` and `preempt_grace` are durations
    as `timeout` is. `spot` is `allow`, `only`, `prefer` or `never`. `retry_rules` are texts such as
    `on=OUT_OF_MEMORY limit=3 memory=2`.

    `devices` are names of devices, on each of which there is one task, in the order of their names;
    or `device_selector` asks for their labels, as `require` does for those of hosts.
    """

    name: str
    params: Mapping[str, ParamValue]
    env: Mapping[str, str]
    secrets: Sequence[str]
    queue: str
    backend: str
    priority: int
    cpus: float
    memory: int | str
    gpus: int
    timeout: float | str
    stop_grace: float | str
    retries: int
    array: int | str
    max_parallel: int
    fail_fast: bool
    after: Sequence[str]
    requirements: str | Path
    python: str
    image: str
    inputs: Mapping[str, str | Path]
    code: str | Path | None
    labels: Mapping[str, str]
    hold: bool
    after_any: Sequence[str]
    after_end: Sequence[str]
    replicas: int
    gang_policy: str
    gang_timeout: float | str
    require: Sequence[str]
    prefer: Sequence[str]
    strategy: str
    apart_from: Sequence[str]
    near: Sequence[str]
    apart: bool
    start_after: str | datetime
    deadline: str | datetime
    max_queue_time: float | str
    stop_after: float | str
    lost_after: float | str
    never_preempt: bool
    max_preemptions: int
    preempt_grace: float | str
    spot: str
    retry_rules: Sequence[str]
    devices: Sequence[str]
    device_selector: Sequence[str]


@dataclass
class Parcel:
    """A specification, and the directories that are packed and named in it before it is sent."""

    spec: job_pb2.JobSpec
    code: Path | None = None
    inputs: dict[str, Path] = field(default_factory=dict)


def build_parcel(command: Sequence[str] | str, options: SubmitOptions) -> Parcel:
    """The parcel for a command (a text is split as a shell would) and its options.

    Raises InvalidSpec with the option's name for a value that cannot be understood.
    """
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    if not words:
        raise InvalidSpec(
            "there is no command", remedy="name the program to run, for example `python train.py`"
        )
    spec = job_pb2.JobSpec(name=options.get("name") or name_for(words), command=words)
    _set_place(spec, options)
    _set_values(spec, options)
    _set_limits(spec, options)
    set_terms(spec, options)
    _set_environment(spec, options)
    code = options.get("code", ".")
    inputs = _set_inputs(spec, options)
    return Parcel(spec, None if code is None else Path(code), inputs)


def _set_inputs(spec: job_pb2.JobSpec, options: SubmitOptions) -> dict[str, Path]:
    """Name the inputs that the server has; the directories of the others."""
    directories: dict[str, Path] = {}
    for name, told in options.get("inputs", {}).items():
        source, mode = parse_source(told)
        spec.inputs.add(name=name, source=source, mode=mode)
        if not source:
            directories[name] = Path(_without_mode(str(told), mode))
    return directories


def parse_source(told: str | Path) -> tuple[str, job_pb2.InputMode.ValueType]:
    """What an input names on the server, and how it is brought in; no name for a directory."""
    if not isinstance(told, str):
        return "", job_pb2.INPUT_MODE_UNSPECIFIED
    mode = MODES.get(told.rpartition(":")[2], job_pb2.INPUT_MODE_UNSPECIFIED)
    text = _without_mode(told, mode)
    return (text if text.startswith(SOURCES) else ""), mode


def _without_mode(text: str, mode: job_pb2.InputMode.ValueType) -> str:
    return text.rpartition(":")[0] if mode else text


def name_for(command: Sequence[str]) -> str:
    """A name out of a command: its script's, its module's or its program's."""
    words = list(command)
    if INTERPRETERS.match(words[0]):
        words = _program_of_python(words[1:]) or words
    stem = Path(words[0]).name
    stem = stem.removesuffix(".py").removesuffix(".sh").lower()
    return NOT_IN_NAMES.sub("-", stem)[:MAX_NAME].strip("-") or "job"


def _program_of_python(arguments: list[str]) -> list[str]:
    """What an interpreter is told to run: a script, or the module after -m; nothing for -c."""
    for position, word in enumerate(arguments):
        if word == "-m":
            return arguments[position + 1 : position + 2]
        if word == "-c" or word == "-":
            return []
        if not word.startswith("-"):
            return [word]
    return []


def _set_place(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    spec.queue = options.get("queue", "")
    spec.backend = options.get("backend", "")
    spec.priority = options.get("priority", 0)
    spec.hold = options.get("hold", False)
    spec.after_ok.extend(options.get("after", ()))
    spec.labels.update(options.get("labels", {}))


def _set_values(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    spec.env.update(options.get("env", {}))
    for name, value in options.get("params", {}).items():
        set_param(spec, name, value)
    for text in options.get("secrets", ()):
        name, _, variable = text.partition("=")
        spec.secrets.add(name=name, env=variable)


def set_param(spec: job_pb2.JobSpec, name: str, value: ParamValue) -> None:
    """Set one parameter of a specification."""
    param = spec.params[name]
    if isinstance(value, bool):
        param.bool_value = value
    elif isinstance(value, int | float):
        param.number_value = value
    elif isinstance(value, str):
        param.string_value = value


def _set_limits(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    memory = options.get("memory", 0)
    spec.resources.cpus = options.get("cpus", 0)
    spec.resources.memory_bytes = read_option("memory", parse_memory, memory)
    spec.resources.gpus = options.get("gpus", 0)
    if "array" in options:
        spec.array.size = read_option("array", parse_array, options["array"])
        spec.array.max_parallel = options.get("max_parallel", 0)
        spec.array.fail_fast = options.get("fail_fast", False)
    if "retries" in options:
        spec.retries.user = options["retries"]
    if "timeout" in options:
        seconds = read_option("timeout", parse_duration, options["timeout"])
        spec.timeout.FromTimedelta(timedelta(seconds=seconds))
    if "stop_grace" in options:
        seconds = read_option("stop_grace", parse_duration, options["stop_grace"])
        spec.stop_grace.FromTimedelta(timedelta(seconds=seconds))


def _set_environment(spec: job_pb2.JobSpec, options: SubmitOptions) -> None:
    spec.environment.image = options.get("image", "")
    spec.environment.python = options.get("python", "")
    if "requirements" in options:
        spec.environment.requirements = read_requirements(Path(options["requirements"]))
    default_interpreter(spec)


def default_interpreter(spec: job_pb2.JobSpec) -> None:
    """Record the caller's interpreter where nothing else was asked for; the embedded worker uses
    it. On a device it would be another machine's.
    """
    asked = spec.environment
    if spec.HasField("devices"):
        return
    if not (asked.image or asked.python or asked.requirements or asked.caller_interpreter):
        asked.caller_interpreter = sys.executable


def read_requirements(path: Path) -> str:
    """A requirements file's text; errors name the file."""
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSpec(
            f"the requirements file {path} cannot be read: {error.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise InvalidSpec(f"the requirements file {path} is not text in UTF-8") from None


def read_option(name: str, parse: Callable[[str], T], value: T | str) -> T:
    """An option as a number: as it is, or parsed; errors begin with the option's name."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError as error:
        raise InvalidSpec(f"{name}: {error}") from None
