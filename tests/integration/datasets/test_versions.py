"""Versions of datasets over the wire: made, listed, compared, fetched, removed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from wire import Wire

from hatoba import packing
from hatoba.aio import AsyncClient
from hatoba.datasets import Difference, NewItem, short_version
from hatoba.errors import HatobaError, InvalidRequest, InvalidSpec, NotFound
from hatoba.v1 import common_pb2, dataset_pb2, job_pb2
from tests.integration.datasets.conftest import contents, folder, missing

FACES = {
    "train/cat/1.png": b"c1",
    "train/dog/1.png": b"d1",
    "test/cat/2.png": b"c2",
    "readme.txt": b"r",
}


async def test_a_pushed_folder_comes_back_as_it_was(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    version = await client.datasets.push(source, message="first", labels={"team": "vision"})
    assert version.name == f"projects/{client.project}/datasets/faces/versions/1"
    assert (version.item_count, version.manifest.files) == (4, 4)
    assert (version.message, version.source, version.created_by) == ("first", "push", "admin")
    assert dict(version.labels) == {"team": "vision"}
    assert await client.datasets.get("faces") == version
    assert await client.datasets.get("datasets/faces:1") == version
    await client.datasets.pull("faces", tmp_path / "out")
    assert contents(tmp_path / "out") == FACES


async def test_what_did_not_change_makes_no_version(
    client: AsyncClient, wire: Wire, tmp_path: Path
) -> None:
    source = folder(tmp_path / "faces", FACES)
    first = await client.datasets.push(source)
    assert await client.datasets.push(source) == first
    request = dataset_pb2.CreateDatasetVersionRequest(
        project=client.project, dataset="faces", manifest=first.manifest
    )
    found, trailers = await wire._answered(request, dataset_pb2.DatasetVersion, 5.0)
    assert found == first
    assert trailers["hatoba-unchanged"] == "true"
    labelled = await client.datasets.push(source, labels_from_folders=True)
    assert labelled.version == 2
    back = await client.datasets.push(source)
    assert back.version == 3, "an older content again is a new version"


async def test_labels_and_splits_come_from_folders(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    both = await client.datasets.push(source, labels_from_folders=True, split_from_folders=True)
    assert dict(both.splits) == {"train": 2, "test": 1}
    assert dict(both.item_labels) == {"cat": 2, "dog": 1}
    found = {item.id: dict(item.attributes) async for item in client.datasets.items("faces")}
    assert found["train/dog/1.png"] == {"split": "train", "label": "dog"}
    assert found["readme.txt"] == {}


async def test_items_are_told_by_a_file(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    items = [
        {"id": "one", "path": "train/cat/1.png", "attributes": {"label": 3, "box": [1, 2.5]}},
        {"id": "two", "attributes": {"split": "test"}},
        {"id": "three", "path": "readme.txt", "media_type": "text/plain"},
    ]
    told = tmp_path / "items.jsonl"
    told.write_text("\n".join(map(json.dumps, items)) + "\n\n")
    version = await client.datasets.push(source, "named", items=told)
    assert (version.item_count, dict(version.item_labels)) == (3, {"3": 1})
    listed = [item async for item in client.datasets.items("named")]
    assert [item.id for item in listed] == ["one", "two", "three"]
    box = listed[0].attributes.fields["box"].list_value.values
    assert [value.number_value for value in box] == [1, 2.5]
    assert listed[2].media_type == "text/plain"
    await client.datasets.pull("named:1", tmp_path / "out")
    assert (tmp_path / "out.items.jsonl").read_text() == told.read_text().strip() + "\n"


async def test_items_are_paged_and_filtered(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "many", {"x": b"x"})
    items = [{"id": f"{n:05}", "attributes": {"label": n % 7}} for n in range(2_500)]
    await client.datasets.push(source, items=items)
    found = [item.id async for item in client.datasets.items("many")]
    assert found == [item["id"] for item in items]
    some = [item.id async for item in client.datasets.items("many", "label = 3 AND id != 00003")]
    assert some == [f"{n:05}" for n in range(10, 2_500, 7)]
    request = dataset_pb2.ListDatasetItemsRequest(project=client.project, name="many", page_size=10)
    page = await client.call(request, dataset_pb2.ListDatasetItemsResponse)
    request.page_token, request.filter = page.next_page_token, "label = 3"
    with pytest.raises(InvalidRequest, match="another query"):
        await client.call(request, dataset_pb2.ListDatasetItemsResponse)


async def test_a_page_of_large_items_fits_a_message(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "wide", {"x": b"x"})
    items = [{"id": str(n), "attributes": {"v": [1] * 20_000}} for n in range(60)]
    await client.datasets.push(source, items=items)
    assert [item.id async for item in client.datasets.items("wide")] == [i["id"] for i in items]


async def test_versions_differ_by_items(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    await client.datasets.push(source, labels_from_folders=True)
    (source / "readme.txt").unlink()
    (source / "train/cat/1.png").write_bytes(b"other")
    (source / "train/cat/9.png").write_bytes(b"new")
    (source / "test/cat/2.png").rename(source / "test/2.png")
    await client.datasets.push(source, labels_from_folders=True)
    found = await client.datasets.diff("faces:1", "faces:2")
    assert found.differences == [
        Difference("readme.txt", "removed"),
        Difference("test/2.png", "added"),
        Difference("test/cat/2.png", "removed"),
        Difference("train/cat/1.png", "content"),
        Difference("train/cat/9.png", "added"),
    ]
    assert (found.added, found.removed, found.changed, found.same) == (2, 2, 1, 1)
    await client.datasets.push(source, split_from_folders=True)
    relabelled = await client.datasets.diff("faces:2", "faces:3", limit=1)
    assert (relabelled.changed, relabelled.same) == (4, 0)
    assert relabelled.differences == [Difference("test/2.png", "attributes")]
    same = await client.datasets.diff("faces", "faces:3")
    assert (same.same, same.differences) == (4, [])


async def test_part_of_a_version_is_pulled(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    await client.datasets.push(source, split_from_folders=True)
    await client.datasets.pull("faces", tmp_path / "out", "split = test")
    assert contents(tmp_path / "out") == {"test/cat/2.png": b"c2"}
    (line,) = (tmp_path / "out.items.jsonl").read_text().splitlines()
    assert json.loads(line)["attributes"] == {"split": "test"}
    with pytest.raises(NotFound, match="split = none"):
        await client.datasets.pull("faces", tmp_path / "none", "split = none")


async def test_datasets_and_versions_are_listed_in_pages(
    client: AsyncClient, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        await client.datasets.push(folder(tmp_path / name, {"x": name}))
    request = dataset_pb2.ListDatasetsRequest(project=client.project, page_size=2)
    page = await client.call(request, dataset_pb2.ListDatasetsResponse)
    assert [one.name.rpartition("/")[2] for one in page.datasets] == ["a", "b"]
    request.page_token = page.next_page_token
    page = await client.call(request, dataset_pb2.ListDatasetsResponse)
    assert [one.latest for one in page.datasets] == [1]
    assert not page.next_page_token
    for number in range(3):
        await client.datasets.push(folder(tmp_path / "a", {"x": str(number)}))
    versions = dataset_pb2.ListDatasetVersionsRequest(
        project=client.project, dataset="a", page_size=3
    )
    first = await client.call(versions, dataset_pb2.ListDatasetVersionsResponse)
    versions.page_token = first.next_page_token
    rest = await client.call(versions, dataset_pb2.ListDatasetVersionsResponse)
    assert [one.version for one in [*first.versions, *rest.versions]] == [4, 3, 2, 1]


async def test_a_number_is_not_given_twice(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    await client.datasets.push(source)
    gone = await client.datasets.push(source, labels_from_folders=True)
    assert (await client.datasets.delete("faces:2")) == gone
    with pytest.raises(NotFound, match="the newest is 1"):
        await client.datasets.get("faces:2")
    assert short_version(await client.datasets.get("faces")) == "faces:1"
    again = await client.datasets.push(source, labels_from_folders=True)
    assert again.version == 3
    (dataset,) = await client.datasets.list()
    assert (dataset.latest, dataset.versions) == (3, 2)


async def test_a_version_that_a_job_reads_is_not_removed(
    client: AsyncClient, tmp_path: Path
) -> None:
    await client.datasets.push(folder(tmp_path / "faces", FACES))
    job = await client.submit(
        ["true"], code=None, inputs={"faces": "datasets/faces:1"}, hold=True, name="reader"
    )
    with pytest.raises(HatobaError, match="jobs/reader-1") as caught:
        await client.datasets.delete("faces:1")
    assert caught.value.reason == "WRONG_STATE"
    await client.cancel(job.name)
    await client.datasets.delete("faces:1")


async def test_a_repeated_request_makes_one_version(client: AsyncClient, tmp_path: Path) -> None:
    manifest = (await client.datasets.push(folder(tmp_path / "faces", FACES))).manifest
    request = dataset_pb2.CreateDatasetVersionRequest(
        project=client.project, dataset="other", manifest=manifest, request_id="r1"
    )
    calls = [client.call(request, dataset_pb2.DatasetVersion) for _ in range(4)]
    found = await asyncio.gather(*calls)
    assert {one.name for one in found} == {found[0].name}
    request.message = "another body"
    with pytest.raises(HatobaError, match="used for another request"):
        await client.call(request, dataset_pb2.DatasetVersion)


BAD_LINES: list[tuple[Any, str]] = [
    ({"id": "a", "path": "nowhere.png"}, "nowhere.png"),
    ({"id": "", "path": "x"}, "id"),
    ({"id": "a", "label": 3}, "label"),
    ({"id": "same"}, "there before"),
    ("no json", "one JSON object"),
]


@pytest.mark.parametrize(("line", "words"), BAD_LINES)
async def test_items_that_cannot_be_are_refused_with_their_line(
    client: AsyncClient, tmp_path: Path, line: Any, words: str
) -> None:
    """Past the SDK's own look, as another client would send them."""
    version = await client.datasets.push(folder(tmp_path / "faces", {"x": b"x"}))
    text = line if isinstance(line, str) else json.dumps(line)
    lines = [b'{"id": "same"}\n', text.encode() + b"\n"]
    async with packing.on_thread(packing.one_file("items.jsonl", lines)) as packed:
        items = await packing.upload(client, packed)
    with pytest.raises(InvalidRequest, match="line 2") as caught:
        await create(client, version.manifest, items)
    assert words in str(caught.value)
    assert [one.field for one in caught.value.violations] == ["items"]
    assert [one.version for one in await client.datasets.versions("faces")] == [1]


