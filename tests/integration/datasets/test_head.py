"""The append-only head: durable when told so, frozen in order, nothing lost by kill -9."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from server_process import HatobaServer, running_server
from wire import Wire

from hatoba.aio import AsyncClient
from hatoba.datasets import AsyncDatasets, NewItem
from hatoba.errors import HatobaError, InvalidRequest
from hatoba.v1 import dataset_pb2
from tests.integration.datasets.conftest import client_of, contents, folder


async def items_of(datasets: AsyncDatasets, name: str, *, head: bool = False) -> list[str]:
    """Ids, in order."""
    return [item.id async for item in datasets.items(name, head=head)]


async def test_a_commit_adds_the_head_behind_the_newest_version(
    client: AsyncClient, tmp_path: Path
) -> None:
    datasets = client.datasets
    await datasets.push(folder(tmp_path / "faces", {"a.txt": "a", "b.txt": "b"}))
    added = [
        NewItem("x", b"xx", {"label": 3, "deep": {"box": [1, 2.5, None, True]}}),
        NewItem("facts", attributes={"split": "test"}),
        NewItem("a.txt", b"other"),
    ]
    assert await datasets.append("faces", added) == 3
    assert await items_of(datasets, "faces", head=True) == ["x", "facts", "a.txt"]
    assert await datasets.append("faces", [NewItem("x", b"newer", {"label": 4})]) == 3
    (listed,) = await datasets.list()
    assert (listed.head_items, listed.head_bytes) == (3, 10)
    version = await datasets.commit("faces", "what came")
    assert (version.version, version.item_count, version.source) == (2, 4, "append")
    assert version.message == "what came"
    assert dict(version.item_labels) == {"4": 1}
    assert await items_of(datasets, "faces") == ["b.txt", "x", "facts", "a.txt"]
    await datasets.pull("faces", tmp_path / "out")
    assert contents(tmp_path / "out") == {"a.txt": b"other", "b.txt": b"b", "x": b"newer"}
    assert await items_of(datasets, "faces", head=True) == []
    with pytest.raises(HatobaError, match="is empty"):
        await datasets.commit("faces")


async def test_a_dataset_may_begin_with_its_head(client: AsyncClient, tmp_path: Path) -> None:
    await client.datasets.append("seen", [NewItem("one", b"1", path="deep/one.bin")])
    version = await client.datasets.commit("seen")
    assert (version.version, version.manifest.files) == (1, 1)
    await client.datasets.pull("seen", tmp_path / "out")
    assert contents(tmp_path / "out") == {"deep/one.bin": b"1"}


async def test_a_commit_never_fails_for_a_name(client: AsyncClient, tmp_path: Path) -> None:
    """Whatever was accepted finds a place, whichever names it collides with."""
    await client.datasets.push(folder(tmp_path / "odd", {"dir/file": "f", "appended": "mine"}))
    added = [
        NewItem("1", b"1", path="dir"),
        NewItem("2", b"2", path="dir/file/below"),
        NewItem("3", b"3", path="dir/file"),
        NewItem("4", b"f", path="dir/file"),
        NewItem("../5", b"5", media_type="text/plain"),
        NewItem("é" * 200, b"6"),
        NewItem("7", b"3", path="appended/x"),
    ]
    await client.datasets.append("odd", added)
    await client.datasets.commit("odd")
    await client.datasets.pull("odd", tmp_path / "out")
    got = contents(tmp_path / "out")
    found = {item.id: item.path async for item in client.datasets.items("odd")}
    for item in added:
        assert got[found[item.id]] == item.data
    assert (got["dir/file"], got["appended"]) == (b"f", b"mine")
    assert found["4"] == "dir/file", "equal bytes share their file"
    assert found["../5"].endswith(".txt")


async def test_what_comes_while_a_commit_runs_goes_to_the_next(client: AsyncClient) -> None:
    datasets = client.datasets
    await datasets.append("busy", [NewItem("first")])

    async def append() -> None:
        for number in range(40):
            await datasets.append("busy", [NewItem(f"{number:02}", b"%d" % number)])

    async def commit() -> None:
        for _ in range(6):
            with suppress(HatobaError):
                await datasets.commit("busy")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(append(), name="append")
        tasks.create_task(commit(), name="commit")
    if await items_of(datasets, "busy", head=True):
        await datasets.commit("busy")
    assert await items_of(datasets, "busy") == ["first", *(f"{n:02}" for n in range(40))]


async def test_commits_at_once_make_one_version(client: AsyncClient) -> None:
    await client.datasets.append("once", [NewItem("a")])
    outcomes = await asyncio.gather(
        *(client.datasets.commit("once") for _ in range(4)), return_exceptions=True
    )
    made = [one for one in outcomes if isinstance(one, dataset_pb2.DatasetVersion)]
    assert [one.version for one in made] == [1]


async def test_a_repeated_append_adds_once(client: AsyncClient) -> None:
    request = dataset_pb2.AppendDatasetItemsRequest(
        project=client.project, dataset="d", request_id="r-1"
    )
    request.items.add(id="a", data=b"1")
    for _ in range(2):
        reply = await client.call(request, dataset_pb2.AppendDatasetItemsResponse)
        assert reply.head_items == 1
    await client.datasets.commit("d")
    reply = await client.call(request, dataset_pb2.AppendDatasetItemsResponse)
    assert reply.head_items == 0, "what was committed does not come back"
    request.items[0].data = b"2"
    with pytest.raises(HatobaError, match="another request"):
        await client.call(request, dataset_pb2.AppendDatasetItemsResponse)


async def test_a_repeated_commit_is_the_same_version(client: AsyncClient) -> None:
    await client.datasets.append("d", [NewItem("a")])
    request = dataset_pb2.CommitDatasetRequest(
        project=client.project, dataset="d", request_id="c-1"
    )
    first = await client.call(request, dataset_pb2.DatasetVersion)
    await client.datasets.append("d", [NewItem("b")])
    assert await client.call(request, dataset_pb2.DatasetVersion) == first
    assert await items_of(client.datasets, "d", head=True) == ["b"]


BAD_ITEMS: list[tuple[dict[str, Any], str, str]] = [
    ({"id": "", "data": b"x"}, "items[0].id", "1 characters"),
    ({"id": "a", "path": "b"}, "items[0].data", "bytes"),
    ({"id": "a", "path": "../b", "data": b"x"}, "items[0].path", "relative"),
    ({"id": "a", "path": "/b", "data": b"x"}, "items[0].path", "relative"),
    ({"id": "a" * 1025}, "items[0].id", "1024"),
    ({"id": "a", "data": b"x" * (1 << 20) + b"x"}, "items[0].data", "1048576"),
    ({"id": "a", "attributes": {"x": "y" * 65_000}}, "items[0].attributes", "bytes"),
]


@pytest.mark.parametrize(("fields", "field", "words"), BAD_ITEMS)
async def test_items_that_cannot_be_are_refused(
    client: AsyncClient, fields: dict[str, Any], field: str, words: str
) -> None:
    request = dataset_pb2.AppendDatasetItemsRequest(project=client.project, dataset="d")
    item = request.items.add(**{key: fields[key] for key in fields.keys() - {"attributes"}})
    item.attributes.update(fields.get("attributes", {}))
    with pytest.raises(InvalidRequest, match=words) as caught:
        await client.call(request, dataset_pb2.AppendDatasetItemsResponse)
    assert field in [one.field for one in caught.value.violations]
    assert await client.datasets.list() == []


async def test_too_much_at_once_is_refused(client: AsyncClient, wire: Wire) -> None:
    request = dataset_pb2.AppendDatasetItemsRequest(project=client.project, dataset="d")
    for number in range(4):
        request.items.add(id=str(number), data=bytes(1_000_000))
    with pytest.raises(InvalidRequest, match="3,145,728"):
        await client.call(request, dataset_pb2.AppendDatasetItemsResponse)
    del request.items[1:]
    request.items.add(id="0")
    with pytest.raises(InvalidRequest, match="once in a call"):
        await client.call(request, dataset_pb2.AppendDatasetItemsResponse)
    del request.items[:]
    with pytest.raises(InvalidRequest):
        await client.call(request, dataset_pb2.AppendDatasetItemsResponse)


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[HatobaServer]:
    """A server for one test alone."""
    async with running_server(tmp_path / "data", worker=False) as one:
        yield one


async def test_nothing_that_was_acknowledged_is_lost_by_kill_9(own_server: HatobaServer) -> None:
    """Appends and commits go on while the server is killed again and again."""
    told: list[str] = []
    done = asyncio.Event()
    turns: asyncio.Queue[None] = asyncio.Queue()

    async def append() -> None:
        async with Wire(own_server) as wire:
            for number in range(150):
                request = dataset_pb2.AppendDatasetItemsRequest(
                    dataset="d", request_id=f"a-{number}"
                )
                request.items.add(id=f"{number:03}", data=b"%d" % number)
                await wire.call(request, dataset_pb2.AppendDatasetItemsResponse)
                told.append(f"{number:03}")
                if number % 30 == 29:
                    await turns.put(None)
        done.set()

    async def commit() -> None:
        async with Wire(own_server) as wire:
            while not done.is_set():
                request = dataset_pb2.CommitDatasetRequest(dataset="d", request_id=f"c-{len(told)}")
                # The head may be empty, and at first there is no dataset.
                with suppress(grpc.aio.AioRpcError):
                    await wire.call(request, dataset_pb2.DatasetVersion)

    async def kill() -> None:
        for _ in range(4):
            await turns.get()
            await own_server.restart()

    async with asyncio.TaskGroup() as tasks:
        for run in (append, commit, kill):
            tasks.create_task(run(), name=run.__name__)
    async with client_of(own_server) as client:
        if await items_of(client.datasets, "d", head=True):
            await client.datasets.commit("d")
        assert await items_of(client.datasets, "d") == told
        assert len(told) == 150
