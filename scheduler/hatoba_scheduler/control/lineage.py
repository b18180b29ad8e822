"""Where things come from and what became of them, over all stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from hatoba.v1 import job_pb2, model_pb2
from hatoba_scheduler.control.sources import named_inputs
from hatoba_scheduler.domain.models import Link, VersionKey
from hatoba_scheduler.domain.references import BadReference, Reference, parse
from hatoba_scheduler.errors import InvalidArgument, NotFound, Resource, shown
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.datasets import DatasetKey

DEFAULT_DEPTH = 10
MOST_NODES = 1_000
SHOWN_METRICS = 8
KINDS = {
    "models": "model",
    "datasets": "dataset",
    "code": "code",
    "jobs": "job",
    "deployments": "deployment",
}
Facts = Mapping[str, str]


def reads_of(spec: job_pb2.JobSpec, project: str) -> tuple[str, ...]:
    """Resource names of what a job reads by name: versions of datasets, models and code, and jobs
    whose outputs it is given. The specification's references have their numbers."""
    found: dict[str, None] = {}
    for name in named_inputs(spec):
        try:
            found[parse(name, "", project).resource] = None
        except BadReference:
            continue
    return tuple(found)


@dataclass(slots=True)
class _Found:
    """What a walk has met: names in order, links, and whether it was cut short."""

    names: dict[str, None] = field(default_factory=dict)
    links: dict[Link, None] = field(default_factory=dict)
    truncated: bool = False

    def take(self, links: Iterable[Link], *, backwards: bool) -> list[str]:
        """Add links; the names that are new, as far as there is room for them."""
        fresh: list[str] = []
        for link in links:
            name = link.source if backwards else link.target
            if name not in self.names:
                if len(self.names) >= MOST_NODES:
                    self.truncated = True
                    continue
                self.names[name] = None
                fresh.append(name)
            self.links[link] = None
        return fresh

    def close(self, links: Iterable[Link], *, backwards: bool) -> None:
        """Add links between names that are known; what leads elsewhere is left out."""
        for link in links:
            if (link.source if backwards else link.target) in self.names:
                self.links[link] = None
            else:
                self.truncated = True


class Lineages:
    """Walks from one thing to all that it came from and all that came from it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._facts: Mapping[str, Callable[[Reference], Awaitable[Facts | None]]] = {
            "models": self._model,
            "datasets": self._dataset,
            "code": self._code,
            "jobs": self._job,
            "deployments": self._deployment,
        }

    async def of(self, text: str, project: str, depth: int) -> model_pb2.Lineage:
        """The lineage of what a reference names. Raises InvalidArgument, NotFound."""
        root = await self._root(text, project)
        found = _Found({root: None})
        for backwards in (True, False):
            await self._walk(root, depth or DEFAULT_DEPTH, found, backwards=backwards)
        return model_pb2.Lineage(
            root=root,
            nodes=[await self._node(name) for name in found.names],
            edges=[_edge(link) for link in found.links],
            truncated=found.truncated,
        )

    async def _walk(self, root: str, depth: int, found: _Found, *, backwards: bool) -> None:
        frontier = [root]
        for _ in range(depth):
            links = await self._store.models.links(frontier, backwards=backwards)
            frontier = found.take(sorted(links), backwards=backwards)
            if not frontier:
                return
        beyond = await self._store.models.links(frontier, backwards=backwards)
        found.close(beyond, backwards=backwards)

    async def _root(self, text: str, project: str) -> str:
        """The resource name of what is meant, with its number. It must be there."""
        try:
            named = parse(text, "", project)
        except BadReference as error:
            raise _bad(text, str(error)) from None
        if named.kind not in KINDS:
            raise _bad(text, f"nothing is known of the lineage of {named.kind}")
        numbered = await self._numbered(named)
        if numbered is None or await self._facts[named.kind](numbered) is None:
            raise NotFound(
                f"there is no {KINDS[named.kind]} {shown(text)}", resource=Resource("lineage", text)
            )
        return numbered.resource

    async def _numbered(self, named: Reference) -> Reference | None:
        """A reference with its alias or "the newest" resolved."""
        number = named.version
        if named.alias:
            number = await self._store.models.alias(named.project, named.name, named.alias)
        elif named.kind == "models" and not number:
            newest = await self._store.models.newest_ready(named.project, named.name)
            number = newest.version if newest else 0
        elif named.kind == "datasets" and not number:
            dataset = await self._store.datasets.version(DatasetKey(named.project, named.name))
            number = dataset.version if dataset else 0
        elif named.kind == "code" and not number:
            code = await self._store.datasets.code_version(named.project, named.name, 0)
            number = code.version if code else 0
        elif named.kind in ("jobs", "deployments"):
            return Reference(named.kind, named.project, named.name)
        return Reference(named.kind, named.project, named.name, number) if number else None

    async def _node(self, name: str) -> model_pb2.LineageNode:
        try:
            named = parse(name)
        except BadReference:
            return model_pb2.LineageNode(name=name, gone=True)
        look = self._facts.get(named.kind)
        facts = await look(named) if look else None
        return model_pb2.LineageNode(
            name=name, kind=KINDS.get(named.kind, ""), attributes=facts or {}, gone=facts is None
        )

    async def _model(self, named: Reference) -> Facts | None:
        key = VersionKey(named.project, named.name, named.version)
        version = await self._store.models.version(key)
        if version is None:
            return None
        figures = {key: f"{value:.5g}" for key, value in version.metrics[:SHOWN_METRICS]}
        return figures | {"state": version.state.name, "created_by": version.created_by}

    async def _dataset(self, named: Reference) -> Facts | None:
        key = DatasetKey(named.project, named.name, named.version)
        dataset = await self._store.datasets.version(key)
        if dataset is None:
            return None
        return {"items": str(dataset.item_count)}

    async def _code(self, named: Reference) -> Facts | None:
        code = await self._store.datasets.code_version(named.project, named.name, named.version)
        if code is None:
            return None
        facts = {"commit": code.git_commit, "dirty": "true" if code.dirty else ""}
        return {key: value for key, value in facts.items() if value}

    async def _job(self, named: Reference) -> Facts | None:
        job = await self._store.job_by_name(named.project, named.name)
        if job is None:
            return None
        return {"state": job.state.name, "created_by": job.created_by}

    async def _deployment(self, named: Reference) -> Facts | None:
        return await self._store.models.deployment_facts(named.project, named.name)


def _edge(link: Link) -> model_pb2.LineageEdge:
    edge = model_pb2.LineageEdge(to=link.target, relation=link.relation)
    setattr(edge, "from", link.source)
    return edge


def _bad(text: str, why: str) -> InvalidArgument:
    return InvalidArgument.field(
        "name",
        why,
        value=text,
        remedy="say for example `digits:7`, `datasets/faces:3` or `jobs/digits-42`",
        rule="reference",
    )
