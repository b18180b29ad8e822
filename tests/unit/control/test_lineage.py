"""Lineage is bounded, names what is gone, and reads what jobs name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.lineage import MOST_NODES, Lineages, reads_of
from hatoba_scheduler.domain.models import ModelState, ModelVersion
from hatoba_scheduler.domain.records import ManifestRef
from hatoba_scheduler.errors import InvalidArgument, NotFound
from hatoba_scheduler.store.sqlite import SqliteStore, open_store

DATA = "projects/lab/datasets/faces/versions/3"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    found = await open_store(tmp_path, lambda: 1)
    yield found
    await found.close()


async def registered(store: SqliteStore, model: str = "digits", parent: str = "") -> ModelVersion:
    made = await store.models.register(
        ModelVersion(
            *("lab", model, 0, ModelState.READY, ManifestRef("sha256:" + "1" * 64), b"", 5, "ada"),
            datasets=(DATA,),
            parent=parent,
            metrics=(("accuracy", 0.97123456),),
        ),
        None,
    )
    assert isinstance(made, ModelVersion)
    return made


async def test_a_lineage_is_bounded(store: SqliteStore) -> None:
    root = await registered(store)
    children = [registered(store, "child", root.name) for _ in range(MOST_NODES + 50)]
    await asyncio.gather(*children)
    found = await Lineages(store).of("digits", "lab", 0)
    assert (len(found.nodes), found.truncated) == (MOST_NODES, True)
    known = {node.name for node in found.nodes}
    assert all({getattr(edge, "from"), edge.to} <= known for edge in found.edges)


async def test_depth_counts_steps_each_way(store: SqliteStore) -> None:
    version = await registered(store)
    for _ in range(4):
        version = await registered(store, parent=version.name)
    near = await Lineages(store).of("digits:3", "lab", 1)
    assert near.truncated
    assert {node.name[-1] for node in near.nodes if node.kind == "model"} == {"2", "3", "4"}
    whole = await Lineages(store).of("digits:3", "lab", 2)
    assert not whole.truncated
    assert len(whole.nodes) == 6


async def test_what_is_not_stored_is_gone(store: SqliteStore) -> None:
    await registered(store)
    found = await Lineages(store).of("digits:1", "lab", 0)
    nodes = {node.name: node for node in found.nodes}
    assert nodes[DATA].gone
    assert nodes[found.root].attributes["accuracy"] == "0.97123"


@pytest.mark.parametrize("name", ["digits", "digits@live", "datasets/x", "code/x", "jobs/x-1"])
async def test_a_root_must_be_there(store: SqliteStore, name: str) -> None:
    with pytest.raises(NotFound, match="there is no"):
        await Lineages(store).of(name, "lab", 0)


@pytest.mark.parametrize("name", ["", "a:b", "predictions/" + "a" * 32, "projects/lab"])
async def test_a_root_must_be_a_reference(store: SqliteStore, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await Lineages(store).of(name, "lab", 0)


def test_jobs_read_what_they_name() -> None:
    spec = job_pb2.JobSpec(code_version="projects/lab/code/train/versions/2")
    for source in (DATA, "projects/lab/jobs/train-1/outputs", DATA, ""):
        spec.inputs.add(source=source)
    assert reads_of(spec, "lab") == (
        DATA,
        "projects/lab/jobs/train-1",
        "projects/lab/code/train/versions/2",
    )
