"""What users of a served model notice of roll-outs, broken models and dying servers: nothing."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import aiohttp
import pytest
from google.protobuf import field_mask_pb2
from server_process import HatobaServer, running_server
from serving_house import Tally, asking, deployed, registered, router_of, settled
from waiting import eventually, until
from wire import Wire

from hatoba.v1 import common_pb2, deployment_pb2, worker_pb2

pytestmark = pytest.mark.timeout(240)
CLIENTS = 20


def spec(model: str, replicas: int = 2) -> deployment_pb2.DeploymentSpec:
    """A deployment that goes on quickly."""
    wanted = deployment_pb2.DeploymentSpec(model=model, replicas=replicas)
    wanted.strategy.bake.FromSeconds(2)
    wanted.strategy.ready_deadline.FromSeconds(10)
    return wanted


async def changed(wire: Wire, wanted: deployment_pb2.DeploymentSpec, *fields: str) -> None:
    """Update the deployment."""
    mask = field_mask_pb2.FieldMask(paths=fields)
    request = deployment_pb2.UpdateDeploymentRequest(name="reader", spec=wanted, update_mask=mask)
    await wire.call(request, deployment_pb2.Deployment)


async def answered(tally: Tally, more: int, patience: float = 60.0) -> None:
    """Wait until so many more requests were answered."""
    goal = tally.answered + more
    await tally.news.until(lambda: tally.answered >= goal, patience)


@pytest.mark.slow
async def test_rolling_updates_lose_no_request(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path, full_round: bool
) -> None:
    first, second = [await registered(own_wire, tmp_path) for _ in range(2)]
    await deployed(own_wire, spec(first.name))
    seconds = 30.0 if full_round else 6.0
    began = time.monotonic()
    async with asking(own_server, CLIENTS) as tally:
        await answered(tally, 100)
        rounds = 0
        while rounds < 1 or time.monotonic() < began + seconds:
            model = (second, first)[rounds % 2]
            await changed(own_wire, spec(model.name), "model")
            found = await settled(own_wire, "reader")
            assert found.rollout.state == deployment_pb2.ROLLOUT_STATE_SUCCEEDED, found
            assert [one.model_version for one in found.revisions] == [model.name]
            rounds += 1
        await answered(tally, 100)
    assert tally.failures == []
    assert len(tally.revisions()) == rounds + 1
    print(f"{rounds} updates, {tally.answered} answered, longest {tally.longest * 1e3:.0f} ms")


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("never-ready", common_pb2.CAUSE_CODE_NOT_READY),
        ("crashes", common_pb2.CAUSE_CODE_CRASH_LOOP),
        ("predict-fails", common_pb2.CAUSE_CODE_PREDICTIONS_FAIL),
        ("answers-wrongly", common_pb2.CAUSE_CODE_PREDICTIONS_FAIL),
    ],
)
async def test_a_broken_revision_is_rolled_back(
    how: str,
    cause: common_pb2.CauseCode.ValueType,
    own_server: HatobaServer,
    own_wire: Wire,
    tmp_path: Path,
) -> None:
    version = await registered(own_wire, tmp_path)
    await deployed(own_wire, spec(version.name))
    broken = spec(version.name)
    broken.env["BREAK"] = how
    async with asking(own_server, CLIENTS) as tally:
        await answered(tally, 100)
        await changed(own_wire, broken, "env")
        found = await settled(own_wire, "reader")
        await answered(tally, 100)
    assert found.rollout.state == deployment_pb2.ROLLOUT_STATE_ROLLED_BACK, found
    assert found.rollout.cause.code == cause, found.rollout
    assert found.current_revision == 1
    assert [one.revision for one in found.revisions] == [1]
    # Of a replica that dies, what it was working on is lost: at most one request of each client.
    allowed = CLIENTS * 4 if how == "crashes" else 0
    assert len(tally.failures) <= allowed, tally.failures[:5]
    assert all(failure.startswith("502") for failure in tally.failures), tally.failures[:5]
    lines = "\n".join(found.rollout.cause.last_log_lines)
    if how == "predict-fails":
        assert "these weights are of another model" in lines + found.rollout.cause.message
    if how == "answers-wrongly":
        assert "golden case 1" in found.rollout.cause.message
        assert "$.x is 4, expected 3" in found.rollout.cause.message
    if how == "crashes":
        assert "a segmentation fault, nearly" in lines


@pytest.mark.slow
async def test_predictions_outlive_the_server(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path, full_round: bool
) -> None:
    version = await registered(own_wire, tmp_path)
    await deployed(own_wire, spec(version.name))
    many = 10_000 if full_round else 1_000
    async with asking(own_server, CLIENTS) as tally:
        await answered(tally, many)
        await own_server.kill()
        await answered(tally, many)
        await own_server.start()
        await answered(tally, many)
        found = await settled(own_wire, "reader")
        await answered(tally, 100)
    assert tally.failures == []
    assert found.state == deployment_pb2.DEPLOYMENT_STATE_READY
    assert {replica.restarts for replica in found.replicas} == {0}
    print(f"{tally.answered} answered, longest {tally.longest * 1e3:.0f} ms")


async def test_replicas_say_what_they_were_promised_and_which_gpus_are_theirs(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    await asyncio.to_thread(data.mkdir, mode=0o700)
    # Counted, not found: more than any machine of tests has.
    await asyncio.to_thread((data / "worker.json").write_text, '{"gpus": 64}')
    async with running_server(data) as server, Wire(server) as wire:
        wanted = spec((await registered(wire, tmp_path)).name)
        wanted.resources.CopyFrom(common_pb2.Resources(cpus=0.1, gpus=3))
        found = await deployed(wire, wanted)
        assert [one.resources for one in found.replicas] == [wanted.resources] * 2
        held = [gpu for one in found.replicas for gpu in one.gpus]
        assert len(held) == len(set(held)) == 6
        told = await wire.call(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
        assert set(held) <= set(told.hosts[0].gpus)


async def test_a_router_comes_back_from_its_table(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    version = await registered(own_wire, tmp_path)
    await deployed(own_wire, spec(version.name))
    await own_server.kill()
    began = time.monotonic()
    router = await own_server.kill_router()
    await until_served(own_server)
    took = time.monotonic() - began
    assert await asyncio.to_thread(own_server.router_pid) not in (0, router)
    print(f"the router was back after {took:.2f} s")
    await own_server.start()


async def until_served(server: HatobaServer, patience: float = 20.0) -> None:
    """Ask until an answer comes."""
    url = f"http://{router_of(server)}/reader/predict"
    headers = {"authorization": f"Bearer {await asyncio.to_thread(server.token)}"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def served() -> bool:
            async with session.post(url, json={"x": 1}) as reply:
                return reply.status == 200

        await eventually(served, patience, despite=(aiohttp.ClientError,))


async def test_what_is_deleted_leaves_nothing(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    version = await registered(own_wire, tmp_path)
    await deployed(own_wire, spec(version.name))
    await own_wire.call(
        deployment_pb2.DeleteDeploymentRequest(name="reader"), deployment_pb2.Deployment
    )
    await until(lambda: not any("hatoba_worker.serving" in line for line in own_server.left()))
    url = f"http://{router_of(own_server)}/reader/predict"
    headers = {"authorization": f"Bearer {await asyncio.to_thread(own_server.token)}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(url, json={"x": 1}) as reply,
    ):
        assert reply.status == 404
        assert "reader" in json.dumps(await reply.json())
