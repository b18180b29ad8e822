"""Deployments that follow an alias: no move of it is missed, whenever it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from memory_deployments import Tokens
from rollout_rows import bare, revision

from hatoba.v1 import deployment_pb2, model_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.alias_follower import AGAIN, AliasFollower
from hatoba_scheduler.control.aliases import Aliases
from hatoba_scheduler.control.deployments import DeploymentBook, Live
from hatoba_scheduler.control.routes import RouteFeed
from hatoba_scheduler.convert_deployments import settings_of, with_defaults
from hatoba_scheduler.domain.models import ModelState, ModelVersion, Refusal, Refused, Want
from hatoba_scheduler.domain.records import ManifestRef
from hatoba_scheduler.domain.rollouts import created
from hatoba_scheduler.store.errors import StorageFull
from hatoba_scheduler.store.sqlite import SqliteStore, open_store
from hatoba_scheduler.store.sqlite.deployments import SqliteDeployments

DIGEST = "sha256:" + "a" * 64
ALIAS = "projects/default/models/digits@production"
SPEC = with_defaults(deployment_pb2.DeploymentSpec(model="digits@production"), "mock")


def want(version: int) -> Want:
    """Point the alias to it."""
    return Want("default", "digits", "production", version, None, "", "ann", 1)


class House:
    """A store, its deployments and who follows for them."""

    def __init__(self, store: SqliteStore) -> None:
        self.store, self.clock = store, FakeClock()
        feed = RouteFeed(store.deployments, Tokens(), self.clock)
        self.book = DeploymentBook(store.deployments, feed, self.clock)
        self.aliases = Aliases(store)
        self.follower = AliasFollower(store, self.book, self.clock, lambda name: None)
        self.aliases.listen(self.follower.on_move)

    async def deploy(self, project: str = "default") -> Live:
        """A deployment that follows the alias, whose version was 1 when it was looked at."""
        new = bare(settings_of(SPEC, ALIAS), project=project)
        first = revision(1)
        live, _ = await self.book.create(created(new, first, self.book.now("ann")), first, None)
        return live

    async def at(self, live: Live, version: int) -> None:
        """Wait until that is what is rolled out."""
        async with asyncio.timeout(10):
            while not live.deployment.followed.endswith(f"/versions/{version}"):
                await live.news.wait()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """With two versions of `digits`, `production` at the first."""
    store = await open_store(tmp_path, lambda: 1)
    content = model_pb2.ModelVersion()
    content.serving.handler = "serve:Digits"
    made = ModelVersion(
        "default",
        "digits",
        0,
        ModelState.READY,
        ManifestRef(DIGEST, 1, 1),
        content.SerializeToString(),
        1,
        "ann",
        handler="serve:Digits",
        has_example=True,
    )
    for _ in range(2):
        await store.models.register(replace(made), None)
    one = House(store)
    await one.aliases.move(want(1))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(one.follower.run(), name="follower")
        await asyncio.sleep(0)
        yield one
        task.cancel()
    await store.close()


async def test_a_move_is_one_rollout(house: House) -> None:
    live = await house.deploy()
    await house.aliases.move(want(2))
    await house.at(live, 2)
    assert live.deployment.newest == 2


async def test_a_move_while_the_deployment_was_made_is_not_missed(house: House) -> None:
    await house.aliases.move(want(2))
    live = await house.deploy()
    await house.at(live, 2)
    assert live.deployment.newest == 2


async def test_a_move_that_a_full_disk_holds_up_is_followed_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await house.deploy()
    refused = asyncio.Event()

    async def full(*asked: object) -> None:
        del asked
        refused.set()
        raise StorageFull("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(SqliteDeployments, "apply", full)
        await house.aliases.move(want(2))
        await refused.wait()
        await asyncio.sleep(0)
    await house.clock.advance(AGAIN)
    await house.at(live, 2)


async def test_an_alias_is_kept_for_followers_of_other_projects(house: House) -> None:
    await house.deploy("lab")
    refused = await house.store.models.move(want(0))
    assert refused == Refused(Refusal.FOLLOWED, 1, users=("projects/lab/deployments/reader",))
