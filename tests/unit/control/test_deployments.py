"""The book of deployments, the loop of a backend and the feed of routers, on a clock of ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from memory_deployments import MemoryDeployments, ScriptedBackend, Tokens, up
from rollout_rows import bare, revision, settings, version

from hatoba.v1 import deployment_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.errors import Invalid, NoCapacity, Stale
from hatoba_plugins.values import Gap, ReplicaPhase, ReplicaSet
from hatoba_scheduler.auth.roles import Role
from hatoba_scheduler.control import deployment_loop
from hatoba_scheduler.control.deployment_loop import DeploymentLoop
from hatoba_scheduler.control.deployments import DeploymentBook, Live
from hatoba_scheduler.control.routes import RouteFeed, Session
from hatoba_scheduler.domain.deployments import RolloutState
from hatoba_scheduler.domain.records import TokenRecord
from hatoba_scheduler.domain.rollouts import created, deleted, updated
from hatoba_scheduler.errors import AlreadyExists, Unavailable

Hello = deployment_pb2.WatchDeploymentsRequest
URL = "http://127.0.0.1:8000"


@dataclass
class House:
    """One server's part: store, book, feed and loop."""

    store: MemoryDeployments = field(default_factory=MemoryDeployments)
    backend: ScriptedBackend = field(default_factory=ScriptedBackend)
    clock: FakeClock = field(default_factory=FakeClock)
    tokens: Tokens = field(default_factory=Tokens)

    def __post_init__(self) -> None:
        """What a server makes of the store."""
        self.feed = RouteFeed(self.store.as_store(), self.tokens, self.clock)
        self.book = DeploymentBook(self.store.as_store(), self.feed, self.clock)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[House]:
        """Recovered, with its loop."""
        await self.feed.recover()
        await self.book.recover()
        loop = DeploymentLoop("mock", self.backend.as_backend(), self.book, self.feed, self.clock)
        loop.recover()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(loop.run(), name="loop")
            await self.turn()
            try:
                yield self
            finally:
                task.cancel()

    def after_restart(self) -> House:
        """Another server on the same store, clock and backend."""
        return House(self.store, ScriptedBackend(), self.clock)

    async def turn(self, seconds: float = 0.3) -> None:
        """Let everybody act, and a little time pass."""
        await self.clock.advance(seconds)

    async def deploy(self, name: str = "reader", **strategy: object) -> Live:
        """A new deployment."""
        uid = f"019a0000-0000-7000-8000-{len(self.store.kept) + 1:012}"
        new = bare(settings(**strategy), name=name, uid=uid)  # type: ignore[arg-type]
        first = revision(1)
        change = created(new, first, self.book.now("ann"))
        live, _ = await self.book.create(change, first, None)
        await self.turn()
        return live

    async def update(self, live: Live, number: int) -> None:
        """Another revision of it."""
        await self.book.change(
            live,
            lambda view: updated(
                view, view.deployment.settings, revision(number), "", self.book.now("ann")
            ),
        )
        await self.turn()

    async def ready(self, live: Live) -> None:
        """It is deployed, and all is well."""
        self.backend.show(up(1, 0), up(1, 1))
        await self.turn(6)
        assert live.deployment.rollout is not None
        assert live.deployment.rollout.state is RolloutState.SUCCEEDED

    async def router(self, name: str = "router-1", url: str = URL) -> Router:
        """A router that is connected."""
        session = await self.feed.open(Hello(router=name, url=url))
        return Router(self, session)

    def served(self, live: Live) -> list[str]:
        """Names of replicas in the table."""
        return [one.name for one in live.served]


@dataclass
class Router:
    """What one router was told."""

    house: House
    session: Session
    cursor: int = 0
    routes: dict[str, deployment_pb2.Route] = field(default_factory=dict)
    access: list[str] = field(default_factory=list)

    async def read(self) -> deployment_pb2.WatchDeploymentsResponse | None:
        """The next message, taken in; None when there is none now."""
        async for message in self.house.feed.messages(self.session):
            assert message.cursor > self.cursor
            self.cursor = message.cursor
            if message.complete:
                self.routes.clear()
            self.routes |= {one.deployment: one for one in message.routes}
            for name in message.removed:
                del self.routes[name]
            if message.access_changed:
                self.access = [one.sha256 for one in message.access]
            return message
        return None

    async def news(self) -> deployment_pb2.WatchDeploymentsResponse | None:
        """As `read`, without waiting."""
        try:
            async with asyncio.timeout(0.05):
                return await self.read()
        except TimeoutError:
            return None

    def ack(self) -> None:
        """It acts by what it was told."""
        self.house.feed.heard(self.session, self.cursor)

    def names(self, deployment: str = "projects/default/deployments/reader") -> list[str]:
        """Replicas that it would send requests to."""
        return [r.name for target in self.routes[deployment].targets for r in target.replicas]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A server's part, running."""
    async with House().running() as one:
        yield one


