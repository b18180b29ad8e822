"""What a batch prediction is made into, and what is said of its end."""

from __future__ import annotations

from typing import Any

import pytest

from hatoba.batch import BatchOptions, batch_parcel, short_resource
from hatoba.cli.words import ending
from hatoba.errors import FailedPrecondition, InvalidSpec
from hatoba.v1 import common_pb2, dataset_pb2, job_pb2, model_pb2

DIGEST = f"sha256:{'a' * 64}"


def model(**fields: Any) -> model_pb2.ModelVersion:
    made = model_pb2.ModelVersion(
        name="projects/default/models/digits/versions/7",
        state=model_pb2.MODEL_STATE_READY,
        serving=model_pb2.Serving(
            handler="serve:Digits",
            code=common_pb2.ManifestRef(digest=DIGEST),
            environment=job_pb2.Environment(requirements="numpy\n"),
            resources=common_pb2.Resources(cpus=2, memory_bytes=2**30, gpus=1),
        ),
    )
    made.MergeFrom(model_pb2.ModelVersion(**fields))
    return made


def data(name: str = "faces", *, items: bool = True) -> dataset_pb2.DatasetVersion:
    made = dataset_pb2.DatasetVersion(name=f"projects/default/datasets/{name}/versions/3")
    if items:
        made.items.digest = DIGEST
    return made


def spec_of(options: BatchOptions, **fields: Any) -> job_pb2.JobSpec:
    return batch_parcel(model(**fields), data(), options).spec


def test_it_is_an_array_over_exact_versions() -> None:
    parcel = batch_parcel(model(), data(), {"shards": 4})
    spec = parcel.spec
    assert (spec.name, spec.array.size, spec.retries.user) == ("predict-digits", 4, 1)
    assert parcel.code is None
    assert spec.code.digest == DIGEST
    assert (spec.environment.requirements, spec.environment.caller_interpreter) == ("numpy\n", "")
    assert [(one.name, one.source, one.manifest.digest) for one in spec.inputs] == [
        ("model", "projects/default/models/digits/versions/7", ""),
        ("data", "projects/default/datasets/faces/versions/3", ""),
        ("items", "", DIGEST),
    ]
    assert (spec.publish.dataset, spec.publish.folder) == ("faces-predictions", "predictions")
    assert not spec.publish.HasField("max_errors")
    assert "--max-errors" not in spec.command
    assert spec.command[-2:] == ["--items", "../inputs/items/items.jsonl"]


def test_one_shard_is_no_array_and_a_dataset_without_items_has_files() -> None:
    spec = batch_parcel(model(), data(items=False), {}).spec
    assert not spec.HasField("array")
    assert "--items" not in spec.command
    assert [one.name for one in spec.inputs] == ["model", "data"]


def test_what_is_said_goes_before_what_the_model_has() -> None:
    plain = spec_of({}).resources
    said = spec_of({"cpus": 4.0, "memory": "2Gi", "gpus": 0}).resources
    assert (plain.cpus, plain.memory_bytes, plain.gpus) == (2.0, 2**30, 1)
    assert (said.cpus, said.memory_bytes, said.gpus) == (4.0, 2**31, 0)


def test_recorded_errors_have_a_limit_for_each_shard_and_for_all() -> None:
    spec = spec_of({"on_item_error": "record", "max_errors": 0})
    assert spec.publish.max_errors == 0
    assert spec.publish.HasField("max_errors")
    words = list(spec.command)
    assert words[words.index("--max-errors") + 1] == "0"
    assert words[words.index("--on-item-error") + 1] == "record"


def test_names_are_said_or_made_and_never_too_long() -> None:
    options: BatchOptions = {"name": "nightly", "to": "answers", "retries": 3, "queue": "q"}
    spec = spec_of(options)
    assert (spec.name, spec.publish.dataset, spec.retries.user, spec.queue) == (
        "nightly",
        "answers",
        3,
        "q",
    )
    long = "d" * 48
    made = batch_parcel(model(), data(long), {}).spec
    assert made.publish.dataset == "d" * 36 + "-predictions"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shards": 0}, "shards must be"),
        ({"shards": 1_000_001}, "shards must be"),
        ({"max_errors": 1}, "counts recorded errors"),
        ({"max_errors": 1, "on_item_error": "fail"}, "counts recorded errors"),
        ({"max_errors": -1, "on_item_error": "record"}, "0 or more"),
        ({"memory": "much"}, "memory"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: BatchOptions, word: str) -> None:
    with pytest.raises(InvalidSpec, match=word):
        spec_of(options)


def test_a_model_that_cannot_predict_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="digits:7 is FAILED"):
        spec_of({}, state=model_pb2.MODEL_STATE_FAILED)
    bare = model()
    bare.serving.handler = ""
    with pytest.raises(FailedPrecondition, match="digits:7 has no handler"):
        batch_parcel(bare, data(), {})


def test_the_end_says_what_was_published_and_of_how_many() -> None:
    job = job_pb2.Job(
        name="projects/default/jobs/predict-digits-1",
        state=common_pb2.JOB_STATE_SUCCEEDED,
        summary="9,998 of 10,000, 2 errors",
        published="projects/default/datasets/faces-predictions/versions/4",
    )
    assert ending(job).splitlines()[1:] == [
        "  summary  9,998 of 10,000, 2 errors",
        "  published  faces-predictions:4",
    ]
    assert short_resource("not published: no") == "not published: no"
