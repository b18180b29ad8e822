"""Models in images on a device: the agent as it is shipped, a real engine, a real registry."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import bed_groups
import grpc.aio
import pytest
from agent_house import PATIENCE
from bed_place import Place
from contained_house import WHOLE, ContainedHouse, ImageShop
from counting_link import CountingLink
from testbed_fixtures import DockerEngine, Testbed, own_testbed
from waiting import eventually, until

from hatoba.v1 import common_pb2, device_pb2, worker_pb2

# The last channel of a process that closes would join grpc's poller thread on the event loop.
grpc.aio.init_grpc_aio()

pytestmark = pytest.mark.timeout(300)

SOME = random.Random(11).randbytes(2_000_000)


@asynccontextmanager
async def on(house: ContainedHouse) -> AsyncIterator[ContainedHouse]:
    """A device that is enrolled, and its agent on."""
    try:
        await house.site.start()
        await house.enroll()
        await house.start()
        yield house
    finally:
        await house.close()
        await asyncio.to_thread(house.engine.clear)


@pytest.fixture
async def house(
    tmp_path: Path, docker_engine: DockerEngine, registry: str, link: CountingLink
) -> AsyncIterator[ContainedHouse]:
    """One that shares its engine with others."""
    at = f"127.0.0.1:{link.port}"
    made = await asyncio.to_thread(ContainedHouse, tmp_path, docker_engine, registry, at)
    async with on(made):
        yield made


async def made(shop: ImageShop, **files: bytes) -> str:
    return await asyncio.to_thread(shop.image, files)


async def wanted(
    house: ContainedHouse, image: str, revision: int, bias: int, **env: str
) -> worker_pb2.ReplicaSpec:
    return await asyncio.to_thread(lambda: house.contained(image, revision, bias, **env))


async def settled(house: ContainedHouse, spec: worker_pb2.ReplicaSpec) -> device_pb2.DeviceSlot:
    """What is told of it once it is decided."""
    await house.site.news.until(lambda: house.site.hellos, PATIENCE)
    (slot,) = (await house.settled(house.site.want(spec))).slots
    return slot


async def answers_again(house: ContainedHouse) -> None:
    """Wait until the first revision answers; what its agent wrote last may be of before."""

    async def asked() -> bool:
        return bool((await house.answers(2))["y"] == 7)

    assert await eventually(asked, PATIENCE, despite=(aiohttp.ClientError,))


async def running(house: ContainedHouse, image: str) -> str:
    """Have the first revision running, good; the container that answers."""
    slot = await settled(house, await wanted(house, image, 1, 5))
    assert (slot.phase, slot.running) == (device_pb2.SLOT_PHASE_GOOD, 1)
    assert (await house.answers(2))["y"] == 7
    (container,) = await asyncio.to_thread(house.engine.containers)
    return container


async def test_a_model_runs_in_its_image_with_few_rights(
    house: ContainedHouse, shop: ImageShop
) -> None:
    spec = await wanted(house, await made(shop, data=SOME), 1, 5)
    spec.resources.memory_bytes, spec.resources.cpus = 256 << 20, 0.5
    assert (await settled(house, spec)).phase == device_pb2.SLOT_PHASE_GOOD
    assert house.site.hellos[0].capacity.images
    answer = await house.answers(2)
    assert (answer["y"], answer["env"]["HATOBA_DEPLOYMENT"]) == (7, spec.deployment)
    (container,) = await asyncio.to_thread(house.engine.containers)
    seen = await asyncio.to_thread(house.engine.inspect, container)
    given = seen["HostConfig"]
    assert (given["Memory"], given["NanoCpus"]) == (256 << 20, 500_000_000)
    assert (given["ReadonlyRootfs"], given["CapDrop"]) == (True, ["ALL"])
    assert given["SecurityOpt"] == ["no-new-privileges"]
    assert given["PidsLimit"] > 0
    assert seen["Config"]["User"] not in ("", "0", "root")
    mounts = {one["Destination"]: one for one in seen["Mounts"]}
    for tree in ("model", "code"):
        assert not mounts[f"/hatoba/attempt/{tree}"]["RW"]
    assert not any("docker.sock" in one["Source"] for one in mounts.values())
    (port,) = seen["NetworkSettings"]["Ports"]["8080/tcp"]
    slot = await asyncio.to_thread(house.slot)
    assert slot["address"] == f"127.0.0.1:{port['HostPort']}"


async def test_new_weights_move_chunks_and_no_layer(
    house: ContainedHouse, shop: ImageShop, link: CountingLink
) -> None:
    image = await made(shop)
    first = await running(house, image)
    carried, sent = link.carried, house.site.sent
    slot = await settled(house, await wanted(house, image, 2, 50))
    assert slot.running == 2
    await until(lambda: house.slot().get("running") == 2)
    assert (await house.answers(2))["y"] == 52
    assert link.carried == carried
    assert house.site.sent > sent
    (container,) = await asyncio.to_thread(house.engine.containers)
    assert container != first


async def test_a_link_that_breaks_in_the_middle_of_an_image_is_gone_on_with(
    house: ContainedHouse, shop: ImageShop, link: CountingLink
) -> None:
    image = await made(shop, data=SOME)
    size = await asyncio.to_thread(shop.size, image)
    link.cut_at = [size // 2]
    await running(house, image)
    assert link.cut_at == []
    assert link.carried <= 1.05 * size


async def test_an_image_for_another_machine_is_refused_with_both_named(
    house: ContainedHouse, shop: ImageShop, link: CountingLink
) -> None:
    spec = await wanted(house, await made(shop), 1, 5)
    spec.architecture = "arm64"
    sent = house.site.sent
    slot = await settled(house, spec)
    assert slot.phase == device_pb2.SLOT_PHASE_BAD
    assert slot.cause.code == common_pb2.CAUSE_CODE_IMAGE_ARCHITECTURE
    assert slot.cause.message == "the image is for arm64, this device is amd64"
    assert (link.carried, house.site.sent) == (0, sent)


async def test_what_runs_is_left_alone_when_the_agent_dies(
    house: ContainedHouse, shop: ImageShop
) -> None:
    first = await running(house, await made(shop))
    pid = (await house.answers(2))["pid"]
    await house.kill()
    told = len(house.site.reports)
    await house.start()
    assert (await house.answers(2))["pid"] == pid
    assert await asyncio.to_thread(house.engine.containers) == [first]
    await house.site.news.until(lambda: len(house.site.reports) > told, PATIENCE)
    assert house.site.report.settled


async def test_a_container_that_is_killed_is_started_again(
    house: ContainedHouse, shop: ImageShop, docker_engine: DockerEngine
) -> None:
    first = await running(house, await made(shop))
    await asyncio.to_thread(docker_engine.docker, "kill", first)
    await until(lambda: house.engine.containers() not in ([], [first]))
    await answers_again(house)


async def test_what_has_no_python_is_told_as_that(
    house: ContainedHouse, shop: ImageShop, docker_engine: DockerEngine
) -> None:
    bare = await asyncio.to_thread(shop.pushed, docker_engine.busybox)
    slot = await settled(house, await wanted(house, bare, 1, 5))
    assert slot.phase == device_pb2.SLOT_PHASE_BAD
    assert slot.cause.code == common_pb2.CAUSE_CODE_COMMAND_NOT_FOUND


async def test_who_takes_too_much_memory_is_told_as_that(
    house: ContainedHouse, shop: ImageShop
) -> None:
    spec = await wanted(house, await made(shop), 1, 5)
    spec.resources.memory_bytes = 128 << 20
    spec.serving.example.data = b'{"do": "eat"}'
    slot = await settled(house, spec)
    assert slot.phase == device_pb2.SLOT_PHASE_BAD
    assert slot.cause.code == common_pb2.CAUSE_CODE_OUT_OF_MEMORY


async def test_what_is_wanted_no_more_leaves_nothing(
    house: ContainedHouse, shop: ImageShop
) -> None:
    image = await made(shop)
    await running(house, image)
    report = await house.settled(house.site.want())
    assert list(report.slots) == []
    assert await asyncio.to_thread(house.engine.containers, "--all") == []
    assert not await asyncio.to_thread(house.engine.has, image)


async def test_what_was_good_is_kept_until_something_else_is(
    house: ContainedHouse, shop: ImageShop
) -> None:
    good, bad, better = [await made(shop, data=name) for name in (b"1", b"2", b"3")]
    await running(house, good)
    slot = await settled(house, await wanted(house, bad, 2, 50, ON_LOAD="crash"))
    assert slot.phase == device_pb2.SLOT_PHASE_BAD
    assert "no luck at load" in " ".join(slot.cause.last_log_lines)
    await answers_again(house)
    assert await asyncio.to_thread(house.engine.has, good)
    slot = await settled(house, await wanted(house, better, 3, 60))
    assert slot.running == 3
    assert await asyncio.to_thread(lambda: [house.engine.has(one) for one in (good, bad)]) == [
        False,
        False,
    ]
    assert await asyncio.to_thread(house.engine.has, better)


async def test_a_good_image_that_is_damaged_is_found_and_brought_anew(
    house: ContainedHouse, shop: ImageShop, docker_engine: DockerEngine, link: CountingLink
) -> None:
    image = await made(shop)
    first = await running(house, image)
    carried = link.carried
    file = await asyncio.to_thread(house.engine.file, image, WHOLE)
    await asyncio.to_thread(file.write_bytes, b"")
    await asyncio.to_thread(docker_engine.docker, "kill", first)
    await until(lambda: link.carried > carried, PATIENCE)
    await answers_again(house)


# -- power ----------------------------------------------------------------------------------------


class OwnEngine:
    """An engine that nobody else uses, so that its power can be cut. Calls block."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.docker = bed.docker_engine()

    def power_cut(self) -> None:
        """kill -9 of the engine and of all that runs in it."""
        bed_groups.kill(bed_groups.name(Place(self.bed.directory), "docker"))

    def start(self) -> None:
        """Power is there again: what its disk had it has."""
        self.docker = self.bed.docker_engine()


