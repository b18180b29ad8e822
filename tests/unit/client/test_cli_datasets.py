"""`hatoba datasets`, `hatoba code`, and inputs that name what the server has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from click.testing import Result

from hatoba.cli.exits import Exit
from hatoba.errors import InvalidSpec
from hatoba.jobfile import JobFileError, read_jobs
from hatoba.options import build_parcel, parse_source
from hatoba.v1 import common_pb2, dataset_pb2, job_pb2

if TYPE_CHECKING:
    from tests.unit.client.conftest import FakeServer

Cli = Callable[..., Result]
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def faces() -> Path:
    """A folder with splits and labels."""
    for path in ("faces/train/cat/1.png", "faces/test/dog/2.png"):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_text(path)
    return Path("faces")


def stored(fake: FakeServer, ref: common_pb2.ManifestRef) -> list[str]:
    """The lines of a stored tree of one file."""
    (entry,) = fake.manifests[ref.digest].entries
    return b"".join(fake.chunks[chunk.sha256] for chunk in entry.chunks).decode().splitlines()


def test_push_names_the_folder_and_prints_the_version(
    fake: FakeServer, cli: Cli, faces: Path
) -> None:
    done = cli("datasets", "push", str(faces), "-m", "first", "--label", "team=vision")
    assert (done.exit_code, done.stdout) == (0, "faces:1\n")
    (request,) = fake.requests("CreateDatasetVersionRequest")
    assert (request.dataset, request.message) == ("faces", "first")
    assert dict(request.labels) == {"team": "vision"}
    assert not request.HasField("items")
    assert request.request_id
    paths = [entry.path for entry in fake.manifests[request.manifest.digest].entries]
    assert paths == ["test/dog/2.png", "train/cat/1.png"]


def test_push_takes_labels_and_splits_from_folders(fake: FakeServer, cli: Cli, faces: Path) -> None:
    said = ("--name", "other", "--labels-from", "folders", "--split-from", "folders")
    assert cli("datasets", "push", str(faces), *said).exit_code == 0
    (request,) = fake.requests("CreateDatasetVersionRequest")
    items = [json.loads(line) for line in stored(fake, request.items)]
    assert items[1] == {
        "id": "train/cat/1.png",
        "path": "train/cat/1.png",
        "attributes": {"split": "train", "label": "cat"},
    }


def test_push_of_what_the_newest_version_has_sends_nothing(
    fake: FakeServer, cli: Cli, faces: Path
) -> None:
    cli("datasets", "push", str(faces))
    (request,) = fake.requests("CreateDatasetVersionRequest")
    fake.replies["GetDatasetVersionRequest"] = dataset_pb2.DatasetVersion(
        name="projects/default/datasets/faces/versions/4", version=4, manifest=request.manifest
    )
    asked = len(fake.asked)
    assert cli("datasets", "push", str(faces)).stdout == "faces:4\n"
    kinds = {message.DESCRIPTOR.name for message in fake.asked[asked:]}
    assert kinds == {"GetDatasetVersionRequest"}


def test_push_says_which_item_is_wrong(cli: Cli, faces: Path) -> None:
    Path("items.jsonl").write_text('{"id": "a", "path": "train/cat/9.png"}\n')
    refused = cli("datasets", "push", str(faces), "--items", "items.jsonl")
    assert refused.exit_code == Exit.USAGE
    assert "items.jsonl:1" in refused.stderr
    assert "train/cat/9.png" in refused.stderr
    both = cli("datasets", "push", str(faces), "--items", "items.jsonl", "--labels-from", "folders")
    assert both.exit_code == Exit.USAGE


def test_append_sends_files_with_typed_attributes(fake: FakeServer, cli: Cli) -> None:
    Path("a.txt").write_text("a")
    Path("b.txt").write_text("b")
    said = ("--attr", "label=3", "--attr", "good=true", "--attr", "who=ann")
    done = cli("datasets", "append", "faces", "a.txt", "b.txt", *said)
    assert done.exit_code == 0, done.stderr
    assert "the head of faces has 2" in done.stderr
    (request,) = fake.requests("AppendDatasetItemsRequest")
    assert [(item.id, item.data) for item in request.items] == [("a.txt", b"a"), ("b.txt", b"b")]
    assert dict(request.items[0].attributes) == {"label": 3, "good": True, "who": "ann"}


def test_append_of_many_goes_in_batches(fake: FakeServer, cli: Cli) -> None:
    for number in range(3):
        Path(f"{number}.bin").write_bytes(bytes(900_000))
    assert cli("datasets", "append", "d", "0.bin", "1.bin", "2.bin").exit_code == 0
    sizes = [len(request.items) for request in fake.requests("AppendDatasetItemsRequest")]
    assert sizes == [2, 1]
    Path("big.bin").write_bytes(bytes(1_048_577))
    refused = cli("datasets", "append", "d", "big.bin")
    assert refused.exit_code == Exit.USAGE
    assert "hatoba datasets push" in refused.stderr


def test_commit_import_and_delete(fake: FakeServer, cli: Cli) -> None:
    assert cli("datasets", "commit", "faces", "-m", "seen").stdout == "faces:1\n"
    assert fake.requests("CommitDatasetRequest")[0].message == "seen"
    uri = "s3://bucket/faces"
    assert cli("datasets", "import", uri, "faces", "--labels-from", "folders").exit_code == 0
    (told,) = fake.requests("ImportDatasetRequest")
    assert (told.uri, told.labels_from_folders) == (uri, True)
    assert "removed faces:1" in cli("datasets", "delete", "faces:1").stderr
    fake.refuse("CommitDatasetRequest", grpc.StatusCode.FAILED_PRECONDITION, "the head is empty")
    refused = cli("datasets", "commit", "faces")
    assert (refused.exit_code, "the head is empty" in refused.stderr) == (Exit.FAILURE, True)


def test_lists_and_details(fake: FakeServer, cli: Cli) -> None:
    fake.replies["ListDatasetsRequest"] = dataset_pb2.ListDatasetsResponse(
        datasets=[dataset_pb2.Dataset(name="projects/default/datasets/faces", latest=3)]
    )
    assert cli("datasets", "list").stdout.splitlines()[1].split()[:2] == ["faces", "3"]
    version = dataset_pb2.DatasetVersion(
        name="projects/default/datasets/faces/versions/3",
        version=3,
        item_count=1_000,
        splits={"train": 900, "test": 100},
        item_labels={str(number): number for number in range(12)},
        message="corrected",
        source="push",
    )
    fake.replies["ListDatasetVersionsRequest"] = dataset_pb2.ListDatasetVersionsResponse(
        versions=[version]
    )
    row = cli("datasets", "list", "faces").stdout.splitlines()[1]
    assert row.split()[:2] == ["faces:3", "1,000"]
    fake.replies["GetDatasetVersionRequest"] = version
    text = cli("datasets", "get", "faces").stdout
    assert "train 900, test 100" in text
    assert "and 4 more" in text
    told = json.loads(cli("datasets", "get", "faces", "-o", "json").stdout)
    assert told["item_count"] == "1000" or told["item_count"] == 1000


def test_items_and_differences(fake: FakeServer, cli: Cli) -> None:
    page = dataset_pb2.ListDatasetItemsResponse()
    page.items.add(id="a.png", path="a.png").attributes.update({"label": 3, "split": "test"})
    page.items.add(id="b.png")
    fake.replies["ListDatasetItemsRequest"] = page
    done = cli("datasets", "items", "faces:3", "--filter", "split = test")
    assert done.stdout.splitlines() == ["a.png  label=3 split=test", "b.png"]
    (request,) = fake.requests("ListDatasetItemsRequest")
    assert (request.name, request.filter, request.head) == ("faces:3", "split = test", False)
    one = cli("datasets", "items", "faces", "--head", "-n", "1", "-o", "json")
    assert json.loads(one.stdout)["attributes"] == {"label": 3, "split": "test"}
    found = dataset_pb2.DiffDatasetVersionsResponse(added=1, removed=1, changed=2, same=5)
    for number, id in enumerate("abcd", start=1):
        found.differences.add(id=id, change=dataset_pb2.ItemChange.ValueType(number))
    fake.replies["DiffDatasetVersionsRequest"] = found
    shown = cli("datasets", "diff", "faces:1", "faces:2")
    assert shown.stdout.splitlines() == ["+ a", "- b", "~ c", "@ d"]
    assert "1 added, 1 removed, 2 changed, 5 the same" in shown.stderr


def test_pull_brings_the_files_and_what_is_known_of_them(
    fake: FakeServer, cli: Cli, faces: Path
) -> None:
    cli("datasets", "push", str(faces), "--labels-from", "folders")
    (request,) = fake.requests("CreateDatasetVersionRequest")
    fake.replies["GetDatasetVersionRequest"] = dataset_pb2.DatasetVersion(
        name="projects/default/datasets/faces/versions/1",
        manifest=request.manifest,
        items=request.items,
    )
    done = cli("datasets", "pull", "faces", "out")
    assert done.exit_code == 0, done.stderr
    assert Path("out/train/cat/1.png").read_text() == "faces/train/cat/1.png"
    assert len(Path("out.items.jsonl").read_text().splitlines()) == 2
    again = cli("datasets", "pull", "faces", "out")
    assert again.exit_code != 0
    assert "not empty" in again.stderr


def test_code_is_recorded_and_shown(fake: FakeServer, cli: Cli) -> None:
    Path("train.py").write_text("print(1)\n")
    assert cli("run", "-d", "--", "python", "train.py").exit_code == 0
    (recorded,) = fake.requests("CreateCodeVersionRequest")
    (submitted,) = fake.requests("SubmitJobRequest")
    assert recorded.code == submitted.spec.name == "train"
    assert recorded.manifest == submitted.spec.code
    assert submitted.spec.code_version == "projects/default/code/train/versions/1"
    fake.replies["ListCodeVersionsRequest"] = dataset_pb2.ListCodeVersionsResponse(
        versions=[
            dataset_pb2.CodeVersion(
                name="projects/default/code/train/versions/2", git_commit="c" * 40, dirty=True
            )
        ]
    )
    assert "cccccccccccc+" in cli("code", "list").stdout
    assert cli("code", "get", "train").stdout.startswith("train:1")
    assert cli("code", "diff", "train").stdout == ""


def test_a_job_without_code_records_none(fake: FakeServer, cli: Cli) -> None:
    assert cli("run", "-d", "--no-code", "--", "true").exit_code == 0
    assert fake.requests("CreateCodeVersionRequest") == []


@pytest.mark.parametrize(
    ("told", "source", "mode"),
    [
        ("datasets/faces:3", "datasets/faces:3", 0),
        ("datasets/faces:3:stream", "datasets/faces:3", job_pb2.INPUT_MODE_STREAM),
        ("datasets/faces:copy", "datasets/faces", job_pb2.INPUT_MODE_COPY),
        ("models/digits@production:cache", "models/digits@production", job_pb2.INPUT_MODE_CACHE),
        ("jobs/digits-42/outputs", "jobs/digits-42/outputs", 0),
        ("./datasets/faces", "", 0),
        ("data:copy", "", job_pb2.INPUT_MODE_COPY),
        (Path("datasets/faces"), "", 0),
    ],
)
def test_what_an_input_names(told: str | Path, source: str, mode: int) -> None:
    assert parse_source(told) == (source, mode)


def test_inputs_go_into_the_specification(fake: FakeServer, cli: Cli, faces: Path) -> None:
    said = ("--input", "faces=datasets/faces:3:stream", "--input", f"own={faces}:copy")
    assert cli("run", "-d", "--no-code", *said, "--", "true").exit_code == 0
    named, own = fake.requests("SubmitJobRequest")[0].spec.inputs
    assert (named.name, named.source) == ("faces", "datasets/faces:3")
    assert named.mode == job_pb2.INPUT_MODE_STREAM
    assert (own.source, own.mode) == ("", job_pb2.INPUT_MODE_COPY)
    assert own.manifest.files == 2
    with pytest.raises(InvalidSpec):
        build_parcel("", {})


def test_a_job_file_names_sources_and_modes() -> None:
    text = """
command: [python, train.py]
inputs:
  - {name: faces, source: "datasets/faces:3", mode: stream}
  - {name: own, path: data, mode: COPY}
"""
    (document,) = read_jobs(text, source="job.yaml", directory=Path("here"))
    named, own = document.parcel.spec.inputs
    assert (named.source, named.mode) == ("datasets/faces:3", job_pb2.INPUT_MODE_STREAM)
    assert own.mode == job_pb2.INPUT_MODE_COPY
    assert document.parcel.inputs == {"own": Path("here/data")}
    with pytest.raises(JobFileError, match="'fast' is none of COPY, CACHE, STREAM"):
        read_jobs(text.replace("stream", "fast"), source="x", directory=Path())
