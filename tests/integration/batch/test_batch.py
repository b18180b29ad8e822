"""Batch inference, as it is used: a model over a dataset in shards, into a dataset of predictions.

A real server and worker earn their place: what is shown is that shards, retries, outputs and
publishing fit together, and that a kill between them loses nothing and doubles nothing.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from batch_desk import Desk, sitting
from command_line import CommandLine
from server_process import HatobaServer
from trees import put_tree
from wire import Wire

from hatoba.errors import FailedPrecondition, InvalidRequest, InvalidSpec, NotFound
from hatoba.v1 import common_pb2, model_pb2

SUCCEEDED = common_pb2.JOB_STATE_SUCCEEDED
FAILED = common_pb2.JOB_STATE_FAILED


def numbers(count: int, **odd: dict[str, Any]) -> list[dict[str, Any]]:
    """Inputs `{"value": n}`; `i7={"bad": True}` makes the one of that number an odd one."""
    return [{"value": n} | odd.get(f"i{n}", {}) for n in range(count)]


async def attempts(desk: Desk, job: str) -> Counter[int]:
    """How often each task was tried."""
    return Counter(one.index for one in await desk.wire.attempts(job))


async def test_four_shards_become_one_version_in_order(desk: Desk) -> None:
    model, data = await desk.model(), await desk.dataset(numbers(1_797))
    job = await desk.client.predict_batch(model, data, shards=4)
    record = await job.wait(60)
    assert record.state == SUCCEEDED, record.cause
    name = data.removesuffix(":1") + "-predictions"
    assert record.published == f"projects/default/datasets/{name}/versions/1"
    assert record.summary == "1,797 of 1,797, 0 errors"
    assert record.spec.name == f"predict-{model.removesuffix(':1')}"
    version, items = await desk.version(f"{name}:1"), await desk.items(f"{name}:1")
    assert [item["id"] for item in items] == [f"item-{n:05}" for n in range(1_797)]
    assert [item["attributes"]["prediction"] for item in items] == [2 * n for n in range(1_797)]
    assert (version.item_count, version.item_labels["3"], version.job) == (1_797, 180, record.name)
    assert version.model_version.endswith(f"/models/{model.removesuffix(':1')}/versions/1")
    assert version.made_from == [f"projects/default/datasets/{data.removesuffix(':1')}/versions/1"]
    assert await attempts(desk, record.name) == {0: 1, 1: 1, 2: 1, 3: 1}


async def test_a_failed_shard_alone_runs_again(desk: Desk, tmp_path: Path) -> None:
    odd = {"i25": {"kill_once": str(tmp_path / "mark")}}
    model, data = await desk.model(), await desk.dataset(numbers(40, **odd))
    job = await desk.client.predict_batch(model, data, shards=4)
    record = await job.wait(60)
    assert (record.state, record.summary) == (SUCCEEDED, "40 of 40, 0 errors")
    assert await attempts(desk, record.name) == {0: 1, 1: 1, 2: 2, 3: 1}
    ids = [item["id"] for item in await desk.items(record.published)]
    assert ids == [f"item-{n:05}" for n in range(40)]


async def test_errors_are_recorded_where_they_may_be(desk: Desk) -> None:
    odd = {"i17": {"bad": True}, "i9042": {"bad": True}}
    model, data = await desk.model(), await desk.dataset(numbers(10_000, **odd))
    job = await desk.client.predict_batch(
        model, data, shards=3, on_item_error="record", max_errors=2, to="kept"
    )
    record = await job.wait(60)
    assert record.summary == "9,998 of 10,000, 2 errors"
    assert record.published.startswith("projects/default/datasets/kept/versions/")
    items = await desk.items(record.published)
    assert len(items) == 10_000
    bad = [item["id"] for item in items if "error" in item["attributes"]]
    assert bad == ["item-00017", "item-09042"]


async def test_too_many_errors_publish_nothing(desk: Desk) -> None:
    """No shard has too many, all together have."""
    odd = {f"i{n}": {"bad": True} for n in (1, 11)}
    model, data = await desk.model(), await desk.dataset(numbers(20, **odd))
    job = await desk.client.predict_batch(
        model, data, shards=2, on_item_error="record", max_errors=1
    )
    record = await job.wait(60)
    assert (record.state, record.summary) == (SUCCEEDED, "18 of 20, 2 errors")
    assert record.published.startswith("not published: 2 items failed, and 1 may")
    with pytest.raises(NotFound):
        await desk.client.datasets.get(data.removesuffix(":1") + "-predictions")


async def test_an_error_that_may_not_be_fails_its_shard(desk: Desk) -> None:
    model, data = await desk.model(), await desk.dataset(numbers(8, i6={"bad": True}))
    job = await desk.client.predict_batch(model, data, shards=2, retries=0)
    record = await job.wait(60)
    assert (record.state, record.published) == (FAILED, "")
    assert "this one is bad" in "\n".join(record.cause.last_log_lines)
    assert await attempts(desk, record.name) == {0: 1, 1: 1}


async def test_there_may_be_more_shards_than_items(desk: Desk) -> None:
    model, data = await desk.model(), await desk.dataset(numbers(2))
    record = await (await desk.client.predict_batch(model, data, shards=5)).wait(60)
    assert (record.state, record.summary) == (SUCCEEDED, "2 of 2, 0 errors")
    assert [i["attributes"]["prediction"] for i in await desk.items(record.published)] == [0, 2]


async def test_files_are_items_too(desk: Desk) -> None:
    """A dataset that says nothing of its items: one for each file."""
    files = {f"{n}.json": b'{"value": %d}' % n for n in range(3)}
    model, data = await desk.model(), await desk.dataset([], files)
    record = await (await desk.client.predict_batch(model, data)).wait(60)
    assert record.state == SUCCEEDED, record.cause
    found = [(i["id"], i["attributes"]["prediction"]) for i in await desk.items(record.published)]
    assert found == [("0.json", 0), ("1.json", 2), ("2.json", 4)]


async def test_killed_between_the_end_and_the_publishing_it_publishes_once(
    own_server: HatobaServer, own_wire: Wire
) -> None:
    """kill -9 as soon as the job's end is known, until that was before the publishing."""
    async with sitting(own_server, own_wire) as desk:
        model, data = await desk.model(), await desk.dataset(numbers(3_000))
    for number in range(1, 11):
        async with sitting(own_server, own_wire) as desk:
            to = f"once-{number}"
            job = await desk.client.predict_batch(model, data, shards=2, to=to)
            await own_wire.ended(job.record.name)
            await own_server.kill()
        due = await asyncio.to_thread(_due, own_server.data)
        await own_server.start()
        async with sitting(own_server, own_wire) as desk:
            ended = await (await desk.client.job(job.record.name)).wait(60)
            assert ended.published.endswith(f"/{to}/versions/1")
            assert len(await desk.versions(to)) == 1
            assert len(await desk.items(ended.published)) == 3_000
        if due == [ended.uid]:
            return
    raise AssertionError("the publishing was always quicker than the kill")