@pytest.fixture
def own(bed_place: Path) -> Iterator[OwnEngine]:
    with own_testbed(bed_place) as bed:
        yield OwnEngine(bed)


@contextlib.asynccontextmanager
async def powered(
    root: Path, own: OwnEngine, registry: str, link: CountingLink
) -> AsyncIterator[ContainedHouse]:
    at = f"127.0.0.1:{link.port}"
    house = await asyncio.to_thread(ContainedHouse, root, own.docker, registry, at)
    async with on(house):
        yield house


async def test_after_a_power_cut_it_runs_again_without_any_network(
    tmp_path: Path, own: OwnEngine, registry: str, shop: ImageShop, link: CountingLink
) -> None:
    async with powered(tmp_path, own, registry, link) as house:
        first = await running(house, await made(shop))
        carried = link.carried
        await house.site.stop()
        await asyncio.gather(house.power_cut(), asyncio.to_thread(own.power_cut))
        # The agent is there first, as it may be when a machine boots.
        await house.start()
        await asyncio.to_thread(own.start)
        await until(lambda: house.engine.containers() not in ([], [first]), PATIENCE)
        await answers_again(house)
        assert link.carried == carried
        assert len(await asyncio.to_thread(house.engine.containers, "--all")) == 1


async def test_when_the_engine_is_started_anew_so_is_what_ran_in_it(
    tmp_path: Path, own: OwnEngine, registry: str, shop: ImageShop, link: CountingLink
) -> None:
    async with powered(tmp_path, own, registry, link) as house:
        first = await running(house, await made(shop))
        await asyncio.to_thread(own.power_cut)
        await asyncio.to_thread(own.start)
        await until(lambda: house.engine.containers() not in ([], [first]), PATIENCE)
        await answers_again(house)