async def create(
    client: AsyncClient,
    manifest: common_pb2.ManifestRef,
    items: common_pb2.ManifestRef | None = None,
    dataset: str = "faces",
) -> dataset_pb2.DatasetVersion:
    request = dataset_pb2.CreateDatasetVersionRequest(
        project=client.project, dataset=dataset, manifest=manifest, items=items
    )
    return await client.call(request, dataset_pb2.DatasetVersion)


async def test_trees_that_are_not_there_or_no_items_are_refused(
    client: AsyncClient, tmp_path: Path
) -> None:
    version = await client.datasets.push(folder(tmp_path / "faces", FACES))
    with pytest.raises(InvalidRequest, match="manifest that is not stored") as caught:
        await create(client, missing())
    assert [one.field for one in caught.value.violations] == ["manifest"]
    with pytest.raises(InvalidRequest, match="manifest that is not stored") as caught:
        await create(client, version.manifest, missing())
    assert [one.field for one in caught.value.violations] == ["items"]
    with pytest.raises(InvalidRequest, match=r"one file items\.jsonl"):
        await create(client, version.manifest, version.manifest)


async def test_the_sdk_names_the_line_before_it_sends(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    told = tmp_path / "items.jsonl"
    told.write_text('{"id": "a", "path": "readme.txt"}\n{"id": "b", "path": "nowhere"}\n')
    with pytest.raises(InvalidSpec, match=r"items\.jsonl:2: .*nowhere"):
        await client.datasets.push(source, items=told)
    told.write_text("nothing")
    with pytest.raises(InvalidSpec, match=r"items\.jsonl:1"):
        await client.datasets.push(source, items=told)
    with pytest.raises(InvalidSpec, match="there is no directory"):
        await client.datasets.push(tmp_path / "nowhere")
    assert await client.datasets.list() == []


BAD_NAMES = [
    ("GetDatasetVersion", {"name": "faces:0"}, "they begin at 1"),
    ("GetDatasetVersion", {"name": "models/faces:1"}, "one of datasets"),
    ("GetDatasetVersion", {"name": "faces@prod"}, "NAME:NUMBER"),
    ("GetDatasetVersion", {"name": "../x"}, "NAME:NUMBER"),
    ("DeleteDatasetVersion", {"name": "faces"}, "which version"),
    ("ListDatasetItems", {"name": "faces", "filter": "split >"}, "FIELD = VALUE"),
    ("GetCodeVersion", {"name": "datasets/x:1"}, "one of code"),
]


@pytest.mark.parametrize(("method", "fields", "words"), BAD_NAMES)
async def test_names_and_filters_that_cannot_be_are_refused(
    client: AsyncClient, method: str, fields: dict[str, str], words: str
) -> None:
    request = getattr(dataset_pb2, f"{method}Request")(project=client.project, **fields)
    with pytest.raises(InvalidRequest, match=words):
        await client.call(request, dataset_pb2.DatasetVersion)


async def test_what_is_not_there_is_not_found_with_a_remedy(
    client: AsyncClient, tmp_path: Path
) -> None:
    with pytest.raises(NotFound, match="hatoba datasets list"):
        await client.datasets.get("nothing")
    with pytest.raises(NotFound):
        await client.datasets.versions("nothing")
    with pytest.raises(NotFound):
        await client.datasets.diff("nothing:1", "nothing:2")
    with pytest.raises(NotFound):
        await client.datasets.commit("nothing")
    await client.datasets.append("onlyhead", [NewItem("a")])
    with pytest.raises(NotFound, match="hatoba datasets commit onlyhead"):
        await client.datasets.get("onlyhead")
    with pytest.raises(NotFound, match="hatoba code list"):
        await client.code.get("nothing")


async def test_what_a_job_names_must_be_there(client: AsyncClient, tmp_path: Path) -> None:
    await client.datasets.push(folder(tmp_path / "faces", FACES))
    held = await client.submit(["true"], code=None, hold=True, name="held")
    for source, words in (
        ("datasets/faces:9", "hatoba datasets list"),
        ("datasets/fases", "hatoba datasets list"),
        ("datasets/faces:x", "write for example"),
        ("jobs/held-1/outputs", "HELD"),
        ("jobs/held-1", "jobs/NAME-N/outputs"),
        ("jobs/nobody-7/outputs", "jobs/NAME-N/outputs"),
        ("projects/p/predictions/x", "cannot be one of"),
    ):
        with pytest.raises(InvalidRequest, match=words) as caught:
            await client.submit(["true"], code=None, inputs={"faces": source})
        (violation,) = caught.value.violations
        assert violation.field == "spec.inputs[0].source"
        assert source in violation.description
    spec = job_pb2.JobSpec(name="x", command=["true"], inputs=[job_pb2.Input(name="faces")])
    request = job_pb2.SubmitJobRequest(project=client.project, spec=spec)
    with pytest.raises(InvalidRequest, match="or else a source"):
        await client.call(request, job_pb2.Job)
    await client.cancel(held.name)


async def test_a_source_is_resolved_once(client: AsyncClient, tmp_path: Path) -> None:
    source = folder(tmp_path / "faces", FACES)
    version = await client.datasets.push(source, labels_from_folders=True)
    job = await client.submit(
        ["true"], code=None, inputs={"faces": "datasets/faces:stream"}, hold=True
    )
    await client.datasets.push(source)
    (told,) = (await job.refresh()).spec.inputs
    assert told.source == version.name
    assert (told.manifest, told.items) == (version.manifest, version.items)
    assert told.mode == job_pb2.INPUT_MODE_STREAM
    again = await job.rerun()
    assert again.record.spec.inputs[0].source == version.name
    await client.cancel(job.name, again.name)
