"""`hatoba predict MODEL --dataset D`: a model over all items of a dataset, in shards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from hatoba.batch import BatchOptions
from hatoba.cli.exits import Exit
from hatoba.cli.options import CPUS, DURATION, LABEL, MEMORY, unique
from hatoba.cli.session import open_client

F = TypeVar("F", bound=Callable[..., Any])

# In the order in which help lists them.
BATCH_OPTIONS: list[Callable[[Any], Any]] = [
    click.option(
        "--dataset",
        metavar="DATASET",
        help="Predict every item of this dataset version, for example digits-test:2.",
    ),
    click.option("--shards", type=click.IntRange(1), metavar="N", help="Tasks that share them."),
    click.option(
        "--on-item-error",
        type=click.Choice(["fail", "record"]),
        help="An item that the model refuses fails its shard, or is recorded. [default: fail]",
    ),
    click.option(
        "--max-errors",
        type=click.IntRange(0),
        metavar="N",
        help="With more recorded errors nothing is published. [default: no limit]",
    ),
    click.option(
        "--to",
        metavar="DATASET",
        help="Dataset of the predictions. [default: the dataset's name and -predictions]",
    ),
    click.option("--name", metavar="NAME", help="Name of the job. [default: predict-MODEL]"),
    click.option(
        "--retries",
        type=click.IntRange(0, 1000),
        metavar="N",
        help="So often a shard that failed runs again, alone. [default: 1]",
    ),
    click.option(
        "--max-parallel",
        type=click.IntRange(1),
        metavar="N",
        help="Shards at once, at most.",
    ),
    click.option("--queue", metavar="QUEUE", help="Queue to wait in."),
    click.option("--backend", metavar="BACKEND", help="Where to run."),
    click.option("--cpus", type=CPUS, metavar="N", help="Cores. [default: the model's]"),
    click.option("--memory", type=MEMORY, metavar="AMOUNT", help="Memory. [default: the model's]"),
    click.option(
        "--gpus", type=click.IntRange(0, 1024), metavar="N", help="GPUs. [default: the model's]"
    ),
    click.option("--timeout", type=DURATION, metavar="DURATION", help="Longest run of a shard."),
    click.option("--label", "labels", multiple=True, type=LABEL, metavar="K=V", help="Free label."),
    click.option(
        "--wait/--detach",
        default=True,
        help="Follow it to its end, or print the job's name and return. [default: wait]",
    ),
]


def batch_options(function: F) -> F:
    """Every option of a batch prediction; without --dataset it is none."""
    for option in reversed(BATCH_OPTIONS):
        function = option(function)
    return function


def predict_dataset(model: str, said: Mapping[str, Any]) -> Exit:
    """Predict the dataset that was said; the exit code. Ctrl-C detaches and never cancels."""
    submitted: list[str] = []
    try:
        return asyncio.run(_predict(model, said, submitted))
    except KeyboardInterrupt:
        from hatoba.cli.following import detached

        if submitted:
            return detached(submitted[0])
        click.echo("\nnothing was submitted", err=True)
        return Exit.DETACHED


async def _predict(model: str, said: Mapping[str, Any], submitted: list[str]) -> Exit:
    from hatoba.cli.following import Follower, finish

    async with open_client() as client:
        job = await client.predict_batch(model, said["dataset"], **_options(said))
        submitted.append(job.record.name)
        if not said["wait"]:
            click.echo(job.name)
            return Exit.OK
        click.secho(f"submitted {job.name}", dim=True, err=True)
        record = await Follower(client, job.record.name).to_end()
        code = finish(record)
        if code is Exit.OK and "/" not in record.published:
            return Exit.FAILURE
        return code


def _options(said: Mapping[str, Any]) -> BatchOptions:
    options = BatchOptions()
    for name in BatchOptions.__annotations__:
        value = said.get(name)
        if value not in (None, ""):
            options[name] = value  # type: ignore[literal-required]
    options["labels"] = unique(said["labels"], "--label")
    return options
