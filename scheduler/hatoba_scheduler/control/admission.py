"""What a job must be before it is stored: all that can be known at submit is said at submit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from hatoba.artifacts.manifest import path_problem
from hatoba.v1 import job_pb2
from hatoba_plugins.backend import Backend
from hatoba_scheduler.control.conditions import problems_of_terms
from hatoba_scheduler.control.device_targets import NO_DEVICES, DeviceGrounds
from hatoba_scheduler.control.launches import unknown_params
from hatoba_scheduler.control.queues import QueueBook
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.errors import FieldViolation, shown

RESERVED_ENV = ("HATOBA_", "TRACEPARENT", "TRACESTATE")
SPEC_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Grounds:
    """What there is to be asked for: opened backends, the default one, queues, known secrets."""

    backends: Mapping[str, Backend]
    default_backend: str
    queues: QueueBook
    secrets: frozenset[str]
    now: Micros = 0
    choice: tuple[str, ...] = ()
    """Backends among which jobs that name none may choose, cheapest first; empty: the default."""
    devices: DeviceGrounds = NO_DEVICES


def problems(spec: job_pb2.JobSpec, project: str, grounds: Grounds) -> list[FieldViolation]:
    """What of a specification is wrong, beyond the rules of the contract; in field order."""
    found = [*_of_size(spec), *_of_queue(spec, project, grounds)]
    found += problems_of_terms(spec, grounds.now)
    if spec.env:
        found += _of_env(spec.env)
    found += _of_params(spec)
    if spec.HasField("environment"):
        found += _of_environment(spec.environment)
    if spec.HasField("publish"):
        found += _of_publish(spec.publish)
    if spec.secrets and not spec.HasField("devices"):
        found += _of_secrets(spec, grounds.secrets)
    if (spec.backend or grounds.default_backend) not in grounds.backends:
        found.append(_unknown_backend(spec, grounds))
    return found


async def willing_backends(
    spec: job_pb2.JobSpec, grounds: Grounds
) -> tuple[tuple[str, ...], list[FieldViolation]]:
    """Backends that would run it, cheapest first; and, when there is none, why the first would not.

    The one that the specification names, else those among which it may choose.
    """
    if spec.backend or not grounds.choice:
        names: tuple[str, ...] = (spec.backend or grounds.default_backend,)
    else:
        names = grounds.choice
    willing: list[str] = []
    found: list[FieldViolation] = []
    for name in names:
        refused = await grounds.backends[name].validate(spec)
        if not refused:
            willing.append(name)
        elif not found:
            found = [
                FieldViolation(f"spec.{p.field}", p.message, "backend.refuses") for p in refused
            ]
    return tuple(willing), [] if willing else found


def _of_size(spec: job_pb2.JobSpec) -> Iterator[FieldViolation]:
    size = spec.ByteSize()
    if size > SPEC_BYTES:
        yield FieldViolation(
            "spec",
            f"must be at most {SPEC_BYTES} bytes",
            "spec.size",
            f"{size} bytes",
            "pass large values as input files",
        )
    if not spec.command[0].strip():
        yield FieldViolation(
            "spec.command[0]", "must name a program", "command.empty", "''", "give a command"
        )
    for position, argument in enumerate(spec.command):
        if "\0" in argument:
            yield _nul(f"spec.command[{position}]", argument)


def _nul(field: str, value: str) -> FieldViolation:
    return FieldViolation(field, "must not hold a NUL", "string.nul", shown(value), "remove it")


def _of_queue(spec: job_pb2.JobSpec, project: str, grounds: Grounds) -> Iterator[FieldViolation]:
    if spec.queue and not grounds.queues.known(project, spec.queue):
        names = grounds.queues.names(project)
        yield FieldViolation(
            "spec.queue",
            f"names no queue of project {project!r}",
            "queue.unknown",
            shown(spec.queue),
            f"{_nearest(spec.queue, names)}or make it with `hatoba queues create {spec.queue}`",
        )


def _nearest(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(known), 1)
    return f"did you mean {near[0]!r}? " if near else f"known are {', '.join(known)}; "


def _unknown_backend(spec: job_pb2.JobSpec, grounds: Grounds) -> FieldViolation:
    return FieldViolation(
        "spec.backend",
        "names no opened backend",
        "backend.unknown",
        shown(spec.backend or grounds.default_backend),
        f"{_nearest(spec.backend, sorted(grounds.backends))}`hatoba backends list` shows them",
    )


def _of_env(env: Mapping[str, str]) -> Iterator[FieldViolation]:
    for name, value in env.items():
        if name.startswith(RESERVED_ENV):
            yield FieldViolation(
                f"spec.env[{shown(name)}]",
                "is set by the platform",
                "env.reserved",
                shown(name),
                "choose another name",
            )
        if "\0" in value:
            yield _nul(f"spec.env[{shown(name)}]", "")


def _of_params(spec: job_pb2.JobSpec) -> Iterator[FieldViolation]:
    for name in spec.params:
        kind = spec.params[name].WhichOneof("kind")
        if kind not in ("number_value", "string_value", "bool_value"):
            yield FieldViolation(
                f"spec.params[{shown(name)}]",
                "must be a number, a string or a boolean",
                "params.kind",
                str(kind),
                "send a plain value",
            )
    for position, name in unknown_params(spec):
        yield FieldViolation(
            f"spec.command[{position}]",
            "names a parameter that the job does not have",
            "params.unknown",
            shown("${params." + name + "}"),
            f"add `-p {name}=VALUE` or correct the name",
        )


def _of_environment(environment: job_pb2.Environment) -> Iterator[FieldViolation]:
    if environment.image and (environment.python or environment.requirements):
        yield FieldViolation(
            "spec.environment",
            "must have an image or python and requirements, not both",
            "environment.both",
            shown(environment.image),
            "leave one out",
        )


def _of_publish(publish: job_pb2.Publish) -> Iterator[FieldViolation]:
    folder = publish.folder.strip("/")
    problem = path_problem(folder) if folder else ""
    if problem:
        yield FieldViolation(
            "spec.publish.folder",
            problem,
            "publish.folder",
            shown(publish.folder),
            "name a folder of the outputs, for example `predictions`",
        )


def _of_secrets(spec: job_pb2.JobSpec, known: frozenset[str]) -> Iterator[FieldViolation]:
    for position, secret in enumerate(spec.secrets):
        if secret.name not in known:
            yield FieldViolation(
                f"spec.secrets[{position}].name",
                "names a secret that no connected host and no backend has",
                "secret.unknown",
                shown(secret.name),
                f"put it into secrets/{secret.name} of the host's data directory, mode 0600, or "
                "where the backend has its secrets, and its name into the backend's `secrets`",
            )