# -- applying and seeing ---------------------------------------------------------------------------


async def test_what_is_wanted_is_applied_and_what_is_ready_is_routed(house: House) -> None:
    live = await house.deploy()
    target = house.backend.newest
    assert (target.generation, target.wanted, target.revisions[0].template.revision) == (1, 2, 1)
    assert target.uid == "019a000000007000800000000000" + "0001"
    router = await house.router()
    first = await router.read()
    assert first is not None
    assert first.complete
    assert router.names() == []
    house.backend.show(up(1, 0), up(1, 1, phase=ReplicaPhase.STARTING, address=""))
    await house.turn()
    await router.read()
    assert router.names() == ["r-1-0"]
    await house.ready(live)
    assert house.book.shown(live).urls == [f"{URL}/reader"]
    assert live.deployment.handle
    assert house.store.kinds()[:3] == ["create", "rollout", "ready"]


async def test_a_name_is_given_once(house: House) -> None:
    await house.deploy()
    first = revision(1)
    new = bare(settings(), uid="019a0000-0000-7000-8000-00000000000f")
    with pytest.raises(AlreadyExists, match="there is a deployment 'reader'"):
        await house.book.create(created(new, first, house.book.now()), first, None)


async def test_a_backend_that_refuses_is_asked_again_and_says_why(house: House) -> None:
    house.backend.errors.append(NoCapacity("no host has 4 GPUs free"))
    live = await house.deploy()
    assert house.backend.applied == []
    assert "no host has 4 GPUs free; asked again in 1 s" in house.book.shown(live).cause.message
    await house.turn(1.5)
    assert house.backend.newest.generation == 1
    assert live.problem is None


async def test_a_backend_that_hangs_holds_up_nobody_else(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployment_loop, "CALL_DEADLINE", 0.02)
    house.backend.hang.add("projects/default/deployments/stuck")
    stuck = await house.deploy("stuck")
    await house.deploy("reader")
    assert [one.deployment for one in house.backend.applied] == [
        "projects/default/deployments/reader"
    ]
    while stuck.problem is None:
        await stuck.news.wait()
    assert "no answer within 0.02 s" in stuck.problem.message


async def test_a_store_that_fails_is_tried_again(house: House) -> None:
    live = await house.deploy()
    house.store.fail_with = Unavailable("disk full")
    house.backend.show(up(1, 0), up(1, 1))
    await house.turn()
    assert house.served(live) == []
    house.store.fail_with = None
    await house.turn(2)
    assert house.served(live) == ["r-1-0", "r-1-1"]


