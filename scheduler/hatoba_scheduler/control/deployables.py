"""What can be deployed: a specification is checked whole, then made into replicas' template."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from hatoba.v1 import deployment_pb2, job_pb2, worker_pb2
from hatoba_plugins.backend import Backend
from hatoba_plugins.checks import lacking
from hatoba_scheduler.control.admission import RESERVED_ENV
from hatoba_scheduler.control.built_images import put_images, put_into_image
from hatoba_scheduler.control.model_versions import find_version
from hatoba_scheduler.convert_deployments import settings_of, template_of
from hatoba_scheduler.domain.deployments import Revision, Settings, deployment_name
from hatoba_scheduler.domain.models import ModelVersion, why_not_served
from hatoba_scheduler.domain.records import Micros
from hatoba_scheduler.domain.references import parse, short
from hatoba_scheduler.errors import (
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    Resource,
    shown,
)
from hatoba_scheduler.store.base import Store


@dataclass(frozen=True, slots=True)
class ServingGrounds:
    """What there is to deploy on: opened backends, the default one, secrets that hosts have."""

    backends: Mapping[str, Backend]
    default_backend: str
    secrets: frozenset[str]
    default_devices: str = ""
    """The one that deployments to devices get; empty: no backend has devices."""

    def default_for(self, spec: deployment_pb2.DeploymentSpec) -> str:
        """The backend that a specification gets when it names none."""
        return self.default_devices if spec.HasField("devices") else self.default_backend


@dataclass(frozen=True, slots=True)
class Deployable:
    """A specification that can be deployed, and the model version that it means now."""

    settings: Settings
    version: ModelVersion
    template: bytes

    @property
    def followed(self) -> str:
        """The version that its alias points to; empty without an alias."""
        return self.version.name if self.settings.alias else ""

    def revision(self, number: int, by: str, now: Micros) -> Revision:
        """A revision of it."""
        manifests = [self.version.manifest.digest, self.version.code]
        return Revision(
            number,
            self.version.name,
            self.settings.spec,
            self.template,
            now,
            by,
            tuple(digest for digest in manifests if digest),
        )


async def deployable(
    store: Store, key: tuple[str, str], spec: deployment_pb2.DeploymentSpec, grounds: ServingGrounds
) -> Deployable:
    """Check a specification with defaults for a deployment (`key`: project and name).

    Raises InvalidArgument with all that is wrong with it, NotFound for a model version that is not
    there, FailedPrecondition for one that cannot be served.
    """
    found = list(problems(spec, grounds))
    if found:
        raise InvalidArgument.of(found)
    made = await resolved(store, key, spec, grounds.backends.get(spec.backend))
    lacks = list(_of_abilities(made, spec.backend, grounds))
    if lacks:
        raise InvalidArgument.of(lacks)
    return made


async def resolved(
    store: Store,
    key: tuple[str, str],
    spec: deployment_pb2.DeploymentSpec,
    backend: Backend | None,
) -> Deployable:
    """A checked specification with the version that it means now. Raises NotFound,
    FailedPrecondition, and InvalidArgument where none of the version's images runs there."""
    project, name = key
    version = await find_version(store, spec.model, project, "spec.model")
    require_served(version)
    named = parse(spec.model, "models", project)
    model = f"{named.parent}@{named.alias}" if named.alias else version.name
    template = template_of(deployment_name(project, name), spec, version)
    if spec.HasField("devices"):
        put_images(template, version)
    elif backend is not None:
        put_into_image(template, version, spec.backend, backend)
    body = template.SerializeToString(deterministic=True)
    return Deployable(settings_of(spec, model), version, body)


def require_served(version: ModelVersion) -> None:
    """Raise FailedPrecondition for a version that cannot be deployed."""
    why = why_not_served(version)
    if why:
        raise FailedPrecondition(
            f"model version {version.model}:{version.version} {why}",
            resource=Resource("model_version", version.name),
        )


def problems(
    spec: deployment_pb2.DeploymentSpec, grounds: ServingGrounds
) -> Iterator[FieldViolation]:
    """What is wrong with a specification, beyond the rules of the contract; in field order."""
    if spec.HasField("devices"):
        yield from _for_devices(spec, grounds)
        return
    yield from _of_backend(spec, grounds)
    yield from _of_env(spec.env)
    yield from _of_secrets(spec, grounds)
    yield from _of_strategy(spec.strategy)
    yield from _of_capture(spec.capture)


