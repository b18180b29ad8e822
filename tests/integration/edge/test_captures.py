"""What a model on a device is asked while nobody hears of it comes with the link, and is data."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from bed_device import FarMachine
from edge_world import World
from waiting import eventually

from hatoba.v1 import dataset_pb2, deployment_pb2, device_pb2

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SEEN = "reader-seen"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ASK = """
import json, sys, urllib.request
address, body, trace = sys.argv[1:]
ask = urllib.request.Request(f"http://{address}/predict", body.encode(), method="POST")
ask.add_header("content-type", "application/json")
if trace:
    ask.add_header("traceparent", trace)
with urllib.request.urlopen(ask) as reply:
    print(reply.headers.get("hatoba-trace-id", ""))
"""


async def test_inputs_and_traces_of_a_device_that_is_away_come_over_a_power_cut(
    world: World,
) -> None:
    shop = await world.device("shop")
    await world.deploy(await world.model("one"), captured_in=SEEN)
    await world.until_runs(shop, 1)
    assert shop.link is not None
    await asyncio.to_thread(shop.link.cut)
    bodies = [json.dumps({"number": number}) for number in (1, 22, 333)]
    ids = [await ask(world, shop, body) for body in bodies[:2]]
    assert await ask(world, shop, bodies[2], f"00-{TRACE}-{SPAN}-01") == TRACE
    await eventually(lambda: on_its_disk(shop))
    await asyncio.to_thread(shop.power_cut)
    await asyncio.to_thread(shop.link.mend)
    await asyncio.to_thread(shop.boot)

    async def captured() -> dict[str, dataset_pb2.DatasetItem] | None:
        told = await items(world)
        return told if {*ids, TRACE} <= told.keys() else None

    found = await eventually(captured, 90.0)
    assert {one.media_type for one in found.values()} == {"application/json"}
    await eventually(lambda: all_bytes(world, [len(body) for body in bodies]))
    facts = found[TRACE].attributes.fields
    assert facts["device"].string_value == "devices/shop"
    assert facts["prediction"].struct_value.fields["name"].string_value == "one"
    explained = await world.wire.once(
        deployment_pb2.ExplainPredictionRequest(name=TRACE), deployment_pb2.PredictionExplanation
    )
    assert explained.prediction.replica == "devices/shop"
    assert explained.model_version.name.endswith("/versions/1")
    assert [one.parent_span_id for one in explained.spans] == [SPAN]
    await told_without_bodies(world, {*ids, TRACE})


async def ask(world: World, machine: FarMachine, body: str, trace: str = "") -> str:
    """Ask its model, on the machine; the id by which that can be explained."""
    await world.answer(machine)
    address = (await world.slot(machine))["address"]
    command = machine.command(machine.system.python, "-c", ASK, address, body, trace)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


async def on_its_disk(machine: FarMachine) -> bool:
    """Whether the agent has taken all that the model server kept."""

    def look() -> bool:
        root: Path = machine.seen
        return not any(root.rglob("kept.*"))

    return await asyncio.to_thread(look)


async def items(world: World) -> dict[str, dataset_pb2.DatasetItem]:
    """What is in the dataset, by id."""
    request = dataset_pb2.ListDatasetItemsRequest(name=SEEN, head=True)
    try:
        reply = await world.wire.once(request, dataset_pb2.ListDatasetItemsResponse)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            # It is made by the first item.
            return {}
        raise
    return {one.id: one for one in reply.items}


async def all_bytes(world: World, sizes: list[int]) -> bool:
    """Whether the dataset has inputs of these sizes; all others are `{}`."""
    told = await world.wire.once(
        dataset_pb2.ListDatasetsRequest(), dataset_pb2.ListDatasetsResponse
    )
    (dataset,) = told.datasets
    return dataset.head_bytes == sum(sizes) + 2 * (dataset.head_items - len(sizes))


async def told_without_bodies(world: World, ids: set[str]) -> None:
    """Among the device's records stands what was predicted, and not of what."""
    request = device_pb2.ListDeviceRecordsRequest(
        name="shop", kind=device_pb2.DEVICE_RECORD_KIND_PREDICTION
    )
    told = await world.wire.once(request, device_pb2.ListDeviceRecordsResponse)
    kept = [one.record.prediction for one in told.records]
    assert {one.trace_id for one in kept} >= ids
    assert not any(one.HasField("captured") for one in kept)
