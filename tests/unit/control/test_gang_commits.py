"""Models that members of gangs logged become versions once all of the gang have ended well."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from domain_rows import CANCEL, NOW, intent

from hatoba.v1 import common_pb2, runner_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logged_models import LoggedModels
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain import causes, gangs
from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import Change, Job, Terms
from hatoba_scheduler.domain.states import AttemptState, GangPolicy, JobState
from hatoba_scheduler.domain.transitions import (
    Outcome,
    Rows,
    View,
    cancel,
    initial_counts,
    released,
    running,
)
from hatoba_scheduler.store.errors import StorageFailed
from hatoba_scheduler.store.samples import new_job, submission
from hatoba_scheduler.store.sqlite import SqliteStore, open_store

SIZE = 3
NONCE = "n" * 16
TREE = "sha256:" + "1" * 64
GOOD = runner_pb2.EXIT_KIND_EXITED
Reply = runner_pb2.CommitAttemptResponse


@dataclass
class House:
    """A gang of three that runs, and the desk at which its members commit."""

    store: SqliteStore
    ledger: Ledger
    desk: RunnerDesk
    job: Job

    async def begin(self) -> None:
        """All members are launched, claim and run."""

        def launched(rows: Rows) -> Change | None:
            intents = [intent(rows, index, fenced=True) for index in range(SIZE)]
            return gangs.launch_all(rows, intents, NOW)

        assert await self.ledger.decide(self.job.uid, launched)
        for index in range(SIZE):
            await self.tell(index, lambda view: gangs.claimed(view, NONCE, "h:1", NOW))
            await self.tell(index, lambda view: running(view, 5, "", NOW))

    @property
    def rows(self) -> Rows:
        rows = self.ledger.rows(self.job.uid)
        assert rows is not None
        return rows

    def tell(self, index: int, step: Any) -> asyncio.Future[Change | None]:
        name = self.rows.attempts[index].name
        return self.ledger.ask(self.job.uid, of_attempt(index, name, step))

    def commit(
        self, index: int, *models: str, nonce: str = NONCE, kind: Any = GOOD
    ) -> asyncio.Future[Reply]:
        attempt = self.rows.attempts[index]
        request = runner_pb2.CommitAttemptRequest(
            attempt=attempt.name, fence=attempt.fence, nonce=nonce, kind=kind, gone=True
        )
        for model in models:
            request.models.add(model=model).manifest.digest = TREE
        return self.desk.commit(request)

    def lose(self, index: int) -> asyncio.Future[Change | None]:
        def step(view: View) -> Change | None:
            outcome = Outcome(AttemptState.LOST, causes.lost("It is gone."), gone=True)
            return gangs.ended(view, outcome, NOW)

        return self.tell(index, step)

    async def versions(self, model: str = "digits") -> list[int]:
        found = await self.store.models.versions("default", model, 0, 100)
        return sorted(version.attempt for version in found)

    async def state(self) -> JobState:
        found = await self.store.job(self.job.uid)
        assert found is not None
        return found.state

    async def turns(self) -> None:
        """Whatever can be decided now is."""
        for _ in range(5):
            await self.ledger.decide(self.job.uid, lambda rows: None)
            await asyncio.sleep(0)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    store = await open_store(tmp_path, lambda: 1)
    ledger = Ledger(store)

    async def manifest(digest: str) -> common_pb2.ManifestRef:
        return common_pb2.ManifestRef(digest=digest, total_bytes=3, files=1)

    models = LoggedModels(store, SpecCache(store), manifest)
    desk = RunnerDesk(ledger, store, FakeClock(), random.Random(1), models)
    ledger.listen(desk.on_commit)
    async with asyncio.TaskGroup() as tasks:
        loops = [
            tasks.create_task(ledger.run(), name="ledger"),
            tasks.create_task(desk.run(), name="desk"),
        ]
        job = replace(
            new_job(),
            size=SIZE,
            unstarted=Ranges.upto(SIZE),
            counts=initial_counts(SIZE, JobState.QUEUED),
            terms=Terms(gang=True, gang_policy=GangPolicy.RESTART, gang_timeout=60.0),
        )
        item = submission(job)
        await ledger.submit([replace(item, spec=b"")])
        made = House(store, ledger, desk, job)
        await made.begin()
        yield made
        for loop in loops:
            loop.cancel()
    await store.close()


async def test_versions_become_with_the_last_good_end(house: House) -> None:
    first = house.commit(0, "digits")
    await house.turns()
    assert not first.done()
    assert (await house.commit(1)).accepted
    last = house.commit(2, "digits", "other")
    assert [reply.accepted for reply in await asyncio.gather(first, last)] == [True, True]
    assert await house.state() is JobState.SUCCEEDED
    assert await house.versions() == [1, 1]
    assert await house.versions("other") == [1]


async def test_a_gang_that_begins_anew_leaves_no_version(house: House) -> None:
    first = house.commit(0, "digits")
    await house.turns()
    assert await house.lose(1) is not None
    assert (await first).accepted
    await house.commit(2, kind=runner_pb2.EXIT_KIND_STOPPED)
    assert house.rows.job.counts[JobState.QUEUED] == SIZE
    assert await house.versions() == []
    for index in range(SIZE):
        await house.tell(index, released)
    await house.begin()
    ends = [house.commit(0, "digits"), house.commit(1), house.commit(2)]
    assert all(reply.accepted for reply in await asyncio.gather(*ends))
    assert await house.state() is JobState.SUCCEEDED
    assert await house.versions() == [2]


async def test_a_cancel_lets_held_ends_go_without_versions(house: House) -> None:
    first = house.commit(0, "digits")
    await house.turns()
    await house.ledger.decide(house.job.uid, lambda rows: cancel(rows, CANCEL, NOW))
    assert (await first).accepted
    for index in (1, 2):
        await house.commit(index, kind=runner_pb2.EXIT_KIND_STOPPED)
    assert await house.state() is JobState.CANCELLED
    assert await house.versions() == []


async def test_who_commits_again_is_answered_and_counted_once(house: House) -> None:
    lost = house.commit(0, "digits")
    await house.turns()
    again = house.commit(0, "digits")
    await house.turns()
    ends = [house.commit(1), house.commit(2), lost, again]
    assert all(reply.accepted for reply in await asyncio.gather(*ends))
    assert await house.versions() == [1]


async def test_who_does_not_own_the_attempt_ends_nothing(house: House) -> None:
    foreign = house.commit(0, "digits", nonce="x" * 16)
    await house.turns()
    for index in (1, 2):
        assert (await house.commit(index)).accepted
    assert not (await foreign).accepted
    assert await house.versions() == []
    assert (await house.commit(0, "digits")).accepted
    assert await house.versions() == [1]


async def test_a_store_that_fails_decides_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in (1, 2):
        assert (await house.commit(index)).accepted

    async def broken(changes: object) -> object:
        raise StorageFailed("disk full")

    monkeypatch.setattr(house.store, "apply", broken)
    with pytest.raises(StorageFailed):
        await house.commit(0, "digits")
    monkeypatch.undo()
    assert (await house.commit(0, "digits")).accepted
    assert await house.versions() == [1]
