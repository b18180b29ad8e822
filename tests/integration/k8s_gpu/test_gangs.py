"""Gangs of three on a real kubelet, which find each other by the cluster's DNS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gang_desk import GangDesk, Member
from kube_house import PATIENCE, KubeHouse, housed
from kube_proxy import kube_proxy
from kube_yard import authority_of, through
from testbed_kubernetes import Kubernetes, Namespace
from waiting import until

from hatoba.aio import AsyncJob
from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.conformance.proxy import FaultProxy, kubernetes_refusal

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("cluster_dns")]
SIZE = 3
EVERY = list(range(SIZE))
MEMBER = Path(__file__).with_name("gang_member.py")
KINDS = "jobs,pods,services,secrets"


@dataclass
class Place:
    """The house, and the desk that its gangs know."""

    house: KubeHouse
    desk: GangDesk

    async def submit(self, **spec: Any) -> AsyncJob:
        """A gang whose members wait at the desk."""
        program = await asyncio.to_thread(MEMBER.read_text)
        asked = {"replicas": SIZE, "cpus": 0.1, "stop_grace": 2.0, **spec}
        return await self.house.submit(program, params={"desk": self.desk.address}, **asked)

    async def met(self, generation: int = 1) -> list[Member]:
        """The members of a generation, once all have met all."""
        members = await self.desk.until_met(generation, SIZE, PATIENCE)
        assert [one.met for one in members] == [EVERY] * SIZE
        return members

    async def ended_well(self, job: AsyncJob, generations: int) -> list[job_pb2.Attempt]:
        """It succeeded in the last of so many generations, of which none met another and each ran
        once; nothing is left. Its attempts.
        """
        await job.wait(PATIENCE)
        assert job.state == "SUCCEEDED", job.record
        assert dict(job.record.counts.by_state) == {"SUCCEEDED": SIZE}
        assert job.record.generation == generations
        assert self.desk.overlaps == []
        places = sorted(one.place for one in self.desk.members)
        assert places == [(number + 1, rank) for number in range(generations) for rank in EVERY]
        attempts = await self.house.attempts(job)
        expected = [(number + 1, index) for number in range(generations) for index in EVERY]
        assert sorted((one.number, one.index) for one in attempts) == expected
        assert all(one.number == one.generation for one in attempts)
        await self.until_nothing_is_left()
        return attempts

    async def logged(self, job: AsyncJob, generation: int) -> None:
        """Every member of a generation has its log."""
        logs = [await self.house.log(job, rank, generation) for rank in EVERY]
        firsts = [log.partition("\n")[0] for log in logs]
        assert firsts == [f"rank {rank} of generation {generation}" for rank in EVERY]

    async def until_nothing_is_left(self) -> None:
        """Return when what gangs have beside their Jobs is gone as well."""
        await until(lambda: not self.house.objects(KINDS), PATIENCE)


@pytest.fixture
async def place(house: KubeHouse) -> AsyncIterator[Place]:
    async with GangDesk.running(house.cluster.gateway) as desk:
        yield Place(house, desk)


@pytest.fixture
async def proxy(kubernetes: Kubernetes, namespace: Namespace) -> AsyncIterator[FaultProxy]:
    """What stands between the server of `behind` and the cluster."""
    authority = await asyncio.to_thread(authority_of, namespace.kubeconfig)
    async with kube_proxy(kubernetes.server, authority) as made:
        yield made


@pytest.fixture
async def behind(
    proxy: FaultProxy,
    kubernetes: Kubernetes,
    namespace: Namespace,
    runtime_image: str,
    tmp_path: Path,
) -> AsyncIterator[Place]:
    access = await asyncio.to_thread(through, proxy.endpoint, namespace.kubeconfig)
    async with (
        housed(kubernetes, namespace, runtime_image, tmp_path, access) as house,
        GangDesk.running(kubernetes.gateway) as desk,
    ):
        yield Place(house, desk)


async def dismissed(members: list[Member]) -> None:
    """All may end well."""
    for one in members:
        await one.end(0)


async def test_three_meet_by_their_names_and_leave_nothing(place: Place) -> None:
    job = await place.submit()
    members = await place.met()
    kinds = [one["kind"] for one in await asyncio.to_thread(place.house.objects, KINDS)]
    assert sorted(kinds) == ["Job", *["Pod"] * SIZE, "Secret", "Service"]

    addresses = members[0].told["addresses"]
    assert len(set(addresses)) == SIZE
    attempts = {one.index: one for one in await place.house.attempts(job)}
    for rank, member in enumerate(members):
        told, variables = member.told, member.told["variables"]
        assert (told["rank"], told["index"], told["size"], told["number"]) == (rank, rank, SIZE, 1)
        assert told["addresses"] == addresses
        assert f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}" == addresses[0]
        assert (variables["RANK"], variables["WORLD_SIZE"]) == (str(rank), str(SIZE))
        assert variables["LOCAL_RANK"] == "0"
        assert variables["HATOBA_ATTEMPT"] == attempts[rank].external_name
        assert attempts[rank].address == addresses[rank]

    await dismissed(members)
    await place.ended_well(job, 1)


async def test_a_member_that_fails_takes_all_down_and_all_begin_anew(place: Place) -> None:
    job = await place.submit(gang_policy="restart", retries=1)
    first = await place.met()
    await first[1].end(3)
    await place.desk.until_gone(first, PATIENCE)
    await dismissed(await place.met(2))
    attempts = await place.ended_well(job, 2)
    causes = {one.index: one.cause for one in attempts if one.generation == 1}
    assert causes[1].code == common_pb2.CAUSE_CODE_EXIT_CODE
    assert causes[1].exit_code == 3
    assert {causes[0].code, causes[2].code} == {common_pb2.CAUSE_CODE_GANG_FAILED}
    await place.logged(job, 1)
    await place.logged(job, 2)


async def test_when_a_members_pod_is_deleted_all_begin_anew(place: Place) -> None:
    job = await place.submit(gang_policy="restart")
    first = await place.met()
    name = place.house.namespace.name
    pods = await asyncio.to_thread(place.house.objects, "pods")
    index = "batch.kubernetes.io/job-completion-index"
    (pod,) = [one for one in pods if one["metadata"]["annotations"][index] == "2"]
    delete = ("delete", "pod", pod["metadata"]["name"], "-n", name, "--wait=false")
    await asyncio.to_thread(place.house.cluster.kubectl, *delete)
    await place.desk.until_gone(first, PATIENCE)
    await dismissed(await place.met(2))
    attempts = await place.ended_well(job, 2)
    causes = {one.index: one.cause.code for one in attempts if one.generation == 1}
    assert causes == {
        0: common_pb2.CAUSE_CODE_GANG_FAILED,
        1: common_pb2.CAUSE_CODE_GANG_FAILED,
        2: common_pb2.CAUSE_CODE_LOST,
    }


async def test_a_cancel_ends_all(place: Place) -> None:
    # On a busy machine a runner needs more than two seconds to have the last of the log away.
    job = await place.submit(gang_policy="restart", retries=1, stop_grace=15.0)
    members = await place.met()
    await job.cancel()
    await job.wait(PATIENCE)
    assert job.state == "CANCELLED"
    assert dict(job.record.counts.by_state) == {"CANCELLED": SIZE}
    await place.desk.until_gone(members, PATIENCE)
    assert len(place.desk.members) == SIZE
    await place.until_nothing_is_left()
    await place.logged(job, 1)


async def test_a_server_that_dies_meanwhile_lets_them_go_on(place: Place) -> None:
    job = await place.submit(gang_policy="restart", retries=1)
    members = await place.met()
    await place.house.server.kill()
    await dismissed(members)
    await place.desk.until_gone(members, PATIENCE)
    await place.house.server.start()
    await place.ended_well(job, 1)


async def test_a_server_that_dies_before_the_claims_are_there_launches_them_again(
    behind: Place, proxy: FaultProxy
) -> None:
    """Of the three objects of a gang two were made; no pod begins without the third."""
    proxy.hang("create secrets")
    job = await behind.submit(gang_policy="restart")
    await until(lambda: behind.house.objects("services"), PATIENCE)
    await behind.house.server.kill()
    kinds = [one["kind"] for one in await asyncio.to_thread(behind.house.objects, KINDS)]
    assert sorted(kinds) == ["Job", "Service"]
    await behind.house.server.start()
    await dismissed(await behind.met())
    await behind.ended_well(job, 1)


async def test_an_answer_that_says_nothing_is_asked_for_again(
    behind: Place, proxy: FaultProxy
) -> None:
    proxy.overload("create services")
    proxy.lose_reply("create secrets")
    proxy.lose_reply("patch jobs")
    job = await behind.submit(gang_policy="restart")
    await dismissed(await behind.met())
    await behind.ended_well(job, 1)


async def test_a_right_that_is_missing_refuses_the_gang_and_leaves_nothing(
    behind: Place, proxy: FaultProxy
) -> None:
    denied = kubernetes_refusal(403, "Forbidden", "secrets is forbidden")
    proxy.refuse("create secrets", denied)
    job = await behind.submit(gang_policy="restart")
    await job.wait(PATIENCE)
    assert job.state == "FAILED", job.record
    assert job.record.cause.code == common_pb2.CAUSE_CODE_REFUSED_DENIED
    assert "deploy/kubernetes/rbac.yaml" in job.record.cause.message
    assert len(await behind.house.attempts(job)) == SIZE
    assert behind.desk.members == []
    await behind.until_nothing_is_left()


async def test_members_meet_across_nodes(place: Place) -> None:
    nodes = {"node-1", await asyncio.to_thread(place.house.cluster.second_node)}
    job = await place.submit(replicas=2, apart=True)
    members = await place.desk.until_met(1, 2, PATIENCE)
    assert [one.met for one in members] == [[0, 1], [0, 1]]
    assert {one.host for one in await place.house.attempts(job)} == nodes
    await dismissed(members)
    await job.wait(PATIENCE)
    assert job.state == "SUCCEEDED", job.record
