"""Batch inference: a model over all items of a dataset, in shards, into another dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

from hatoba.errors import FailedPrecondition, InvalidSpec
from hatoba.options import MAX_NAME, Parcel, SubmitOptions, build_parcel
from hatoba.v1 import dataset_pb2, job_pb2, model_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hatoba.aio import AsyncClient, AsyncJob

FOLDER = "predictions"
ITEMS_FILE = "items.jsonl"
MOST_SHARDS = 1_000_000
SHARD_RETRIES = 1
"""So often a shard that failed is run again, alone."""

OnItemError = Literal["fail", "record"]


class BatchOptions(TypedDict, total=False):
    """Options of a batch prediction. Every one may be left out.

    `shards` is how many tasks share the items (1); `to` the dataset of the predictions (the
    dataset's name and `-predictions`); `on_item_error` says whether an item that the model refuses
    fails its shard (`fail`) or is recorded (`record`), and `max_errors` how many may be recorded
    before nothing is published; `retries` is how often a failed shard runs again, alone (1). The
    model's own resources are taken where none are said; the others are as in `SubmitOptions`.
    """

    shards: int
    to: str
    on_item_error: OnItemError
    max_errors: int
    retries: int
    name: str
    queue: str
    backend: str
    priority: int
    cpus: float
    memory: int | str
    gpus: int
    timeout: float | str
    max_parallel: int
    labels: Mapping[str, str]


async def predict_batch(
    client: AsyncClient, model: str, dataset: str, options: BatchOptions, request_id: str = ""
) -> AsyncJob:
    """Submit it; see AsyncClient.predict_batch."""
    version = await client.call(
        model_pb2.GetModelVersionRequest(project=client.project, name=model), model_pb2.ModelVersion
    )
    data = await client.datasets.get(dataset)
    parcel = batch_parcel(version, data, options)
    return await client.submit_parcel(parcel, request_id=request_id)


def batch_parcel(
    model: model_pb2.ModelVersion, data: dataset_pb2.DatasetVersion, options: BatchOptions
) -> Parcel:
    """The array of tasks that predicts every item of `data`. Raises InvalidSpec for options that
    make no sense, FailedPrecondition for a model that cannot predict.
    """
    _require_able(model)
    shards = _shards(options)
    command = _command(model, data, options)
    parcel = build_parcel(command, _job_options(model, options, shards))
    spec = parcel.spec
    _add_inputs(spec, model, data)
    _add_serving(spec, model.serving, options)
    spec.publish.dataset = options.get("to") or _predictions_of(data)
    spec.publish.folder = FOLDER
    if "max_errors" in options:
        spec.publish.max_errors = options["max_errors"]
    return parcel


def _require_able(model: model_pb2.ModelVersion) -> None:
    name = short_resource(model.name)
    if model.state != model_pb2.MODEL_STATE_READY:
        state = model_pb2.ModelState.Name(model.state).removeprefix("MODEL_STATE_")
        raise FailedPrecondition(
            f"{name} is {state}, and only a READY version can predict",
            remedy=f"`hatoba models get {name}` says more",
        )
    if not model.serving.handler:
        raise FailedPrecondition(
            f"{name} has no handler: nothing can ask it",
            remedy="log or register it with handler='MODULE:CLASS'",
        )


def _shards(options: BatchOptions) -> int:
    shards = options.get("shards", 1)
    if not 1 <= shards <= MOST_SHARDS:
        raise InvalidSpec(f"shards must be 1 to {MOST_SHARDS:,}, not {shards}")
    if "max_errors" in options and options.get("on_item_error", "fail") != "record":
        raise InvalidSpec(
            "max_errors counts recorded errors",
            remedy="add on_item_error='record', or leave it out",
        )
    if options.get("max_errors", 0) < 0:
        raise InvalidSpec(f"max_errors must be 0 or more, not {options['max_errors']}")
    return shards


def _command(
    model: model_pb2.ModelVersion, data: dataset_pb2.DatasetVersion, options: BatchOptions
) -> list[str]:
    """The job runs in the model's code, beside its inputs and outputs."""
    command = [
        *("python", "-m", "hatoba_worker.serving", "batch"),
        *("--model", "../inputs/model", "--code", ".", "--handler", model.serving.handler),
        *("--data", "../inputs/data", "--output", "../outputs"),
        *("--on-item-error", options.get("on_item_error", "fail")),
    ]
    if data.items.digest:
        command += ["--items", f"../inputs/items/{ITEMS_FILE}"]
    if "max_errors" in options:
        command += ["--max-errors", str(options["max_errors"])]
    return command


def _job_options(
    model: model_pb2.ModelVersion, options: BatchOptions, shards: int
) -> SubmitOptions:
    """What of it is said as for any job."""
    job = SubmitOptions(code=None, retries=options.get("retries", SHARD_RETRIES))
    job["name"] = options.get("name") or _cut(f"predict-{model.name.split('/')[3]}")
    if shards > 1:
        job["array"] = shards
    for key in SubmitOptions.__annotations__.keys() & BatchOptions.__annotations__.keys():
        if key in options and key not in job:
            job[key] = options[key]  # type: ignore[literal-required]
    return job


def _add_inputs(
    spec: job_pb2.JobSpec, model: model_pb2.ModelVersion, data: dataset_pb2.DatasetVersion
) -> None:
    spec.inputs.add(name="model", source=model.name)
    spec.inputs.add(name="data", source=data.name)
    if data.items.digest:
        spec.inputs.add(name="items", manifest=data.items)


def _add_serving(spec: job_pb2.JobSpec, serving: model_pb2.Serving, options: BatchOptions) -> None:
    """Code and environment are the model's; so are resources that are not said."""
    if serving.code.digest:
        spec.code.CopyFrom(serving.code)
    if serving.HasField("environment"):
        spec.environment.CopyFrom(serving.environment)
    if "cpus" not in options:
        spec.resources.cpus = serving.resources.cpus
    if "memory" not in options:
        spec.resources.memory_bytes = serving.resources.memory_bytes
    if "gpus" not in options:
        spec.resources.gpus = serving.resources.gpus


def _predictions_of(data: dataset_pb2.DatasetVersion) -> str:
    ending = f"-{FOLDER}"
    return data.name.split("/")[3][: MAX_NAME - len(ending)].rstrip("-") + ending


def _cut(name: str) -> str:
    return name[:MAX_NAME].rstrip("-")


def short_resource(resource: str) -> str:
    """`projects/P/models/digits/versions/7` as `digits:7`; anything else as it is."""
    parts = resource.split("/")
    return f"{parts[3]}:{parts[5]}" if len(parts) == 6 and parts[4] == "versions" else resource