async def test_a_backend_that_remembers_more_than_we_is_outrun(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    house.backend.tell.put_nowait(replace_generation(house, 40))
    house.backend.errors.append(Stale("generation 40 was taken in before"))
    await house.update(live, 2)
    await house.turn(3)
    assert house.backend.newest.generation == 41
    assert [one.revision for one in house.backend.newest.revisions] == [2]


async def test_a_backend_is_outrun_later_when_that_cannot_be_stored(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    await house.update(live, 2)
    house.backend.tell.put_nowait(replace_generation(house, 40))
    await house.turn()
    house.store.fail_with = Unavailable("disk full")
    house.backend.errors.append(Stale("generation 40 was taken in before"))
    live.deployment = replace(live.deployment, generation=live.deployment.generation + 1)
    await house.turn(1)
    house.backend.errors.append(Stale("generation 40 was taken in before"))
    house.store.fail_with = None
    await house.turn(5)
    assert house.backend.newest.generation == 41


async def test_a_caller_that_goes_away_leaves_the_book_as_the_store_is(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await house.deploy()
    written, go, apply = asyncio.Event(), asyncio.Event(), house.store.apply

    async def slow(*asked: Any) -> Any:
        answer = await apply(*asked)
        written.set()
        await go.wait()
        return answer

    monkeypatch.setattr(house.store, "apply", slow)
    async with asyncio.TaskGroup() as group:
        caller = group.create_task(house.update(live, 2), name="caller")
        await written.wait()
        caller.cancel()
        await asyncio.sleep(0)
        go.set()
    assert caller.cancelled()
    assert live.deployment == house.store.kept[live.uid]
    await house.update(live, 3)
    assert live.deployment.newest == 3


def replace_generation(house: House, generation: int) -> ReplicaSet:
    """The newest set, of another generation."""
    return ReplicaSet(house.backend.newest.uid, generation, (up(1, 0), up(1, 1)))


# -- retiring --------------------------------------------------------------------------------------


async def replaced(house: House, live: Live) -> None:
    """Its second revision has a replica, and an old one would leave."""
    await house.update(live, 2)
    house.backend.show(up(1, 0), up(1, 1), up(2, 0), leaving=["r-1-0"])
    await house.turn()


async def test_a_replica_is_retired_once_every_router_acts_without_it(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    one, other = await house.router(), await house.router("router-2", "http://127.0.0.1:8001")
    for router in (one, other):
        await router.read()
        router.ack()
    await replaced(house, live)
    for router in (one, other):
        await router.read()
        assert router.names() == ["r-1-1", "r-2-0"]
    one.ack()
    await house.turn()
    assert house.backend.retired == []
    other.ack()
    await house.turn()
    assert house.backend.retired == ["r-1-0"]


async def test_without_routers_a_replica_is_retired_at_once(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    await replaced(house, live)
    assert house.backend.retired == ["r-1-0"]


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_router_that_is_silent_does_not_count_after_15_s(
    house: House, leaves: bool
) -> None:
    live = await house.deploy()
    await house.ready(live)
    router = await house.router()
    await router.read()
    router.ack()
    if leaves:
        await house.feed.left(router.session)
    await replaced(house, live)
    await house.turn(13)
    assert house.backend.retired == [], "it may still send requests to what it was told of"
    await house.turn(3)
    assert house.backend.retired == ["r-1-0"]


async def test_what_an_older_generation_would_end_is_not_retired(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    router = await house.router()
    await router.read()
    await replaced(house, live)
    await router.read()
    await house.update(live, 3)
    router.ack()
    await house.turn()
    assert house.backend.retired == []


async def test_after_a_gap_replicas_are_retired_again(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    await replaced(house, live)
    house.backend.tell.put_nowait(Gap())
    await house.turn()
    assert house.backend.retired == ["r-1-0", "r-1-0"]


# -- restarts --------------------------------------------------------------------------------------


async def test_a_restarted_server_tells_the_former_table_until_it_knows_better() -> None:
    first = House()
    async with first.running():
        live = await first.deploy()
        await first.ready(live)
        router = await first.router()
        await router.read()
    last = router.cursor
    second = first.after_restart()
    async with second.running():
        again = await second.router("router-1")
        told = await again.read()
        assert told is not None
        assert told.complete
        assert told.cursor > last
        assert again.names() == ["r-1-0", "r-1-1"]
        assert second.backend.newest.generation == 1, "every deployment is applied again"
        second.backend.show(up(1, 0), up(1, 1, phase=ReplicaPhase.PENDING, address=""))
        second.backend.synced()
        await second.turn()
        (live,) = second.book.all()
        assert second.served(live) == ["r-1-0", "r-1-1"], "its host has not come back yet"
        second.backend.show(up(1, 0), up(1, 1, phase=ReplicaPhase.UNHEALTHY, address=""))
        await second.turn()
        assert second.served(live) == ["r-1-0"]


async def test_replicas_that_nobody_names_after_a_restart_go_after_30_s() -> None:
    first = House()
    async with first.running():
        await first.ready(await first.deploy())
    second = first.after_restart()
    async with second.running():
        (live,) = second.book.all()
        second.backend.show()
        second.backend.synced()
        await second.turn(29)
        assert second.served(live) == ["r-1-0", "r-1-1"]
        await second.turn(2)
        assert second.served(live) == []


async def test_after_a_restart_routers_of_before_are_waited_for() -> None:
    first = House()
    async with first.running():
        live = await first.deploy()
        await first.ready(live)
        router = await first.router()
        await router.read()
        router.ack()
        await first.update(live, 2)
        first.backend.show(up(1, 0), up(1, 1), up(2, 0))
        await first.turn()
    second = first.after_restart()
    async with second.running():
        second.backend.show(up(1, 0), up(1, 1), up(2, 0), leaving=["r-1-0"])
        await second.turn(25)
        assert second.backend.retired == [], "the router sends to it until it hears of us"
        again = await second.router("router-1")
        await again.read()
        again.ack()
        await second.turn()
        assert second.backend.retired == ["r-1-0"]


async def test_after_a_restart_routers_that_do_not_come_back_in_30_s_do_not_count() -> None:
    first = House()
    async with first.running():
        live = await first.deploy()
        await first.ready(live)
        await first.router()
    second = first.after_restart()
    async with second.running():
        second.backend.show(up(1, 0), up(1, 1), up(1, 2), leaving=["r-1-0"])
        await second.turn(29)
        assert second.backend.retired == []
        await second.turn(2)
        assert second.backend.retired == ["r-1-0"]


# -- removing --------------------------------------------------------------------------------------


async def test_a_deployment_goes_out_of_the_table_before_its_replicas_end(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    router = await house.router()
    await router.read()
    house.backend.not_yet = 2
    await house.book.change(live, lambda view: deleted(view, house.book.now("ann")))
    await house.turn()
    assert house.backend.removed == []
    told = await router.read()
    assert told is not None
    assert list(told.removed) == ["projects/default/deployments/reader"]
    assert router.routes == {}
    router.ack()
    await house.turn(0.3)
    assert (house.backend.removed, live.gone) == ([], False)
    await house.turn(3)
    assert house.backend.removed == [house.backend.newest.uid]
    assert live.gone
    assert house.store.kept == {}


# -- figures, access, memory -----------------------------------------------------------------------


async def test_what_routers_saw_of_a_new_revision_rolls_it_back(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    await house.update(live, 2)
    house.backend.show(up(2, 0), up(2, 1))
    await house.turn()
    name = "projects/default/deployments/reader"
    told = deployment_pb2.RouteStatistics(
        deployment=name, revision=2, requests=10, errors=6, last_error="ValueError: no"
    )
    of_another = deployment_pb2.RouteStatistics(deployment=name, revision=1, requests=99, errors=99)
    unknown = deployment_pb2.RouteStatistics(deployment="projects/x/deployments/y", errors=9)
    house.book.reported([of_another, unknown])
    await house.turn()
    assert house.book.shown(live).rollout.state == deployment_pb2.ROLLOUT_STATE_BAKING
    house.book.reported([told])
    await house.turn()
    rollout = house.book.shown(live).rollout
    assert rollout.state == deployment_pb2.ROLLOUT_STATE_ROLLING_BACK
    assert "6 of 10 requests" in rollout.cause.message
    assert "ValueError: no" in rollout.cause.message
    assert [one.revision for one in house.backend.newest.revisions] == [1]


async def test_routers_are_told_who_may_ask(house: House) -> None:
    router = await house.router()
    await router.read()
    assert router.access == []
    house.tokens.records.append(
        TokenRecord("t1", "ab" * 32, "ann", Role.USER, create_time=1, expire_time=0)
    )
    house.tokens.changed()
    told = await router.read()
    assert told is not None
    assert not told.complete
    assert not told.routes
    assert router.access == ["ab" * 32]


async def test_a_slow_router_gets_the_newest_of_5000_updates(house: House) -> None:
    live = await house.deploy()
    router = await house.router()
    await router.read()
    for count in range(5_000):
        route = deployment_pb2.Route(deployment=live.deployment.resource, generation=count)
        await house.feed.publish(live.uid, route, ())
    told = await router.read()
    assert told is not None
    assert [one.generation for one in told.routes] == [4_999]
    assert await router.news() is None


async def test_a_newer_stream_of_a_router_ends_the_older(house: House) -> None:
    old = await house.router()
    await house.router()
    assert [message async for message in house.feed.messages(old.session)] == []
    await house.feed.left(old.session)
    live = await house.deploy()
    assert house.book.shown(live).urls == [f"{URL}/reader"]


async def test_versions_are_named_in_routes(house: House) -> None:
    live = await house.deploy()
    await house.ready(live)
    router = await house.router()
    await router.read()
    (route,) = router.routes.values()
    assert [one.model_version for one in route.targets] == [version(1)]
    assert [one.weight for one in route.targets] == [100]
    assert replace(live.deployment, version=0) != live.deployment


async def test_what_a_backend_can_never_run_is_given_up_at_once(house: House) -> None:
    house.backend.synced()
    house.backend.errors += [Invalid("replicas need images, and hosts have none")] * 3
    live = await house.deploy()
    await house.turn(1)
    shown = house.book.shown(live)
    assert shown.state == deployment_pb2.DEPLOYMENT_STATE_FAILED
    assert "replicas need images" in shown.rollout.cause.message


async def test_what_a_backend_does_not_take_in_fails_at_its_deadline(house: House) -> None:
    house.backend.synced()
    house.backend.errors += [NoCapacity("no host has room")] * 99
    live = await house.deploy()
    await house.turn(301)
    shown = house.book.shown(live)
    assert shown.state == deployment_pb2.DEPLOYMENT_STATE_FAILED
    assert "backend 'mock' has not taken it in" in shown.rollout.cause.message
    assert "no host has room" in shown.rollout.cause.message


async def test_deployments_of_a_backend_that_is_not_open_say_so() -> None:
    house = House()
    async with house.running():
        live = await house.deploy()
    house.book.served_by(["another"])
    assert "Backend 'mock' is not open" in house.book.shown(live).cause.message
