"""Models that a job logged, from its directory to the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hatoba.logged_models import CODE, DIRECTORY, EXAMPLE, FILES, MOST_EXAMPLE_BYTES, MOST_MODELS
from hatoba.v1 import common_pb2, runner_pb2
from hatoba_worker.attempts import Attempt, Logged
from hatoba_worker.transfers import TransferFailed, Transfers

# They travel in one message, which may have 4 MiB.
MOST_BYTES = 7 << 19


async def bring_out(attempt: Attempt, transfers: Transfers) -> list[runner_pb2.LoggedModel]:
    """Store the trees of all logged models, in order; raises TransferFailed and OSError."""
    found = [attempt.models[number] for number in sorted(attempt.models)]
    if len(found) > MOST_MODELS:
        raise TransferFailed(f"{len(found)} were logged, and {MOST_MODELS} may be")
    models = [await _bring_out(attempt, each, transfers) for each in found]
    total = sum(model.ByteSize() for model in models)
    if total > MOST_BYTES:
        raise TransferFailed(f"{total:,} bytes are said of them, {MOST_BYTES:,} may be")
    return models


async def _bring_out(
    attempt: Attempt, found: Logged, transfers: Transfers
) -> runner_pb2.LoggedModel:
    place = Path(attempt.path(DIRECTORY)) / str(found.number)
    model = runner_pb2.LoggedModel()
    model.CopyFrom(found.model)
    model.manifest.CopyFrom(await _stored(place / FILES, found, transfers))
    if found.own_code:
        model.serving.code.CopyFrom(await _stored(place / CODE, found, transfers))
    if model.serving.HasField("example"):
        model.serving.example.data = await asyncio.to_thread(_example, place / EXAMPLE)
    return model


async def _stored(root: Path, found: Logged, transfers: Transfers) -> common_pb2.ManifestRef:
    try:
        return await transfers.upload(root)
    except (TransferFailed, OSError) as error:
        raise TransferFailed(f"{found.model.model}: {error}") from error


def _example(path: Path) -> bytes:
    data = path.read_bytes()
    if len(data) > MOST_EXAMPLE_BYTES:
        raise TransferFailed(
            f"an example of {len(data):,} bytes, {MOST_EXAMPLE_BYTES:,} are allowed"
        )
    return data
