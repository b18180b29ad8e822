"""Which of the images that were built of a model version its replicas run in."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba.v1 import model_pb2, worker_pb2
from hatoba_plugins.backend import Backend, ImageRunner
from hatoba_scheduler.domain.models import ModelVersion
from hatoba_scheduler.domain.references import short
from hatoba_scheduler.errors import InvalidArgument


def put_into_image(
    template: worker_pb2.ReplicaSpec, version: ModelVersion, name: str, backend: Backend
) -> None:
    """Have replicas run in the version's image for the backend's architecture (`name` names it).

    Where the backend makes environments itself, the version names an image, or none of its own was
    pushed, nothing changes. Raises InvalidArgument when all are for other architectures.
    """
    images = [one for one in images_of(version) if one.pushed]
    role: object = backend.deployments
    wanted = images and backend.capabilities().images and not template.serving.environment.image
    if not wanted or not isinstance(role, ImageRunner):
        return
    runs = role.architectures(template.resources)
    image = _first(images, runs)
    if image is None:
        missing = ",".join(runs)
        have = ", ".join(one.architecture for one in images)
        raise InvalidArgument.field(
            "spec.model",
            f"has images for {have}, and backend {name!r} runs {', '.join(runs)}",
            value=short(version.name),
            remedy=f"`hatoba images build {version.model}:{version.version} --arch {missing}`",
        )
    _run_in(template, image)


def put_images(template: worker_pb2.ReplicaSpec, version: ModelVersion) -> None:
    """Keep a version's images in what replicas on devices are made from."""
    if not template.serving.environment.image:
        template.images.extend(one for one in images_of(version) if one.pushed)


def choose_image(template: worker_pb2.ReplicaSpec, architecture: str) -> worker_pb2.ReplicaSpec:
    """The same for a device: with its image, if there are any."""
    spec = worker_pb2.ReplicaSpec()
    spec.CopyFrom(template)
    image = next((one for one in spec.images if one.architecture == architecture), None)
    if image is not None:
        _run_in(spec, image)
    spec.ClearField("images")
    return spec


def _run_in(template: worker_pb2.ReplicaSpec, image: model_pb2.ModelImage) -> None:
    template.serving.ClearField("environment")
    template.serving.environment.image = pinned(image)
    template.architecture = image.architecture


def images_of(version: ModelVersion) -> Sequence[model_pb2.ModelImage]:
    """Images that were built of a version, by architecture."""
    return model_pb2.ModelVersion.FromString(version.content).images


def pinned(image: model_pb2.ModelImage) -> str:
    """An image by its digest; the tag may move and is left out."""
    path, slash, last = image.reference.partition("@")[0].rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}@{image.digest}"


def _first(
    images: Sequence[model_pb2.ModelImage], runs: Sequence[str]
) -> model_pb2.ModelImage | None:
    """The one for the first architecture that has one; any where nobody can tell."""
    known = {one.architecture: one for one in images}
    return next((known[one] for one in runs or sorted(known) if one in known), None)
