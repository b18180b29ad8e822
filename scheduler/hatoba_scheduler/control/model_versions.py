"""Which model version somebody means, as a reference and as an input of a job."""

from __future__ import annotations

from hatoba.v1 import model_pb2
from hatoba_scheduler.control.sources import Resolved, Sources, Unresolved
from hatoba_scheduler.domain.models import ModelState, ModelVersion, VersionKey
from hatoba_scheduler.domain.references import BadReference, Reference, parse
from hatoba_scheduler.errors import HatobaError, InvalidArgument, NotFound, Resource, shown
from hatoba_scheduler.store.base import Store


def register_models(sources: Sources, store: Store) -> None:
    """Let inputs of jobs be READY model versions."""

    async def model(reference: Reference) -> Resolved:
        text = (
            reference.resource if not reference.alias else f"{reference.parent}@{reference.alias}"
        )
        try:
            found = await find_version(store, text, reference.project)
        except HatobaError as error:
            problem = f"names no model version of project {reference.project!r}"
            raise Unresolved(problem, error.message) from None
        if found.state is not ModelState.READY:
            raise Unresolved(
                f"is {found.state.name}, and jobs read READY versions only",
                f"`hatoba models versions {found.model}` shows which are",
            )
        return Resolved(found.name, found.manifest)

    sources.register("models", model)


async def find_version(store: Store, text: str, project: str, field: str = "name") -> ModelVersion:
    """The version that a reference means: by number or alias, else the newest READY one.

    Raises InvalidArgument for what is no reference, NotFound.
    """
    try:
        named = parse(text, "models", project)
    except BadReference as error:
        raise InvalidArgument.field(
            field,
            str(error),
            value=text,
            remedy="`hatoba models list` shows them",
            rule="reference",
        ) from None
    number = named.version
    if named.alias:
        number = await store.models.alias(named.project, named.name, named.alias)
    elif not number:
        newest = await store.models.newest_ready(named.project, named.name)
        if newest is not None:
            return newest
    key = VersionKey(named.project, named.name, number)
    found = await store.models.version(key) if number else None
    if found is None:
        raise _not_there(text, named.name, named.alias)
    return found


def _not_there(text: str, model: str, alias: str) -> NotFound:
    if alias:
        said = f"alias {alias!r} of model {model!r} points nowhere"
        return NotFound(
            f"{said}; `hatoba models alias {model} {alias} VERSION` points it",
            resource=Resource("model", text),
        )
    return NotFound(
        f"there is no model version {shown(text)}; `hatoba models versions {model}` shows them",
        resource=Resource("model", text),
    )


def check_serving(serving: model_pb2.Serving) -> None:
    """Raise InvalidArgument for a serving record that nothing could be checked or served by."""
    environment = serving.environment
    if environment.image and (environment.python or environment.requirements):
        raise InvalidArgument.field(
            "serving.environment",
            "must have an image or python and requirements, not both",
            value=environment.image,
            remedy="leave one out",
            rule="environment.both",
        )
    if serving.handler and not serving.HasField("example"):
        raise InvalidArgument.field(
            "serving.example",
            "is needed with a handler: a replica counts as ready once it has answered it",
            remedy="give an input such as a request would have",
            rule="serving.example",
        )
    if serving.golden and not serving.handler:
        raise InvalidArgument.field(
            "serving.golden",
            "is for a version with a handler, which answers them",
            value=str(serving.golden),
            remedy="say which class answers",
            rule="serving.golden",
        )
