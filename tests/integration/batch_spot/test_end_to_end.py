"""A real server, moto's Batch, and real containers of the runtime image with the real runner."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from batch_house import PATIENCE, Batch, attempts_of, submit
from waiting import eventually, until

from hatoba.aio import AsyncClient, AsyncJob
from hatoba.v1 import common_pb2

SHARDS = 8

pytestmark = pytest.mark.timeout(600)


async def two_with_checkpoints(job: AsyncJob) -> list[str]:
    """Names of two attempts that have something to go on from; empty: there are none yet."""
    attempts = [one for one in await attempts_of(job) if one.checkpoint.step]
    return [one.external_name for one in attempts[:2]] if len(attempts) >= 2 else []


MAKES = """
from hatoba import current_job
job = current_job()
(job.outputs / "made").write_text("out")
print("made it", flush=True)
"""

SHARD = """
import os, time
from hatoba import current_job
job = current_job()
begun = int((job.latest_checkpoint / "at").read_text()) if job.latest_checkpoint else 0
print("from", begun, flush=True)
for step in range(begun + 1, 17):
    time.sleep(0.5)
    with job.checkpoint(step) as directory:
        (directory / "at").write_text(str(step))
(job.outputs / "shard").write_text(os.environ["HATOBA_INDEX"])
"""


async def test_a_job_goes_all_the_way_in_a_container(
    client: AsyncClient, batch: Batch, tmp_path: Path
) -> None:
    job = await submit(client, batch, tmp_path, MAKES)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
    assert batch.proxy.counts["submitjob"] == 1
    assert b"made it" in b"".join([piece.data async for piece in job.logs(stream="stdout")])
    made = await job.outputs(tmp_path / "outputs")
    assert await asyncio.to_thread((made / "made").read_text) == "out"


async def test_exit_codes_and_stops_are_told_as_they_are(
    client: AsyncClient, batch: Batch, tmp_path: Path
) -> None:
    failed = await submit(client, batch, tmp_path, "raise SystemExit(3)")
    await failed.wait(PATIENCE)
    assert failed.state == "FAILED"
    (only,) = await attempts_of(failed)
    assert only.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE
    assert "3" in only.cause.message
    cancelled = await submit(client, batch, tmp_path, "import time; time.sleep(600)")
    await until(lambda: batch.reclaimer.running(), patience=60.0)
    await cancelled.cancel()
    await cancelled.wait(PATIENCE)
    assert cancelled.state == "CANCELLED"


async def test_shards_that_lose_their_hosts_go_on_from_their_checkpoints(
    client: AsyncClient, batch: Batch, tmp_path: Path
) -> None:
    job = await submit(client, batch, tmp_path, SHARD, SHARDS)
    warned, taken = await eventually(lambda: two_with_checkpoints(job), PATIENCE)
    await asyncio.to_thread(batch.reclaimer.warn, warned)
    await asyncio.to_thread(batch.reclaimer.take, taken)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
    attempts = await attempts_of(job)
    causes = {one.external_name: one.cause.code for one in attempts if one.cause.code}
    assert causes == {  # the runner of the warned one told so itself
        warned: common_pb2.CAUSE_CODE_SPOT_RECLAIMED,
        taken: common_pb2.CAUSE_CODE_SPOT_RECLAIMED,
    }
    assert len(attempts) == SHARDS + 2
    made = [await job.outputs(tmp_path / f"{n}", index=n) for n in range(SHARDS)]
    read = [await asyncio.to_thread((one / "shard").read_text) for one in made]
    assert read == [str(n) for n in range(SHARDS)]
