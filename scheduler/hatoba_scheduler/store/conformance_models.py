"""What every store must do with models, as a pytest suite; used as `StoreConformance` is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from hatoba_scheduler.domain.datasets import NewDatasetVersion, Origins
from hatoba_scheduler.domain.models import (
    Decision,
    Link,
    Model,
    ModelState,
    ModelVersion,
    Moved,
    MoveState,
    Refusal,
    Refused,
    VersionKey,
    Want,
)
from hatoba_scheduler.domain.records import ManifestRef, MetricPoint
from hatoba_scheduler.store.base import Applied, Duplicate, Mismatch, RequestKey, Stale, Store
from hatoba_scheduler.store.conformance import CAUSE, Clock, OpenStore, launched, moved, stored
from hatoba_scheduler.store.models import InUse, MoveQuery, Verdict
from hatoba_scheduler.store.samples import new_job, submission

MANIFEST = ManifestRef("sha256:" + "cd" * 32, 2**40, 7)
CODE = "sha256:" + "ef" * 32
KEY = RequestKey("default", "RegisterModel", "one", b"\x01" * 32)


def new_version(model: str = "digits", project: str = "default") -> ModelVersion:
    """A version that is READY and has nothing but its files."""
    return ModelVersion(project, model, 0, ModelState.READY, MANIFEST, b"", 5, "user:ada")


def whole_version() -> ModelVersion:
    """A version of which no field has its default."""
    return replace(
        new_version("whole", "vision"),
        state=ModelState.REGISTERING,
        content=b"\x00\xff",
        handler="serve:Digits",
        code=CODE,
        has_example=True,
        metrics=(("accuracy", 0.97), ("loss", 1 / 3)),
        description="größer",
        labels=(("team", "vision"),),
        job="projects/vision/jobs/train-1",
        attempt=3,
        datasets=("projects/vision/datasets/faces/versions/3",),
        code_version="projects/vision/code/train/versions/2",
        git_commit="ab" * 20,
        parent="projects/vision/models/whole/versions/9",
        check_job="projects/vision/jobs/check-whole-1",
        cause=CAUSE,
        trace_id="a" * 32,
    )


async def registered(store: Store, version: ModelVersion | None = None) -> ModelVersion:
    """Register a version; as it is stored."""
    made = await store.models.register(version or new_version(), None)
    assert isinstance(made, ModelVersion)
    return made


def want(version: int, expected: int | None = None, actor: str = "ada") -> Want:
    """That `production` shall point to a version of `digits`."""
    return Want("default", "digits", "production", version, expected, "why", actor, 11)


def decision(number: int, approve: bool, actor: str = "bea") -> Decision:
    """What somebody says to a move of `digits`."""
    return Decision("default", "digits", number, approve, "because", actor, 12)


class ModelStoreConformance:
    """Every sentence of `ModelStore`, as a test."""

    @pytest.fixture
    async def store(self, open_store: OpenStore, tmp_path: Path) -> AsyncIterator[Store]:
        """An empty store."""
        found = await open_store(tmp_path, Clock())
        yield found
        await found.close()

    # -- with the outcome of a job ----------------------------------------------------------------

    async def test_versions_are_numbered_with_the_change_that_makes_them(
        self, store: Store
    ) -> None:
        """Also several in one change, and of several changes in one call."""
        first, second = await stored(store, new_job(), new_job())
        a, b, c = new_version(), new_version(), new_version("other")
        changes = [
            replace(launched(first), models=(a, c)),
            replace(launched(second), models=(b,)),
        ]
        assert all(isinstance(found, Applied) for found in await store.apply(changes))
        assert [a.version, b.version, c.version] == [1, 2, 1]
        assert await store.models.version(b.key) == b
        model = await store.models.model("default", "digits")
        assert model is not None
        assert (model.latest, model.created_by) == (2, "user:ada")
        assert (await registered(store)).version == 3

    async def test_a_stale_change_makes_no_version(self, store: Store) -> None:
        """All or nothing: one of two decisions on the same rows makes its version."""
        (job,) = await stored(store, new_job())
        changes = [replace(moved(job), models=(new_version(),)) for _ in range(2)]
        found = await asyncio.gather(*(store.apply([change]) for change in changes))
        assert sorted(type(one[0]).__name__ for one in found) == ["Applied", "Stale"]
        assert len(await store.models.versions("default", "digits", 0, 10)) == 1
        assert await store.apply([replace(moved(job, expected=1), models=(new_version("x"),))]) == [
            Stale.STALE
        ]
        assert await store.models.model("default", "x") is None

    async def test_what_jobs_made_is_found_by_their_names(self, store: Store) -> None:
        """Jobs that made nothing are left out."""
        job = "projects/default/jobs/train-1"
        made = [await registered(store, replace(new_version(), job=job)) for _ in range(2)]
        assert await store.models.made_by([job, "projects/default/jobs/train-2", ""]) == {
            job: [one.name for one in made]
        }
        assert await store.models.made_by([]) == {}

    async def test_the_last_values_of_metrics(self, store: Store) -> None:
        """At the highest step, by key and task."""
        (job,) = await stored(store, new_job(2))
        points = [("loss", 0, 1, 0.5), ("loss", 0, 3, 0.1), ("loss", 0, 2, 0.9)]
        points += [("acc", 0, 1, 0.7), ("acc", 1, 9, 0.8)]
        await store.add_metrics(
            [MetricPoint(job.uid, at, key, step, 1, value, 1) for key, at, step, value in points]
        )
        assert await store.models.last_metrics(job.uid, 0) == (("acc", 0.7), ("loss", 0.1))
        assert await store.models.last_metrics(job.uid, 1) == (("acc", 0.8),)

    # -- versions ---------------------------------------------------------------------------------

    async def test_a_version_is_stored_whole(self, store: Store) -> None:
        """As it was given, with its number; also after the store was opened anew."""
        made = await registered(store, whole_version())
        assert made == replace(whole_version(), version=1)
        assert await store.models.version(made.key) == made
        assert await store.models.version(VersionKey("vision", "whole", 2)) is None
        assert await store.models.registering() == [made]

    async def test_a_request_registers_once(self, store: Store) -> None:
        """The key is stored with the version."""
        made = await store.models.register(new_version(), KEY)
        assert isinstance(made, ModelVersion)
        assert await store.models.register(new_version(), KEY) == Duplicate(made.name)
        other = KEY._replace(body_sha256=b"\x02" * 32)
        assert isinstance(await store.models.register(new_version(), other), Mismatch)
        assert len(await store.models.versions("default", "digits", 0, 10)) == 1

    async def test_a_check_ends_once(self, store: Store) -> None:
        """Only what is REGISTERING is settled; its first check job stays."""
        made = await registered(store, replace(new_version(), state=ModelState.REGISTERING))
        await store.models.note_check(made.key, "check-1")
        await store.models.note_check(made.key, "check-2")
        assert await store.models.settle(made.key, Verdict(ModelState.FAILED, CAUSE, b"new"))
        assert not await store.models.settle(made.key, Verdict(ModelState.READY, None, b""))
        assert await store.models.version(made.key) == replace(
            made, state=ModelState.FAILED, cause=CAUSE, content=b"new", check_job="check-1"
        )
        assert await store.models.registering() == []

    async def test_versions_are_listed_newest_first(self, store: Store) -> None:
        """Below a number, and only those of the model."""
        for _ in range(5):
            await registered(store)
        await registered(store, new_version("other"))
        listed = await store.models.versions("default", "digits", 0, 2)
        assert [one.version for one in listed] == [5, 4]
        listed = await store.models.versions("default", "digits", 4, 10)
        assert [one.version for one in listed] == [3, 2, 1]
        await registered(store, replace(new_version(), state=ModelState.REGISTERING))
        newest = await store.models.newest_ready("default", "digits")
        assert newest is not None
        assert newest.version == 5

    async def test_models_are_listed_by_name(self, store: Store) -> None:
        """Of one project."""
        for name in ("b", "a", "c"):
            await registered(store, new_version(name))
        await registered(store, new_version("d", "lab"))
        assert [one.model for one in await store.models.models("default", "", 2)] == ["a", "b"]
        assert [one.model for one in await store.models.models("default", "b", 9)] == ["c"]

    # -- aliases ----------------------------------------------------------------------------------

    async def ready(self, store: Store, *protected: str) -> None:
        """Three READY versions of `digits`."""
        for _ in range(3):
            await registered(store)
        if protected:
            await store.models.protect("default", "digits", protected, "")

    async def test_one_of_many_moves_at_once_wins(self, store: Store) -> None:
        """The others are told where the alias points."""
        await self.ready(store)
        found = await asyncio.gather(*(store.models.move(want(number, 0)) for number in (1, 2, 3)))
        won = [one for one in found if isinstance(one, Moved)]
        assert len(won) == 1
        target = won[0].move.target
        assert [one for one in found if isinstance(one, Refused)] == [
            Refused(Refusal.ELSEWHERE, target)
        ] * 2
        assert await store.models.alias("default", "digits", "production") == target

    async def test_a_move_is_kept_with_who_and_why(self, store: Store) -> None:
        """And changes the model's etag."""
        await self.ready(store)
        before = await store.models.model("default", "digits")
        moved = await store.models.move(want(2))
        assert isinstance(moved, Moved)
        assert moved.changed
        assert before is not None
        assert moved.model.etag != before.etag
        (alias,) = moved.model.aliases
        assert (alias.alias, alias.version, alias.updated_by) == ("production", 2, "ada")
        assert await store.models.moves(MoveQuery("default", "digits"), 0, 9) == [moved.move]
        again = await store.models.move(want(2, 1))
        assert again == replace(moved, changed=False)

    async def test_a_protected_alias_waits(self, store: Store) -> None:
        """A second principal carries the move out; others that wait are superseded."""
        await self.ready(store, "production")
        asked = await store.models.move(want(2))
        other = await store.models.move(want(3, actor="eve"))
        assert isinstance(asked, Moved)
        assert isinstance(other, Moved)
        assert (asked.move.state, asked.changed) == (MoveState.PENDING, False)
        assert await store.models.move(want(2)) == asked
        own = await store.models.decide(decision(asked.move.number, True, "ada"))
        assert own == Refused(Refusal.SAME_PRINCIPAL)
        done = await store.models.decide(decision(asked.move.number, True))
        assert isinstance(done, Moved)
        assert (done.changed, done.move.state, done.move.decided_by) == (
            True,
            MoveState.APPLIED,
            "bea",
        )
        late = await store.models.decide(decision(other.move.number, True))
        assert late == Refused(Refusal.SUPERSEDED, 2)
        query = MoveQuery("default", pending_only=True)
        assert await store.models.moves(query, 0, 9) == []

    async def test_an_alias_is_taken_away(self, store: Store) -> None:
        """And the move says so."""
        await self.ready(store)
        await store.models.move(want(2))
        gone = await store.models.move(want(0, 2))
        assert isinstance(gone, Moved)
        assert (gone.model.aliases, gone.move.source, gone.move.target) == ((), 2, 0)

    async def test_protection_is_guarded_by_the_etag(self, store: Store) -> None:
        """An empty one guards nothing."""
        await self.ready(store)
        model = await store.models.model("default", "digits")
        assert model is not None
        now = await store.models.protect("default", "digits", ("a",), model.etag)
        assert isinstance(now, Model)
        assert now.protected == ("a",)
        stale = await store.models.protect("default", "digits", (), model.etag)
        assert stale is Stale.STALE
        assert await store.models.protect("default", "nobody", (), "") is None

    async def test_what_was_asked_for_is_kept_with_it(self, store: Store) -> None:
        """A key that is known changes nothing; one of what was refused is not kept."""
        await self.ready(store)
        key = RequestKey("default", "SetAlias", "r-1", b"\x01" * 32)
        assert isinstance(await store.models.move(want(9), key), Refused)
        assert await store.recall_request(key) is None
        moved = await store.models.move(want(2), key)
        assert isinstance(moved, Moved)
        assert await store.models.move(want(2), key) == Duplicate(moved.move.name)
        other = key._replace(body_sha256=b"\x02" * 32)
        assert await store.models.move(want(3), other) == Mismatch("01" * 32, "02" * 32)
        assert await store.models.alias("default", "digits", "production") == 2
        deciding = key._replace(method="DecideAliasMove")
        await store.models.protect("default", "digits", ("production",), "")
        asked = await store.models.move(want(3))
        assert isinstance(asked, Moved)
        said = decision(asked.move.number, True)
        assert isinstance(await store.models.decide(said, deciding), Moved)
        assert await store.models.decide(said, deciding) == Duplicate(asked.move.name)
        protecting = key._replace(method="UpdateModel")
        assert isinstance(
            await store.models.protect("default", "digits", (), "", protecting), Model
        )
        again = await store.models.protect("default", "digits", ("b",), "", protecting)
        assert again == Duplicate("digits")

    async def test_only_ready_versions_are_pointed_to(self, store: Store) -> None:
        """And those that there are."""
        await registered(store, replace(new_version(), state=ModelState.REGISTERING))
        assert await store.models.move(want(1)) == Refused(Refusal.NOT_READY, state="REGISTERING")
        assert await store.models.move(want(2)) == Refused(Refusal.NO_VERSION)
        nobody = replace(want(1), model="nobody")
        assert await store.models.move(nobody) == Refused(Refusal.NO_MODEL)
        assert await store.models.decide(decision(9, True)) == Refused(Refusal.NO_MOVE)

    # -- removing and lineage ---------------------------------------------------------------------

    async def test_what_is_used_is_not_removed(self, store: Store) -> None:
        """Aliases, moves that wait, unfinished readers and children are named."""
        await self.ready(store, "next")
        key = VersionKey("default", "digits", 1)
        await registered(store, replace(new_version(), parent=key.resource))
        await store.models.move(want(1))
        await store.models.move(replace(want(1), alias="next"))
        reading = replace(submission(new_job()), reads=(key.resource,))
        await store.submit([reading])
        assert await store.models.delete_version(key) == InUse(
            ("alias production", "move 2 of alias next", "jobs/train-1", "models/digits:4")
        )
        assert await store.models.version(key) is not None

    async def test_a_number_is_not_given_again(self, store: Store) -> None:
        """Though nothing of the version is left."""
        await self.ready(store)
        key = VersionKey("default", "digits", 3)
        removed = await store.models.delete_version(key, KEY)
        assert await store.models.delete_version(key, KEY) == Duplicate(key.resource)
        assert isinstance(removed, ModelVersion)
        assert await store.models.delete_version(key) is None
        assert (await registered(store)).version == 4

    async def test_links_are_found_both_ways(self, store: Store) -> None:
        """What versions came from, and what jobs read."""
        made = await registered(store, whole_version())
        data = made.datasets[0]
        await store.submit([replace(submission(new_job(project="vision")), reads=(data,))])
        job = "projects/vision/jobs/train-1"
        forwards = await store.models.links([data, job], backwards=False)
        assert set(forwards) == {
            Link(data, made.name, "trained-on"),
            Link(data, job, "read-by"),
            Link(job, made.name, "made-by"),
        }
        backwards = await store.models.links([made.name, job], backwards=True)
        assert set(backwards) == {
            *forwards,
            Link(made.code_version, made.name, "code-of"),
            Link(made.parent, made.name, "parent"),
        }

    async def test_datasets_are_linked_with_what_made_them(self, store: Store) -> None:
        """Jobs, models that predicted or were asked, and the datasets that they were made from."""
        job, model = "projects/lab/jobs/predict-1", "projects/lab/models/digits/versions/7"
        name = "projects/lab/datasets/answers/versions"
        origins = [
            Origins("predict", job, model, ("projects/lab/datasets/faces/versions/3",)),
            Origins("append", "", model, (), ("projects/lab/deployments/reader",)),
        ]
        for number, one in enumerate(origins):
            tree = ManifestRef(f"sha256:{number:064x}", 1, 1)
            await store.datasets.create_version(
                NewDatasetVersion("lab", "answers", tree, None, 1, 5, "ada", origins=one)
            )
        links = {
            Link(job, f"{name}/1", "made-by"),
            Link(model, f"{name}/1", "predicted-with"),
            Link("projects/lab/datasets/faces/versions/3", f"{name}/1", "made-from"),
            Link(model, f"{name}/2", "captured-from"),
            Link("projects/lab/deployments/reader", f"{name}/2", "captured-from"),
        }
        sources = sorted({link.source for link in links})
        found = set(await store.models.links(sources, backwards=False))
        assert found == links, found ^ links
        made = [f"{name}/1", f"{name}/2"]
        assert set(await store.models.links(made, backwards=True)) == links

    async def test_roots_are_all_trees_that_versions_name(self, store: Store) -> None:
        """Files and code."""
        await registered(store)
        assert await store.models.manifest_roots() == {MANIFEST.digest}
        await registered(store, whole_version())
        assert await store.models.manifest_roots() == {MANIFEST.digest, CODE}
