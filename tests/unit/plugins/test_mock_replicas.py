"""What the mock's deployments do beside the contract: scripts, faults on demand, the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from opened_backend import context

from hatoba.v1 import common_pb2, worker_pb2
from hatoba_plugins import errors
from hatoba_plugins.backend import DeploymentBackend
from hatoba_plugins.backends.mock import MockOptions, MockType, MockWorld, read_ledger
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import ReplicaPhase, ReplicaSet, RevisionTarget, Target

UID = "a" * 32


@asynccontextmanager
async def opened(world: MockWorld, clock: FakeClock) -> AsyncIterator[DeploymentBackend]:
    async with MockType(world).open("test", MockOptions(), context(clock)) as backend:
        assert backend.deployments is not None
        yield backend.deployments


def target(generation: int, *counts: int, script: str = "{}") -> Target:
    template = worker_pb2.ReplicaSpec(env={"MOCK_REPLICA": script})
    revisions = (RevisionTarget(at + 1, n, 100, template) for at, n in enumerate(counts))
    return Target("projects/default/deployments/d", UID, generation, tuple(revisions))


async def seen(role: DeploymentBackend) -> ReplicaSet:
    first = await anext(aiter(role.watch()))
    assert isinstance(first, ReplicaSet)
    return first


async def phases(role: DeploymentBackend) -> list[ReplicaPhase]:
    return [one.phase for one in (await seen(role)).replicas]


async def test_a_replica_lives_by_its_script() -> None:
    clock, script = (
        FakeClock(),
        '{"starts_in": 2, "crash_after": 5, "crashes": 1, "restarts_in": 3}',
    )
    async with opened(MockWorld(), clock) as role:
        await role.apply(target(1, 1, script=script))
        told = []
        for seconds in (0.0, 2.0, 5.0, 3.0, 2.0, 100.0):
            await clock.advance(seconds)
            told += await phases(role)
        (one,) = (await seen(role)).replicas
    starting, ready, down = ReplicaPhase.STARTING, ReplicaPhase.READY, ReplicaPhase.UNHEALTHY
    assert told == [starting, ready, down, starting, ready, ready]
    assert one.cause is not None
    assert (one.restarts, one.cause.code) == (1, common_pb2.CAUSE_CODE_EXIT_CODE)


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ("{", "not JSON"),
        ("[]", "an object"),
        ('{"starts": 1}', "'starts' is unknown"),
        ('{"starts_in": -1}', "starts_in must be float"),
        ('{"starts_in": true}', "starts_in must be float"),
        ('{"crashes": 1.5}', "crashes must be int"),
        ('{"never_ready": 1}', "never_ready must be bool"),
        ('{"drains_for": NaN}', "drains_for must be float"),
    ],
)
async def test_a_wrong_script_is_invalid(script: str, word: str) -> None:
    async with opened(MockWorld(), FakeClock()) as role:
        with pytest.raises(errors.Invalid, match=word):
            await role.apply(target(1, 1, script=script))
        assert [one async for one in role.owned("c")] == []


async def test_a_test_crashes_a_replica_when_it_wants_to() -> None:
    clock, world = FakeClock(), MockWorld()
    async with opened(world, clock) as role:
        await role.apply(target(1, 1))
        await clock.advance(0.0)
        (one,) = (await seen(role)).replicas
        world.crash_replica(one.name)
        assert await phases(role) == [ReplicaPhase.UNHEALTHY]
        await clock.advance(1.0)
        assert await phases(role) == [ReplicaPhase.READY]


async def test_without_room_it_says_why_and_goes_on_when_there_is() -> None:
    clock, world = FakeClock(), MockWorld()
    async with opened(world, clock) as role:
        world.refuse_replicas("no host has 8 GPUs")
        await role.apply(target(1, 2))
        full = await seen(role)
        world.refuse_replicas("")
        await clock.advance(0.0)
        assert await phases(role) == [ReplicaPhase.READY] * 2
        assert (await seen(role)).problem is None
    assert full.problem is not None
    assert (full.problem.message, full.replicas) == ("no host has 8 GPUs", ())


async def test_another_mock_goes_on_from_the_ledger(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    script = '{"starts_in": 1, "drains_for": 10}'
    async with opened(MockWorld(path), clock) as role:
        await role.apply(target(1, 2, script=script))
        await clock.advance(1.0)
        await role.apply(target(2, 0, 2, script=script))
        await clock.advance(1.0)
        before = await seen(role)
        await role.retire(UID, sorted(before.leaving))
        before = await seen(role)
    async with opened(MockWorld(path), clock) as role:
        assert await seen(role) == before
        with pytest.raises(errors.Stale):
            await role.apply(target(1, 2))
        await clock.advance(10.0)
        assert ReplicaPhase.DRAINING not in await phases(role)
    made = [e.name for e in await asyncio.to_thread(read_ledger, path) if e.event == "replica"]
    assert len(made) == len(set(made)) == 4


async def test_another_mock_knows_what_was_removed(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    async with opened(MockWorld(path), clock) as role:
        await role.apply(target(1, 1))
        await role.remove(UID, None)
    async with opened(MockWorld(path), clock) as role:
        assert [one async for one in role.owned("c")] == []
        with pytest.raises(errors.Stale):
            await role.apply(target(2, 1))


async def test_a_muted_watch_says_nothing() -> None:
    clock, world = FakeClock(), MockWorld()
    async with opened(world, clock) as role:
        watch = role.watch()
        await anext(aiter(watch))
        world.mute_watches()
        await role.apply(target(1, 1))
        await clock.advance(1.0)
        world.mute_watches(False)
        await role.apply(target(2, 1))
        told = await anext(aiter(watch))
    assert isinstance(told, ReplicaSet)
    assert told.generation == 2
