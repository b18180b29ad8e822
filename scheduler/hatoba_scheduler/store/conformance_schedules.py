"""Tests that every implementation of `ScheduleStore` must pass; used as `StoreConformance` is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hatoba_scheduler.domain.schedules import CatchUp, Overlap, Schedule, Settings
from hatoba_scheduler.store.base import Duplicate, RequestKey, Stale, Store
from hatoba_scheduler.store.conformance import Clock, OpenStore


def new_schedule(name: str = "nightly", project: str = "default") -> Schedule:
    """A schedule all of whose fields say something."""
    settings = Settings(
        cron="30 2 * * *",
        time_zone="Europe/Berlin",
        spec=b"\x00spec",
        overlap=Overlap.QUEUE,
        catch_up=CatchUp.ALL,
        max_catch_up=7,
        paused=True,
        end_time=10**16,
        labels=(("a", "b"), ("c", "")),
    )
    return Schedule(
        uid=f"uid-{project}-{name}",
        project=project,
        name=name,
        settings=settings,
        created_by="ada",
        create_time=3,
        position=4,
        last_time=5,
        last_outcome="submitted nightly-1",
        waiting=6,
        submitting=7,
        last_job="job",
        recent=("nightly-1", "nightly-0"),
    )


class ScheduleStoreConformance:
    """Every sentence of `ScheduleStore`, as a test."""

    @pytest.fixture
    async def store(self, open_store: OpenStore, tmp_path: Path) -> AsyncIterator[Store]:
        """An empty store."""
        found = await open_store(tmp_path, Clock())
        yield found
        await found.close()

    async def test_what_was_put_is_there_after_a_restart(
        self, open_store: OpenStore, tmp_path: Path
    ) -> None:
        """All of it, by project and name."""
        made = [new_schedule("b"), new_schedule("a"), new_schedule("z", "another")]
        store = await open_store(tmp_path, Clock())
        for one in made:
            assert await store.schedules.put(one) == one
        await store.close()
        store = await open_store(tmp_path, Clock())
        assert await store.schedules.all() == [made[2], made[1], made[0]]
        await store.close()

    async def test_a_change_is_of_the_version_before(self, store: Store) -> None:
        """One of two that were decided on the same row is Stale, and changes nothing."""
        first = new_schedule()
        await store.schedules.put(first)
        settings = Settings("@daily", "", b"other")
        changed = replace(first, version=2, settings=settings, position=9, recent=("x",))
        assert await store.schedules.put(changed) == changed
        assert await store.schedules.put(replace(first, version=2)) is Stale.STALE
        assert await store.schedules.put(replace(first, version=9)) is Stale.STALE
        assert await store.schedules.all() == [changed]

    async def test_a_change_is_kept_with_the_key_of_who_asked(self, store: Store) -> None:
        """Both or none; a known key changes nothing."""
        key = RequestKey("default", "UpdateSchedule", "r-1", b"\x01" * 32)
        first = new_schedule()
        assert await store.schedules.put(replace(first, version=2), key) is Stale.STALE
        assert await store.recall_request(key) is None
        assert await store.schedules.put(first, key) == first
        assert await store.schedules.put(replace(first, version=2), key) == Duplicate(first.name)
        assert await store.schedules.all() == [first]

    async def test_a_name_is_taken_once_in_a_project(self, store: Store) -> None:
        """Another uid does not help, and another project does."""
        await store.schedules.put(new_schedule())
        assert await store.schedules.put(replace(new_schedule(), uid="other")) is Stale.STALE
        assert isinstance(await store.schedules.put(new_schedule(project="p")), Schedule)

    async def test_deleted_twice_is_deleted_once(self, store: Store) -> None:
        """And its name is free again; a late change of it is Stale."""
        await store.schedules.put(new_schedule())
        for _ in range(2):
            await store.schedules.delete(new_schedule().uid)
        assert await store.schedules.all() == []
        assert await store.schedules.put(replace(new_schedule(), version=2)) is Stale.STALE
        assert isinstance(await store.schedules.put(new_schedule()), Schedule)
