"""Deployments on SQLite: what is written comes back, guards hold, what grows is bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from rollout_rows import CRASHES, SECOND, Course, revision, settings, steps, version

from hatoba_scheduler.domain.deployments import Change, Prediction, Served
from hatoba_scheduler.domain.models import ModelState, ModelVersion, VersionKey
from hatoba_scheduler.domain.records import ManifestRef
from hatoba_scheduler.domain.rollouts import ignored
from hatoba_scheduler.store import deployments as limits
from hatoba_scheduler.store.base import Duplicate, Mismatch, RequestKey, Stale
from hatoba_scheduler.store.deployments import KEPT_EVENTS, KnownRouter, Taken
from hatoba_scheduler.store.models import InUse
from hatoba_scheduler.store.sqlite import SqliteStore, open_store
from hatoba_scheduler.store.sqlite import deployments as sqlite_deployments

KEY = RequestKey("default", "CreateDeployment", "r", b"1")
DAY = 86_400 * SECOND


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """An open store with four versions of one model."""
    one = await open_store(tmp_path, lambda: 1)
    made = ModelVersion(
        "default", "digits", 0, ModelState.READY, ManifestRef("sha256:x", 1, 1), b"", 1, "ann"
    )
    for _ in range(4):
        await one.models.register(replace(made), None)
    yield one
    await one.close()


def busy() -> Course:
    """A deployment in the middle of a canary, with something in every field."""
    course = Course(settings(3, steps=steps((10, 60)), max_error_share=0.2, rollback=False))
    course.through()
    course.deploy(2, steps=steps((10, 60), (50, 0)))
    course.obey()
    return course


async def test_what_was_decided_comes_back_as_it_was(store: SqliteStore, tmp_path: Path) -> None:
    course = busy()
    for change in course.changes:
        assert await store.deployments.apply(change) is None
    served = (Served(1, "r-1-0", "h:1"), Served(2, "r-2-0", "h:2"))
    await store.deployments.put_route(course.deployment.uid, 77, served)
    await store.close()
    again = await open_store(tmp_path, lambda: 1)
    try:
        (kept,) = await again.deployments.load()
        assert kept.deployment == course.deployment
        assert {one.revision: one for one in kept.revisions} == course.revisions
        assert kept.served == served
        assert await again.deployments.newest_cursor() == 77
        events = await again.deployments.events(course.deployment.uid, 0, 1000)
        told = [event for change in course.changes for event in change.events]
        assert events == told[::-1]
    finally:
        await again.close()


async def test_a_change_is_written_only_over_what_was_looked_at(store: SqliteStore) -> None:
    course = busy()
    first, second = course.changes[:2]
    assert await store.deployments.apply(second) is Stale.STALE
    assert await store.deployments.apply(first, KEY) is None
    assert isinstance(await store.deployments.apply(first, KEY), Duplicate)
    assert isinstance(
        await store.deployments.apply(first, KEY._replace(body_sha256=b"2")), Mismatch
    )
    assert await store.deployments.apply(first) is Taken.TAKEN
    assert await store.deployments.apply(second) is None
    assert await store.deployments.apply(second) is Stale.STALE


async def test_a_version_that_was_removed_meanwhile_is_not_deployed(store: SqliteStore) -> None:
    await store.models.delete_version(VersionKey("default", "digits", 1))
    assert await store.deployments.apply(busy().changes[0]) is Stale.STALE
    assert await store.deployments.load() == []


async def test_only_revisions_in_use_hold_their_versions(store: SqliteStore) -> None:
    course = Course()
    course.through()
    for number in (2, 3):
        course.deploy(number)
        course.through()
    for change in course.changes:
        assert await store.deployments.apply(change) is None
    removed = await store.models.delete_version(VersionKey("default", "digits", 1))
    assert isinstance(removed, ModelVersion)
    held = await store.models.delete_version(VersionKey("default", "digits", 2))
    assert held == InUse(("deployments/reader (revision 2)",))
    kept = await store.deployments.revision(course.deployment.uid, 1)
    assert kept is not None
    assert kept.model_version == version(1)
    await store.deployments.remove(course.deployment.uid)
    assert await store.deployments.load() == []
    assert isinstance(
        await store.models.delete_version(VersionKey("default", "digits", 2)), ModelVersion
    )


async def test_revisions_are_listed_newest_first_and_name_their_manifests(
    store: SqliteStore,
) -> None:
    course = busy()
    first = course.changes[0]
    with_manifests = replace(revision(1), manifests=("sha256:a", "sha256:b"))
    assert await store.deployments.apply(replace(first, revisions=(with_manifests,))) is None
    for change in course.changes[1:]:
        assert await store.deployments.apply(change) is None
    uid = course.deployment.uid
    assert [one.revision for one in await store.deployments.revisions(uid, 0, 10)] == [2, 1]
    assert [one.revision for one in await store.deployments.revisions(uid, 2, 10)] == [1]
    assert await store.deployments.revision(uid, 9) is None
    assert await store.deployments.manifest_roots() == {"sha256:a", "sha256:b"}
    unused = replace(with_manifests, in_use=False)
    deployment = replace(course.deployment, version=course.deployment.version + 1)
    change = Change(deployment, course.deployment.version, revisions=(unused,))
    assert await store.deployments.apply(change) is None
    assert await store.deployments.manifest_roots() == set()


async def test_of_events_the_newest_stay(store: SqliteStore) -> None:
    course = Course()
    for number in range(KEPT_EVENTS):
        course.take(ignored(course.view, version(1), f"no {number}", course.now()))
    for change in course.changes:
        assert await store.deployments.apply(change) is None
    events = await store.deployments.events(course.deployment.uid, 0, 5_000)
    assert [one.seq for one in events] == list(range(KEPT_EVENTS + 2, 2, -1))


async def test_routers_of_long_ago_are_forgotten(store: SqliteStore) -> None:
    old, new = KnownRouter("http://a", "1", 1), KnownRouter("http://b", "2", DAY + 2)
    await store.deployments.put_router(old)
    assert await store.deployments.routers() == [old]
    await store.deployments.put_router(new)
    assert await store.deployments.routers() == [new]


async def test_a_report_is_stored_once_and_only_the_newest_predictions_stay(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert limits.KEPT_PREDICTIONS == 100_000
    monkeypatch.setattr(sqlite_deployments, "KEPT_PREDICTIONS", 3)

    def made(number: int) -> Prediction:
        return Prediction(f"{number:032x}", "d", 1, version(1), "r", 200, number, 5, "i")

    for number in range(5):
        await store.deployments.add_predictions(f"b{number}", [made(number)])
    await store.deployments.add_predictions("b4", [made(9)])
    assert await store.deployments.taken("b4")
    assert not await store.deployments.taken("b9")
    found = [await store.deployments.prediction(f"{n:032x}") for n in range(10)]
    assert [one.time for one in found if one] == [2, 3, 4]
    assert found[3] == made(3)


def test_the_course_has_something_in_every_field() -> None:
    course = busy()
    assert course.rollout.steps
    assert course.rollout.healthy_since
    assert CRASHES.last_log_lines
