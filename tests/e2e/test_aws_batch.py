"""Batch inference on AWS Batch, as a user does it: of eight containers two lose their hosts."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from aws_site import EXAMPLE, PATIENCE, AwsSite, site
from digits_image import digits_image
from waiting import eventually
from wire import Wire

from hatoba.v1 import common_pb2

__all__ = ["digits_image", "site"]
pytestmark = pytest.mark.timeout(1500)
SHARDS = 8
PIXELS = [n % 16 / 16 for n in range(64)]
# So slow that nobody is done before the first two are taken away.
SLOW = """
import time
import serve

class Digits(serve.Digits):
    def predict_batch(self, batch):
        time.sleep(0.03 * len(batch))
        return super().predict_batch(batch)
"""


async def model(site: AwsSite, image: str) -> None:
    """Train on this machine, and register what came of it for containers: digits:1."""
    code = site.type.work / "code"
    await asyncio.to_thread(shutil.copytree, EXAMPLE, code)
    await asyncio.to_thread((code / "slow.py").write_text, SLOW)
    trained = ["run", "--backend", "local", "--code", str(code), "-p", "epochs=4", "--name", "fit"]
    await site.done(*trained, "--", "python", "train.py")
    await site.done("jobs", "outputs", "fit-1", "weights")
    served = ["--image", image, "--code", str(code), "--handler", "slow:Digits"]
    asked = ["--example", json.dumps({"pixels": PIXELS})]
    made = await site.told("models", "register", "digits", "weights", *served, *asked)
    assert made["state"] == "READY", made


async def dataset(site: AwsSite) -> list[dict[str, Any]]:
    """The real images as a dataset: images:1; its items."""
    script = [sys.executable, str(EXAMPLE / "prepare.py"), str(site.type.work / "images")]
    process = await asyncio.create_subprocess_exec(*script, stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    folders = ["--split-from", "folders", "--labels-from", "folders"]
    await site.done("datasets", "push", "images", *folders)
    return await items(site, "images:1")


async def items(site: AwsSite, version: str) -> list[dict[str, Any]]:
    """The items of a dataset's version, in order."""
    return [
        json.loads(line)
        for line in (await site.done("datasets", "items", version, "-o", "json")).out.splitlines()
    ]


async def two_at_work(wire: Wire, job: str) -> list[str]:
    """Names of two attempts whose code runs; empty: there are none yet."""
    found = await wire.attempts(job)
    running = [one for one in found if one.state == common_pb2.ATTEMPT_STATE_RUNNING]
    return [one.external_name for one in running[:2]] if len(running) >= 2 else []


async def test_eight_shards_of_which_two_are_reclaimed(site: AwsSite, digits_image: str) -> None:
    await model(site, digits_image)
    wanted = await dataset(site)
    credentials = grpc.ssl_channel_credentials(
        await asyncio.to_thread(Path(site.server.ready["ca_file"]).read_bytes)
    )
    async with Wire(site.server, credentials=credentials) as wire, asyncio.TaskGroup() as tasks:
        words = ["predict", "digits:1", "--dataset", "images:1", "--name", "every"]
        words += ["--shards", str(SHARDS), "--backend", "batch", "--to", "answers"]
        predicting = tasks.create_task(site.done(*words), name="predict")
        job = "projects/default/jobs/every-1"
        warned, taken = await eventually(
            lambda: two_at_work(wire, job), PATIENCE, despite=(grpc.aio.AioRpcError,)
        )
        await asyncio.to_thread(site.reclaimer.warn, warned)
        await asyncio.to_thread(site.reclaimer.take, taken)
        await predicting
        attempts = await wire.attempts(job)
    lost = {one.external_name: one.cause.code for one in attempts if one.cause.code}
    reclaimed = common_pb2.CAUSE_CODE_SPOT_RECLAIMED
    assert lost == {warned: reclaimed, taken: reclaimed}
    assert sorted(Counter(one.index for one in attempts).values()) == [1] * 6 + [2] * 2
    _complete_and_in_order(wanted, await items(site, "answers:1"))


def _complete_and_in_order(wanted: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    assert len(wanted) == 1797
    assert [one["id"] for one in answers] == [one["id"] for one in wanted]
    right = sum(
        one["attributes"]["prediction"]["digit"] == int(one["attributes"]["label"])
        for one in answers
    )
    assert right / len(answers) > 0.9
