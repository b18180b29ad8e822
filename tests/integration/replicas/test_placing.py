"""Deployments on hosts: the real hub and backend, hosts played by the test."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fake_hosts import (
    DRAINING,
    READY,
    STARTING,
    UID,
    UNHEALTHY,
    FakeHost,
    KeptHosts,
    attempt,
    committed,
    core_on,
    revision_of,
    target,
    template,
)

from hatoba.v1 import common_pb2, worker_pb2
from hatoba_plugins.backends.hosts import HostsOptions
from hatoba_plugins.errors import Invalid, Retry, Stale
from hatoba_plugins.values import NotYet, Released, ReplicaPhase, ReplicaSet, Share
from hatoba_scheduler.domain.records import Resources
from hatoba_scheduler.domain.states import Release


def phases(seen: ReplicaSet) -> list[ReplicaPhase]:
    """The phases of all replicas."""
    return [one.phase for one in seen.replicas]


def ready(seen: ReplicaSet) -> int:
    """How many are ready."""
    return phases(seen).count(ReplicaPhase.READY)


# -- placing ------------------------------------------------------------------------------------


async def test_replicas_are_spread_over_hosts() -> None:
    async with core_on() as core:
        hosts = [FakeHost("one"), FakeHost("two"), FakeHost("three")]
        for host in hosts:
            await host.connect(core.hub)
        await core.apply(target({1: 6}))
        await core.obey(*hosts)
        assert [len(host.has) for host in hosts] == [2, 2, 2]
        seen = await core.seen()
        assert ready(seen) == 6
        assert all(one.address and one.host for one in seen.replicas)
        assert seen.problem is None


async def test_a_replica_goes_where_it_fits_and_a_host_is_never_overfull() -> None:
    async with core_on() as core:
        small, large = FakeHost("small", cpus=1.0), FakeHost("large", cpus=4.0)
        for host in (small, large):
            await host.connect(core.hub)
        needs = common_pb2.Resources(cpus=1.5)
        await core.apply(target({1: 3}, made_from=template(resources=needs)))
        await core.obey(small, large)
        assert (len(small.has), len(large.has)) == (0, 2)
        problem = (await core.seen()).problem
        assert problem is not None
        assert problem.code == common_pb2.CAUSE_CODE_NO_CAPACITY
        assert "1.5 cpus" in problem.message
        assert "large: 1 cpus free" in problem.message
        # A host that comes makes it good, without being asked again.
        third = FakeHost("third")
        await third.connect(core.hub)
        await core.settle()
        await core.obey(third)
        assert len(third.has) == 1
        assert (await core.seen()).problem is None


async def test_gpus_are_given_once() -> None:
    async with core_on() as core:
        host = FakeHost("gpus", gpus=["0", "1", "2"])
        await host.connect(core.hub)
        needs = common_pb2.Resources(gpus=1)
        await core.apply(target({1: 3}, made_from=template(resources=needs)))
        await core.obey(host)
        given = [list(spec.gpus) for spec in host.specs.values()]
        assert sorted(given) == [["0"], ["1"], ["2"]]
        assert core.hub.snapshot().pools[0].gpu_ids == ()


async def test_what_replicas_need_is_held_back_from_jobs() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        needs = common_pb2.Resources(cpus=1.5, memory_bytes=1 << 30)
        await core.apply(target({1: 2}, made_from=template(resources=needs)))
        # From the order on, not from the report on.
        assert core.hub.snapshot().pools[0].total == Share(1.0, 6 << 30, 0, 8)
        await core.obey(host)
        assert core.hub.snapshot().pools[0].total == Share(1.0, 6 << 30, 0, 8)
        assert core.hub.held_of("one")[0].cpus == 3.0
        await core.apply(target({1: 1}, 2, made_from=template(resources=needs)))
        await core.retire_all()
        # It drains: what it has is not free yet.
        assert core.hub.snapshot().pools[0].total.cpus == 1.0
        await core.obey(host)
        assert core.hub.snapshot().pools[0].total.cpus == 2.5


async def test_special_needs_choose_the_host() -> None:
    async with core_on() as core:
        plain, embedded = FakeHost("plain"), FakeHost("embedded", embedded=True)
        keeper = FakeHost("keeper", secrets=["token"])
        for host in (plain, embedded, keeper):
            await host.connect(core.hub)
        mine = template()
        mine.serving.environment.caller_interpreter = "/usr/bin/python3"
        await core.apply(target({1: 2}, made_from=mine))
        secret = template()
        secret.secrets.add(name="token")
        await core.apply(target({1: 2, 2: 2}, 2, made_from=secret))
        await core.obey(plain, embedded, keeper)
        assert (len(plain.has), len(embedded.has), len(keeper.has)) == (0, 2, 2)


async def test_a_cordoned_host_gets_none_and_keeps_its_own() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 1}))
        await core.obey(host)
        await core.hub.cordon("one", True)
        await core.apply(target({1: 2}, 2))
        await core.obey(host)
        seen = await core.seen()
        assert ready(seen) == 1
        assert seen.problem is not None
        assert "takes no work" in seen.problem.message
        await core.hub.cordon("one", False)
        await core.settle()
        await core.obey(host)
        assert ready(await core.seen()) == 2


async def test_replicas_leave_a_drained_host_once_others_are_ready() -> None:
    one, two = FakeHost("one"), FakeHost("two")
    async with core_on() as core:
        for host in (one, two):
            await host.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(one, two)
        (first,) = one.has
        await core.hub.cordon("one", True, drain=True)
        await core.settle()
        # Another is made beside it; until that is ready nothing leaves.
        await core.obey(two, state=STARTING)
        assert (await core.seen()).leaving == frozenset()
        assert ready(await core.seen()) == 2
        for name in list(two.has):
            two.put(name, READY)
        await core.settle()
        assert (await core.seen()).leaving == {first}
        await core.retire_all()
        await core.obey(one, two)
        seen = await core.seen()
        assert (ready(seen), [view.host for view in seen.replicas]) == (2, ["two", "two"])


async def test_a_drained_host_keeps_what_fits_nowhere_else() -> None:
    one = FakeHost("one")
    async with core_on() as core:
        await one.connect(core.hub)
        await core.apply(target({1: 1}))
        await core.obey(one)
        await core.hub.cordon("one", True, drain=True)
        await core.settle()
        seen = await core.seen()
        assert (ready(seen), seen.leaving) == (1, frozenset())
        assert seen.problem is not None
        assert seen.problem.code == common_pb2.CAUSE_CODE_NO_CAPACITY
        # Taken back: nothing has to be made any more.
        await core.hub.cordon("one", False)
        await core.settle()
        assert (await core.seen()).problem is None


async def test_what_jobs_hold_is_not_there_for_replicas() -> None:
    async with core_on() as core:
        host = FakeHost("one", gpus=["0", "1"])
        await host.connect(core.hub)
        job = attempt("a-1", "one", Resources(3.0, 0, 1), gpus=("0",))
        await core.hub.recover([job])
        needs = common_pb2.Resources(cpus=1.0, gpus=1)
        await core.apply(target({1: 2}, made_from=template(resources=needs)))
        await core.obey(host)
        assert [list(one.gpus) for one in host.specs.values()] == [["1"]]
        assert core.hub.held_of("one") == (Resources(4.0, 0, 2), 1)
        problem = (await core.seen()).problem
        assert problem is not None
        assert "one: 0 cpus, 0 gpus free" in problem.message
        ended = replace(job, release=Release.RELEASED)
        core.hub.on_commit([committed(ended)], [])
        await core.settle()
        await core.obey(host)
        assert sorted(list(one.gpus) for one in host.specs.values()) == [["0"], ["1"]]
        assert core.hub.held_of("one") == (Resources(2.0, 0, 2), 0)


def test_how_long_a_host_may_be_away_is_an_option() -> None:
    assert HostsOptions.check({"away_after": 5}) == []
    assert [one.field for one in HostsOptions.check({"away_after": 0})] == ["away_after"]
    assert [one.field for one in HostsOptions.check({"away_after": "long"})] == ["away_after"]


# -- replacing ----------------------------------------------------------------------------------


async def test_a_new_revision_takes_over_one_by_one() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 3}))
        await core.obey(host)
        await core.apply(target({2: 3}, 2))
        for _ in range(10):
            await core.obey(host)
            seen = await core.seen()
            staying = [one for one in seen.replicas if one.name not in seen.leaving]
            assert sum(one.phase is ReplicaPhase.READY for one in staying) >= 3
            assert sum(one.phase is not ReplicaPhase.DRAINING for one in seen.replicas) <= 4
            await core.retire_all()
        assert [revision_of(name) for name in host.has] == [2, 2, 2]


async def test_only_what_leaves_can_be_retired() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(host)
        await core.role.retire(UID, list(host.has))
        await core.role.retire("f" * 32, list(host.has))
        await core.obey(host)
        assert ready(await core.seen()) == 2


async def test_one_that_drains_is_told_until_it_is_gone() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(host)
        await core.apply(target({1: 1}, 2))
        (gone,) = (await core.seen()).leaving
        await core.retire_all()
        host.put(gone, DRAINING)
        await core.settle()
        assert sorted(p.value for p in phases(await core.seen())) == ["draining", "ready"]
        await core.obey(host)
        assert phases(await core.seen()) == [ReplicaPhase.READY]


# -- refusing -----------------------------------------------------------------------------------


async def test_what_can_never_run_is_refused() -> None:
    async with core_on() as core:
        bare = worker_pb2.ReplicaSpec()
        with pytest.raises(Invalid, match="handler"):
            await core.role.apply(target({1: 1}, made_from=bare))
        assert [one async for one in core.role.owned("cluster")] == []


async def test_an_older_generation_is_stale() -> None:
    async with core_on() as core:
        await core.apply(target({1: 1}, 3))
        with pytest.raises(Stale):
            await core.role.apply(target({1: 1}, 2))
        await core.role.apply(target({1: 1}, 3))


# -- removing -----------------------------------------------------------------------------------


async def test_a_removal_is_over_when_no_host_has_anything_left() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(host, state=STARTING)
        assert isinstance(await core.role.remove(UID, None), NotYet)
        assert phases(await core.seen()) == [ReplicaPhase.DRAINING] * 2
        await core.obey(host)
        assert isinstance(await core.role.remove(UID, None), Released)
        assert not (await core.seen()).replicas
        with pytest.raises(Stale, match="removed"):
            await core.role.apply(target({1: 1}, 9))


async def test_a_removal_waits_for_an_order_that_is_on_its_way() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 1}))
        assert isinstance(await core.role.remove(UID, None), NotYet)
        await core.obey(host)
        assert isinstance(await core.role.remove(UID, None), Released)
        assert not host.has


# -- restarts of the core -----------------------------------------------------------------------


async def test_replicas_are_adopted_after_a_restart() -> None:
    store, host = KeptHosts(), FakeHost("one", gpus=["0", "1"])
    needs = template(resources=common_pb2.Resources(gpus=1))
    async with core_on(store) as core:
        await host.connect(core.hub)
        await core.apply(target({1: 2}, made_from=needs))
        await core.obey(host)
    names, orders = set(host.has), host.order
    async with core_on(store) as core:
        await core.apply(target({1: 2}, made_from=needs))
        async with asyncio.TaskGroup() as tasks:
            # Nothing is told before the host has said what it has.
            seen = tasks.create_task(core.seen(), name="watch")
            await core.settle()
            assert not seen.done()
            await host.connect(core.hub)
        assert {one.name for one in seen.result().replicas} == names
        await core.settle()
        await core.obey(host)
        assert set(host.has) == names
        assert host.order > orders
        assert {one.name for one in (await core.seen()).replicas} == names
        assert core.hub.snapshot().pools[0].gpu_ids == ()
        await core.apply(target({2: 2}, 2, made_from=needs, max_unavailable=1, max_surge=0))
        for _ in range(8):
            await core.retire_all()
            await core.obey(host)
        assert [revision_of(name) for name in host.has] == [2, 2]


async def test_replicas_of_what_was_not_applied_yet_are_kept() -> None:
    store, host = KeptHosts(), FakeHost("one")
    async with core_on(store) as core:
        await host.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(host)
    names = set(host.has)
    async with core_on(store) as core:
        await host.connect(core.hub)
        await core.settle()
        other = target({1: 1})
        await core.apply(type(other)(other.deployment, "f" * 32, 1, other.revisions))
        await core.obey(host)
        assert names < set(host.has)
        owned = [one async for one in core.role.owned("cluster")]
        assert {one.uid for one in owned} == {UID, "f" * 32}
        await core.role.remove(UID, None)
        await core.obey(host)
        assert not names & set(host.has)


async def test_a_host_that_never_comes_back_is_waited_for_only_so_long() -> None:
    store, gone, here = KeptHosts(), FakeHost("gone"), FakeHost("here")
    async with core_on(store) as core:
        await gone.connect(core.hub)
    async with core_on(store) as core:
        await here.connect(core.hub)
        await core.apply(target({1: 1}))
        assert not here.orders()
        await core.clock.advance(31.0)
        await core.obey(here)
        assert ready(await core.seen()) == 1


# -- hosts that go away -------------------------------------------------------------------------


async def test_a_host_away_for_long_is_replaced_and_loses_its_surplus_when_it_returns() -> None:
    async with core_on() as core:
        one, two = FakeHost("one"), FakeHost("two")
        await one.connect(core.hub)
        await two.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(one, two)
        await two.leave()
        await core.clock.advance(20.0)
        assert ready(await core.seen()) == 2
        await core.clock.advance(15.0)
        seen = await core.seen()
        assert ready(seen) == 1
        (down,) = [each for each in seen.replicas if each.host == "two"]
        assert down.phase is ReplicaPhase.UNHEALTHY
        assert down.cause is not None
        assert down.cause.code == common_pb2.CAUSE_CODE_HOST_LOST
        await core.obey(one)
        assert ready(await core.seen()) == 2
        await two.connect(core.hub)
        await core.settle()
        seen = await core.seen()
        assert ready(seen) == 3
        assert len(seen.leaving) == 1
        await core.retire_all()
        await core.obey(one, two)
        assert ready(await core.seen()) == 2


async def test_with_nowhere_else_to_go_replicas_come_back_with_their_host() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(host)
        names = set(host.has)
        await host.leave()
        await core.clock.advance(60.0)
        seen = await core.seen()
        assert ready(seen) == 0
        assert seen.problem is not None
        assert "not connected" in seen.problem.message
        await host.connect(core.hub)
        await core.settle()
        await core.obey(host)
        seen = await core.seen()
        assert {one.name for one in seen.replicas} == names
        assert ready(seen) == 2
        assert seen.problem is None


async def test_a_host_that_lost_its_disk_makes_its_replicas_again() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 2}))
        await core.obey(host)
        names = set(host.has)
        await host.leave()
        host.has, host.order = {}, 0
        await host.connect(core.hub, report=False)
        await core.settle()
        # What it is ordered depends on what it says that it has.
        assert not host.orders()
        host.report()
        await core.settle()
        await core.obey(host)
        assert set(host.has) == names


async def test_large_orders_come_in_parts() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        large = template()
        large.serving.example.data = bytes(250 << 10)
        await core.apply(target({1: 8}, made_from=large))
        orders = host.orders()
        assert len(orders) == 2, [len(order.replicas) for order in orders]
        assert all(order.ByteSize() < 2 << 20 for order in orders)
        assert len(orders[-1].replicas) == 8
        first = {spec.name for spec in orders[0].replicas}
        assert first == {s.name for s in orders[1].replicas if not s.serving.handler}


async def test_a_host_declared_gone_has_nothing() -> None:
    async with core_on() as core:
        one, two = FakeHost("one"), FakeHost("two")
        await one.connect(core.hub)
        await core.apply(target({1: 1}))
        await core.obey(one)
        await two.connect(core.hub)
        await one.leave()
        await core.hub.declare_gone("one")
        await core.settle()
        await core.obey(two)
        seen = await core.seen()
        assert [each.host for each in seen.replicas] == ["two"]
        await core.role.remove(UID, None)
        await core.obey(two)
        assert isinstance(await core.role.remove(UID, None), Released)


async def test_an_unhealthy_replica_tells_why() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 1}))
        await core.obey(host)
        (name,) = host.has
        host.has[name].cause.code = common_pb2.CAUSE_CODE_EXIT_CODE
        host.has[name].restarts = 2
        host.put(name, UNHEALTHY)
        await core.settle()
        (seen,) = (await core.seen()).replicas
        assert (seen.phase, seen.address, seen.restarts) == (ReplicaPhase.UNHEALTHY, "", 2)
        assert seen.cause is not None
        assert seen.cause.code == common_pb2.CAUSE_CODE_EXIT_CODE


# -- logs ---------------------------------------------------------------------------------------


async def test_logs_of_what_is_not_there_are_refused() -> None:
    async with core_on() as core:
        host = FakeHost("one")
        await host.connect(core.hub)
        await core.apply(target({1: 1}))
        await core.obey(host)
        (name,) = host.has
        with pytest.raises(Invalid, match="no host has"):
            await _logs(core.role.replica_logs("r-nothing", "stderr", 5))
        await host.leave()
        with pytest.raises(Retry, match="does not answer"):
            await _logs(core.role.replica_logs(name, "stderr", 5))


async def _logs(chunks: Any) -> list[Any]:
    return [chunk async for chunk in chunks]
