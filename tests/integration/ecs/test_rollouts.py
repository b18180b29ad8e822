"""Roll-outs on ministack's real services: what ECS does by itself, and what is made of it."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from aiohttp import web
from aws_proxy import AwsProxy
from ecs_harness import EcsReplicaHarness
from ecs_yard import ecs

from hatoba.v1 import common_pb2
from hatoba_plugins.backends.ecs.names import service_name
from hatoba_plugins.conformance.fleets import Fleet, Wish, bounded, deployed
from hatoba_plugins.conformance.proxy import Call, Json
from hatoba_plugins.errors import Conflict
from hatoba_plugins.values import ReplicaPhase, ReplicaView, RevisionTarget

pytestmark = pytest.mark.timeout(300)


@pytest.mark.asyncio
async def test_tasks_are_told_what_the_names_of_replicas_begin_with(
    harness: EcsReplicaHarness,
) -> None:
    async with deployed(harness) as fleet:
        wish = Wish()
        (name,) = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
        told = await asyncio.to_thread(_environment, harness, service_name(wish.uid, 1))
        assert name.startswith(f"{told['HATOBA_REPLICA_PREFIX']}-")


def _environment(harness: EcsReplicaHarness, service: str) -> dict[str, str]:
    client = ecs(harness.emulator)
    found = client.describe_services(cluster=harness.cluster, services=[service])["services"][0]
    made = client.describe_task_definition(taskDefinition=found["taskDefinition"])
    (container,) = made["taskDefinition"]["containerDefinitions"]
    return {one["name"]: one["value"] for one in container["environment"]}


def _missing(harness: EcsReplicaHarness, fleet: Fleet, number: int) -> RevisionTarget:
    """A revision whose image is not there."""
    made = fleet.revision(number, 1)
    made.template.serving.environment.image = f"{harness.image}-none"
    return made


@pytest.mark.asyncio
async def test_the_breaker_ends_a_broken_revision(harness: EcsReplicaHarness) -> None:
    async with deployed(harness) as fleet:
        wish = Wish()
        old = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
        await fleet.role.apply(wish.target(2, _missing(harness, fleet, 2)))
        await fleet.until(lambda: fleet.seen(wish.uid).problem is not None, "the breaker")
        problem = fleet.seen(wish.uid).problem
        assert problem is not None
        assert problem.code == common_pb2.CAUSE_CODE_CRASH_LOOP
        assert "circuit breaker of ECS gave up revision 2" in problem.message
        assert problem.evidence["rollout"] == "failed"
        await fleet.until(lambda: bool(_broken(fleet, wish, 2)), "a replica with the cause")
        assert fleet.ready(wish.uid) == old, "nothing was displaced"
        assert await fleet.settle(wish.target(3, fleet.revision(1, 1))) == old
        await fleet.until(lambda: fleet.seen(wish.uid).problem is None)


def _broken(fleet: Fleet, wish: Wish, number: int) -> list[ReplicaView]:
    """Replicas that are told to be hopeless."""
    return [
        one
        for one in fleet.seen(wish.uid).replicas
        if one.revision == number
        and one.phase is ReplicaPhase.UNHEALTHY
        and one.cause is not None
        and one.cause.code == common_pb2.CAUSE_CODE_CRASH_LOOP
    ]


@pytest.mark.asyncio
async def test_a_roll_back_by_ecs_is_reported_as_such(harness: EcsReplicaHarness) -> None:
    """The service is steady again, on what it had before: that is no success."""
    async with deployed(harness) as fleet:
        wish = Wish()
        first = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
        await fleet.role.apply(wish.target(2, _missing(harness, fleet, 1)))
        await fleet.until(lambda: fleet.seen(wish.uid).problem is not None, "the roll-back")
        problem = fleet.seen(wish.uid).problem
        assert problem is not None
        assert problem.evidence["rollout"] == "rolled_back"
        assert "rolled back revision 1" in problem.message
        assert fleet.ready(wish.uid) == first
        assert await fleet.settle(wish.target(3, fleet.revision(1, 1))) == first


@pytest.mark.asyncio
async def test_what_ends_again_and_again_is_told(harness: EcsReplicaHarness) -> None:
    """By the breaker, or by our own watchdog where tasks live long enough to count as healthy."""
    async with deployed(harness) as fleet:
        wish = Wish()
        target = wish.target(1, fleet.revision(1, 1))
        target.revisions[0].template.env["KIT_LIFE"] = "ends"
        await fleet.role.apply(target)
        await fleet.until(lambda: bool(_broken(fleet, wish, 1)))
        (one,) = _broken(fleet, wish, 1)
        assert one.cause is not None
        assert "It ended with exit code 7" in one.cause.message


@pytest.mark.asyncio
async def test_when_ecs_ends_another_one_the_retired_stays(harness: EcsReplicaHarness) -> None:
    """Though the other one is gone before anybody looks, none of the rest ends unasked for it."""
    async with deployed(harness) as fleet:
        wish = Wish()
        old = await fleet.settle(wish.target(1, fleet.revision(1, 3)))
        await fleet.role.apply(target := wish.target(2, fleet.revision(2, 3)))
        await fleet.until(lambda: bool(fleet.seen(wish.uid).leaving))
        (retired,) = fleet.seen(wish.uid).leaving
        begun, other = len(fleet.history), min(old - {retired})
        harness.proxy.order("updateservice", partial(_end_instead, harness, other))
        await fleet.role.retire(wish.uid, [retired])
        await fleet.until(lambda: other not in fleet.replicas(wish.uid), "it is gone")
        await fleet.until(lambda: bool(fleet.seen(wish.uid).leaving), "the next may go")
        assert await asyncio.to_thread(_desired, harness, service_name(wish.uid, 1)) == 2
        await fleet.exchange(target)
        over = [told for told in fleet.history[begun:] if told.uid == wish.uid]
        assert [told for told in over if not bounded(told, target)] == []
        assert len(fleet.ever(wish.uid)) == 6


async def _end_instead(
    harness: EcsReplicaHarness, replica: str, request: web.Request, call: Call
) -> web.StreamResponse:
    """As ECS may where nothing is protected: of those too many it ends this one."""
    del request
    await asyncio.to_thread(_stop, harness, replica)
    return await harness.proxy.forward(call)


def _stop(harness: EcsReplicaHarness, replica: str) -> None:
    client, first = ecs(harness.emulator), replica.rsplit("-", 1)[-1]
    tasks = client.list_tasks(cluster=harness.cluster)["taskArns"]
    (task,) = [arn for arn in tasks if arn.rsplit("/", 1)[-1].startswith(first)]
    client.stop_task(cluster=harness.cluster, task=task, reason="Service scaling down")


def _desired(harness: EcsReplicaHarness, service: str) -> int:
    told = ecs(harness.emulator).describe_services(cluster=harness.cluster, services=[service])
    return int(told["services"][0]["desiredCount"])


@pytest.mark.asyncio
async def test_what_has_crashed_and_has_no_task_is_removed(harness: EcsReplicaHarness) -> None:
    """Nobody waits for a task that would go on for it."""
    async with deployed(harness) as fleet:
        harness.proxy.rewrite.append(_hide_living)
        target = Wish().target(1, fleet.revision(1, 1))
        target.revisions[0].template.env["KIT_LIFE"] = "ends"
        await fleet.role.apply(target)
        await fleet.until(lambda: any(r.cause for r in fleet.seen(target.uid).replicas))
        await fleet.remove(target.uid)
        await fleet.until(lambda: not fleet.seen(target.uid).replicas)


async def _hide_living(proxy: AwsProxy, operation: str, asked: Json, reply: Json) -> None:
    """Its next task is never seen."""
    del proxy, asked
    if operation == "describetasks":
        reply["tasks"] = [one for one in reply["tasks"] if one["lastStatus"] == "STOPPED"]


@pytest.mark.asyncio
async def test_another_definition_of_one_revision_is_rolled_out_by_ecs(
    harness: EcsReplicaHarness,
) -> None:
    """The new task is ready before the old one ends, which is never told to leave."""
    async with deployed(harness) as fleet:
        wish = Wish()
        (old,) = await fleet.settle(wish.target(1, fleet.revision(1, 1)))
        changed = fleet.revision(1, 1)
        changed.template.env["OTHER"] = "1"
        begun = len(fleet.history)
        await fleet.role.apply(target := wish.target(2, changed))
        await fleet.until(lambda: old not in fleet.replicas(wish.uid) and fleet.settled(target))
        over = [told for told in fleet.history[begun:] if told.uid == wish.uid]
        assert all(told.ready(1) for told in over), "one was ready all the time"
        assert not any(told.leaving for told in over)


@pytest.mark.asyncio
async def test_a_service_of_somebody_else_is_left_alone(harness: EcsReplicaHarness) -> None:
    async with deployed(harness) as fleet:
        target = Wish().target(1, fleet.revision(1, 1))
        await asyncio.to_thread(_make_foreign, harness, service_name(target.uid, 1))
        with pytest.raises(Conflict, match="of somebody else"):
            await fleet.role.apply(target)
        assert target.uid not in await fleet.owned()


def _make_foreign(harness: EcsReplicaHarness, name: str) -> None:
    client = ecs(harness.emulator)
    container = {"name": "other", "image": harness.image, "command": ["serve"]}
    made = client.register_task_definition(family=name, containerDefinitions=[container])
    client.create_service(
        cluster=harness.cluster,
        serviceName=name,
        taskDefinition=made["taskDefinition"]["taskDefinitionArn"],
        desiredCount=0,
    )