def _of_capture(capture: deployment_pb2.Capture) -> Iterator[FieldViolation]:
    if capture.rate and not capture.dataset:
        yield FieldViolation(
            "spec.capture.dataset",
            "must name the dataset that captured inputs go to",
            "capture.dataset",
            "''",
            "name one, or set the rate to 0",
        )


def _of_backend(
    spec: deployment_pb2.DeploymentSpec, grounds: ServingGrounds
) -> Iterator[FieldViolation]:
    backend = grounds.backends.get(spec.backend)
    serving = sorted(name for name, one in grounds.backends.items() if one.deployments is not None)
    if backend is None:
        near = difflib.get_close_matches(spec.backend, serving, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        yield FieldViolation(
            "spec.backend",
            "names no opened backend",
            "backend.unknown",
            shown(spec.backend),
            f"{hint}`hatoba backends list` shows them",
        )
    elif backend.deployments is None:
        yield FieldViolation(
            "spec.backend",
            "cannot keep deployments",
            "backend.deployments",
            shown(spec.backend),
            f"use one that can: {', '.join(serving) or 'none is opened'}",
        )
    elif spec.strategy.steps and not backend.capabilities().canary:
        yield FieldViolation(
            "spec.strategy.steps",
            f"need shares of traffic, which backend {spec.backend!r} has not (canary)",
            "backend.canary",
            f"{len(spec.strategy.steps)} steps",
            "leave the steps out, or use another backend",
        )


def _for_devices(
    spec: deployment_pb2.DeploymentSpec, grounds: ServingGrounds
) -> Iterator[FieldViolation]:
    """What may be wrong with a deployment to devices. Their secrets are theirs to have."""
    backend = grounds.backends.get(spec.backend)
    able = sorted(name for name, one in grounds.backends.items() if one.devices is not None)
    if backend is None or backend.devices is None:
        yield FieldViolation(
            "spec.backend",
            "has no devices",
            "backend.devices",
            shown(spec.backend),
            f"use one that has: {', '.join(able)}"
            if able
            else 'open one: [backends.edge] type = "iot-edge-arm", and a port in [devices]',
        )
    yield from _of_env(spec.env)
    if spec.strategy.steps:
        yield FieldViolation(
            "spec.strategy.steps",
            "are shares of traffic, which devices have not",
            "devices.steps",
            f"{len(spec.strategy.steps)} steps",
            "use groups of devices",
        )
    yield from _of_capture(spec.capture)


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
            field = f"spec.env[{shown(name)}]"
            yield FieldViolation(field, "must not hold a NUL", "string.nul", "", "remove it")


def _of_secrets(
    spec: deployment_pb2.DeploymentSpec, grounds: ServingGrounds
) -> Iterator[FieldViolation]:
    for position, secret in enumerate(spec.secrets):
        if secret.name not in grounds.secrets:
            yield FieldViolation(
                f"spec.secrets[{position}].name",
                "names a secret that no connected host and no backend has",
                "secret.unknown",
                shown(secret.name),
                f"put it into secrets/{secret.name} of the host's data directory, mode 0600",
            )


def _of_strategy(strategy: deployment_pb2.Strategy) -> Iterator[FieldViolation]:
    if not strategy.max_unavailable and not strategy.max_surge:
        yield FieldViolation(
            "spec.strategy.max_surge",
            "and max_unavailable are both 0, so no replica could ever be exchanged",
            "strategy.stuck",
            "0",
            "allow at least 1 of either",
        )
    before = 0
    for position, step in enumerate(strategy.steps):
        if step.percent <= before:
            yield FieldViolation(
                f"spec.strategy.steps[{position}].percent",
                f"must be more than the step before it ({before})",
                "strategy.steps",
                str(step.percent),
                "give shares that grow",
            )
        before = step.percent


def _of_abilities(
    made: Deployable, backend: str, grounds: ServingGrounds
) -> Iterator[FieldViolation]:
    """What the version's environment and resources ask of a backend that it has not."""
    template = worker_pb2.ReplicaSpec.FromString(made.template)
    asked = job_pb2.JobSpec(
        resources=template.resources,
        environment=template.serving.environment,
        secrets=template.secrets,
    )
    where = f"{short(made.version.name)} on backend {backend!r}"
    for problem in lacking(asked, grounds.backends[backend].capabilities()):
        yield FieldViolation(f"spec.{problem.field}", problem.message, "backend.ability", where)