def _due(data: Path) -> list[str]:
    with closing(sqlite3.connect(data / "hatoba.db")) as connection:
        found = connection.execute("SELECT job_uid FROM publications WHERE done = 0")
        return [uid for (uid,) in found]


# -- what cannot be -----------------------------------------------------------------------------


async def test_what_cannot_predict_is_refused_before_anything_runs(desk: Desk) -> None:
    model, data = await desk.model(), await desk.dataset(numbers(1))
    predict = desk.client.predict_batch
    with pytest.raises(NotFound, match="no-such"):
        await predict("no-such:1", data)
    with pytest.raises(NotFound, match="no-such"):
        await predict(model, "no-such:1")
    with pytest.raises(InvalidSpec, match="shards must be 1 to"):
        await predict(model, data, shards=0)
    with pytest.raises(InvalidSpec, match="max_errors counts recorded errors"):
        await predict(model, data, max_errors=1)
    with pytest.raises(InvalidRequest, match="dataset"):
        await predict(model, data, to="No Name")


async def test_a_model_without_a_handler_is_refused(desk: Desk) -> None:
    data = await desk.dataset(numbers(1))
    request = model_pb2.RegisterModelRequest(model="plain")
    request.manifest.CopyFrom(await put_tree(desk.wire, {"weights": b"1"}))
    await desk.wire.once(request, model_pb2.ModelVersion)
    with pytest.raises(FailedPrecondition, match="plain:1"):
        await desk.client.predict_batch("plain:1", data)


# -- the command line ---------------------------------------------------------------------------


async def test_the_command_follows_and_says_what_became_of_it(
    desk: Desk, server: HatobaServer, tmp_path: Path
) -> None:
    model, data = await desk.model(), await desk.dataset(numbers(1_000, i3={"bad": True}))
    said = ["predict", model, "--dataset", data, "--shards", "2", "--on-item-error", "record"]
    code, _, err = await CommandLine(server, tmp_path)(*said)
    assert code == 0, err
    assert "999 of 1,000, 1 error" in err
    assert f"published  {data.removesuffix(':1')}-predictions:1" in err
    code, _, err = await CommandLine(server, tmp_path)(*said, "--max-errors", "0", "--to", "none")
    assert code != 0
    code, out, err = await CommandLine(server, tmp_path)(*said, "--detach", "--to", "later")
    assert (code, out.strip().rpartition("-")[0]) == (0, f"predict-{model.removesuffix(':1')}")
