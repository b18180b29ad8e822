"""Replicas of a real model server, through crashes, hangs and deaths of everyone around them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import aiohttp
import pytest
from replica_house import (
    DRAINING,
    GONE,
    STARTING,
    UNHEALTHY,
    ReplicaHouse,
    predict,
)
from server_process import runs
from waiting import PATIENCE, until

from hatoba.v1 import common_pb2, worker_pb2


async def test_a_replica_becomes_ready_and_answers(house: ReplicaHouse) -> None:
    house.secret("token", "hidden")
    spec = house.spec(GREETING="hello")
    spec.secrets.add(name="token", env="TOKEN")
    spec.resources.cpus = 0.5
    house.order(spec)
    ready = await house.ready(spec)
    assert next(one.state for one in house.reports(spec.name)) == STARTING
    assert (ready.restarts, ready.revision, ready.host) == (0, 1, "host-1")
    assert ready.resources.cpus == 0.5
    assert not ready.HasField("cause")
    answer = await predict(ready.address, x=2)
    assert answer["y"] == 7
    env = answer["env"]
    assert env["GREETING"] == "hello"
    assert env["TOKEN"] == "hidden"
    assert env["HATOBA_DEPLOYMENT"] == "projects/default/deployments/adder"
    assert env["HATOBA_REVISION"] == "1"
    assert env["HATOBA_MODEL_VERSION"] == "projects/default/models/adder/versions/3"
    assert env["HATOBA_ATTEMPT"].startswith(spec.name)


async def test_one_that_crashes_is_started_again(house: ReplicaHouse) -> None:
    spec = house.spec()
    house.order(spec)
    first = await house.ready(spec)
    with pytest.raises(aiohttp.ClientError):
        await predict(first.address, do="crash")
    down = await house.state(spec, UNHEALTHY)
    assert down.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE
    assert down.cause.exit_code == 3
    assert "about to crash" in down.cause.last_log_lines[-1]
    assert not down.address
    again = await house.ready(spec, restarts=1)
    assert again.address
    assert again.cause.exit_code == 3
    assert (await predict(again.address, x=1))["y"] == 6


async def test_one_that_never_comes_up_says_why(house: ReplicaHouse) -> None:
    spec = house.spec(ON_LOAD="crash")
    house.order(spec)
    await house.heard.until(
        lambda: house.now(spec.name).cause.code == common_pb2.CAUSE_CODE_CRASH_LOOP
    )
    cause = house.now(spec.name).cause
    assert "in a row" in cause.message
    assert any("no luck at load" in line for line in cause.last_log_lines)
    house.order()
    await house.state(spec, GONE)


async def test_one_whose_example_fails_is_not_ready(house: ReplicaHouse) -> None:
    spec = house.spec(example={"z": 1})
    house.order(spec)
    down = await house.state(spec, UNHEALTHY)
    assert down.cause.code == common_pb2.CAUSE_CODE_PREDICTIONS_FAIL
    assert "no x" in down.cause.message
    assert not down.restarts


async def test_one_that_cannot_be_brought_in_says_why(house: ReplicaHouse) -> None:
    spec = house.spec()
    spec.secrets.add(name="nowhere")
    other = house.spec()
    other.model.digest = "sha256:" + "0" * 64
    house.order(spec, other)
    down = await house.state(spec, UNHEALTHY)
    assert down.cause.code == common_pb2.CAUSE_CODE_SECRET_MISSING
    assert "nowhere" in down.cause.message
    down = await house.state(other, UNHEALTHY)
    assert down.cause.code == common_pb2.CAUSE_CODE_STAGING_FAILED
    # Once the secret is there, the next try succeeds.
    await asyncio.to_thread(house.secret, "nowhere", "here")
    await house.ready(spec)


async def test_one_that_hangs_is_killed_and_started_again(house: ReplicaHouse) -> None:
    spec = house.spec()
    house.order(spec)
    first = await house.ready(spec)
    pid = (await predict(first.address, x=1))["pid"]
    os.kill(pid, signal.SIGSTOP)
    again = await house.ready(spec, restarts=1)
    assert again.cause.code == common_pb2.CAUSE_CODE_NOT_READY
    assert "killed" in again.cause.message
    assert not await house.alive(pid)


async def test_one_that_uses_too_much_memory_says_so(house: ReplicaHouse) -> None:
    spec = house.spec()
    spec.resources.memory_bytes = 400 << 20
    house.order(spec)
    first = await house.ready(spec)
    with pytest.raises(aiohttp.ClientError):
        await predict(first.address, do="eat", x=1)
    again = await house.ready(spec, restarts=1)
    assert again.cause.code == common_pb2.CAUSE_CODE_OUT_OF_MEMORY
    assert "400 MiB" in again.cause.message


async def test_one_that_is_let_go_finishes_what_it_has(house: ReplicaHouse) -> None:
    spec, other = house.spec(), house.spec()
    house.order(spec, other)
    first = await house.ready(spec)
    await house.ready(other)
    async with asyncio.TaskGroup() as tasks:
        asked = predict(first.address, do="wait", seconds=1.0, x=1)
        slow = tasks.create_task(asked, name="slow")
        await until(lambda: (house.replica_home(spec) / "code" / "waiting").exists())
        house.order(worker_pb2.ReplicaSpec(name=other.name))
        await house.state(spec, DRAINING)
    assert slow.result()["y"] == 6
    await house.state(spec, GONE)
    await house.vanished(spec)
    assert (await predict((await house.ready(other)).address, x=1))["y"] == 6


async def test_replicas_outlive_a_killed_worker_and_are_adopted(house: ReplicaHouse) -> None:
    spec = house.spec()
    house.order(spec)
    before = await house.ready(spec)
    pid = (await predict(before.address, x=1))["pid"]
    await house.kill_worker()
    assert (await predict(before.address, x=1))["pid"] == pid
    count = len(house.reports(spec.name))
    await house.start_worker()
    await house.heard.until(lambda: len(house.reports(spec.name)) > count)
    after = house.reports(spec.name)[count]
    assert (after.state, after.address, after.restarts) == (before.state, before.address, 0)
    assert (await predict(after.address, x=1))["pid"] == pid


async def test_a_crash_while_the_worker_is_dead_is_made_good(house: ReplicaHouse) -> None:
    spec = house.spec()
    house.order(spec)
    first = await house.ready(spec)
    await house.kill_worker()
    with pytest.raises(aiohttp.ClientError):
        await predict(first.address, do="crash")
    await house.start_worker()
    again = await house.ready(spec, restarts=1)
    assert again.cause.exit_code == 3


async def test_a_crash_while_the_server_is_away_is_made_good(house: ReplicaHouse) -> None:
    spec = house.spec()
    house.order(spec)
    first = await house.ready(spec)
    await house.server.stop()
    with pytest.raises(aiohttp.ClientError):
        await predict(first.address, do="crash")
    async with asyncio.timeout(PATIENCE):
        await _ready_by_itself(house.replica_home(spec) / "ready-2.json")
    await house.server.start()
    again = await house.ready(spec, restarts=1)
    assert (await predict(again.address, x=1))["y"] == 6


async def _ready_by_itself(ready_file: Path) -> None:
    await until(ready_file.exists)


async def test_the_order_is_kept_to_over_a_restart_with_the_server_away(
    house: ReplicaHouse,
) -> None:
    spec, gone = house.spec(), house.spec()
    house.order(spec, gone)
    await house.ready(spec)
    pid = (await predict((await house.ready(gone)).address, x=1))["pid"]
    house.order(spec)
    await house.state(gone, DRAINING)
    await house.kill_worker()
    await house.start_worker()
    await house.vanished(gone)
    assert not await house.alive(pid)
    assert (await predict((await house.ready(spec)).address, x=1))["y"] == 6


async def test_an_older_order_changes_nothing(house: ReplicaHouse) -> None:
    spec = house.spec()
    number = house.order(spec)
    await house.ready(spec)
    old = worker_pb2.ReplicaOrder(order=number)
    house.server.send(worker_pb2.ServerItem(replicas=old))
    other = house.spec()
    house.order(spec, other)
    await house.ready(other)
    assert not [one for one in house.reports(spec.name) if one.state in (DRAINING, GONE)]


async def test_a_dead_keeper_costs_a_restart(house: ReplicaHouse) -> None:
    spec = house.spec()
    house.order(spec)
    first = await house.ready(spec)
    pid = (await predict(first.address, x=1))["pid"]
    await house.kill_keeper()
    again = await house.ready(spec, restarts=1)
    assert not await asyncio.to_thread(runs, pid)
    assert again.cause.code == common_pb2.CAUSE_CODE_LOST
    assert (await predict(again.address, x=1))["y"] == 6


async def test_the_last_lines_of_a_log_can_be_seen(house: ReplicaHouse) -> None:
    spec = house.spec()
    house.order(spec)
    await house.ready(spec)
    for request, replica in ((1, spec.name), (2, "r-unknown")):
        look = worker_pb2.TailReplica(request=request, replica=replica, stream="stderr", lines=10)
        house.server.send(worker_pb2.ServerItem(tail=look))
    await house.heard.until(lambda: len(house.heard.all("tail")) == 2)
    told = {one.request: one.data for one in house.heard.all("tail")}
    assert f"loading {spec.name}".encode() in told[1]
    assert told[2] == b""


async def test_start_to_ready_is_quick(house: ReplicaHouse) -> None:
    """From the order to READY; the floor with numpy is measured by the benchmark."""
    warm = house.spec()
    house.order(warm)
    await house.ready(warm)
    loop = asyncio.get_running_loop()
    spec = house.spec()
    began = loop.time()
    house.order(warm, spec)
    await house.ready(spec)
    took = loop.time() - began
    print(f"start to ready: {took:.3f} s")
    assert took < PATIENCE / 2
