"""One outcome, one version: commits that bring models, through the ledger into a real store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from domain_rows import CANCEL, NOW, intent

from hatoba.v1 import common_pb2, runner_pb2, worker_pb2
from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control.aliases import Aliases
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logged_models import LoggedModels
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.control.specs import SpecCache
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.models import Decision, ModelVersion, Want
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.domain.states import AttemptState, CauseCode, JobState
from hatoba_scheduler.domain.transitions import Outcome, cancel, claimed, ended, launch
from hatoba_scheduler.errors import NotFound
from hatoba_scheduler.store.samples import new_job, submission
from hatoba_scheduler.store.sqlite import SqliteStore, open_store

if TYPE_CHECKING:
    from hatoba_scheduler.domain.records import Change
    from hatoba_scheduler.domain.transitions import View

NONCE = "n" * 16
TREE = "sha256:" + "1" * 64
MISSING = "sha256:" + "0" * 64
Reply = runner_pb2.CommitAttemptResponse


@dataclass
class House:
    """A desk over a ledger over a store, with one attempt that runs."""

    store: SqliteStore
    ledger: Ledger
    desk: RunnerDesk
    job: Job
    attempt: str
    looked_at: list[str] = field(default_factory=list)
    looks: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once somebody looks at a tree."""
    held_up: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared: whoever looks at a tree waits."""

    def commit(self, *models: str, nonce: str = NONCE, **fields: Any) -> asyncio.Future[Reply]:
        told: dict[str, Any] = {"kind": runner_pb2.EXIT_KIND_EXITED, "gone": True, **fields}
        request = runner_pb2.CommitAttemptRequest(
            attempt=self.attempt, fence=1, nonce=nonce, **told
        )
        for digest in models:
            request.models.add(model="digits").manifest.digest = digest
        return self.desk.commit(request)

    async def versions(self) -> list[ModelVersion]:
        return await self.store.models.versions("default", "digits", 0, 100)

    async def now(self) -> Job:
        found = await self.store.job(self.job.uid)
        assert found is not None
        return found


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    store = await open_store(tmp_path, lambda: 1)
    ledger = Ledger(store)
    made: list[House] = []

    async def manifest(digest: str) -> common_pb2.ManifestRef:
        made[0].looked_at.append(digest)
        made[0].looks.set()
        await made[0].held_up.wait()
        if digest == MISSING:
            raise NotFound(f"{digest} is not stored")
        return common_pb2.ManifestRef(digest=digest, total_bytes=3, files=1)

    models = LoggedModels(store, SpecCache(store), manifest)
    desk = RunnerDesk(ledger, store, FakeClock(), random.Random(1), models)
    async with asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(ledger.run(), name="ledger"),
            tasks.create_task(desk.run(), name="desk"),
        ]
        item = submission(new_job())
        await ledger.submit([replace(item, spec=b"")])
        made.append(House(store, ledger, desk, item.job, ""))
        made[0].held_up.set()
        await start(made[0])
        yield made[0]
        for task in running:
            task.cancel()
    await store.close()


async def start(house: House) -> None:
    uid = house.job.uid
    await house.ledger.decide(uid, lambda rows: launch(rows, intent(rows, fenced=True), NOW))
    rows = house.ledger.rows(uid)
    assert rows is not None
    house.attempt = rows.attempts[0].name
    await house.ledger.decide(
        uid, of_attempt(0, house.attempt, lambda view: claimed(view, NONCE, NOW))
    )


def lost(house: House) -> asyncio.Future[Change | None]:
    def step(view: View) -> Change | None:
        outcome = Outcome(AttemptState.LOST, causes.lost("It is gone."), gone=True)
        return ended(view, outcome, NOW)

    return house.ledger.ask(house.job.uid, of_attempt(0, house.attempt, step))


async def test_twenty_commits_at_once_are_one_version(house: House) -> None:
    replies = await asyncio.gather(*(house.commit(TREE) for _ in range(20)))
    assert all(reply.accepted for reply in replies)
    (version,) = await house.versions()
    assert (version.version, version.attempt, version.manifest.files) == (1, 1, 1)
    assert (await house.now()).state is JobState.SUCCEEDED


async def test_a_commit_that_does_not_own_the_attempt_makes_nothing(house: House) -> None:
    reply = await house.commit(TREE, nonce="x" * 16)
    assert not reply.accepted
    assert await house.versions() == []
    assert (await house.now()).state is JobState.STARTING


@pytest.mark.parametrize("end", ["lost", "cancelled"])
async def test_what_ends_while_its_models_are_looked_at_makes_no_version(
    house: House, end: str
) -> None:
    house.held_up.clear()
    late = house.commit(TREE)
    await house.looks.wait()
    if end == "lost":
        assert await lost(house) is not None
    else:
        await house.ledger.decide(house.job.uid, lambda rows: cancel(rows, CANCEL, NOW))
        await house.commit(kind=runner_pb2.EXIT_KIND_STOPPED)
    house.held_up.set()
    await late
    assert await house.versions() == []
    state = (await house.now()).state
    assert state is (JobState.QUEUED if end == "lost" else JobState.CANCELLED)


async def test_a_loss_and_a_cancel_after_the_commit_change_nothing(house: House) -> None:
    assert (await house.commit(TREE)).accepted
    assert await lost(house) is None
    cancelled = await house.ledger.decide(house.job.uid, lambda rows: cancel(rows, CANCEL, NOW))
    assert cancelled is None
    gone = worker_pb2.AttemptGone(attempt=house.attempt, fence=1)
    await house.desk.gone(gone)
    assert len(await house.versions()) == 1
    assert (await house.now()).state is JobState.SUCCEEDED


async def test_a_refused_model_takes_the_good_ones_with_it(house: House) -> None:
    reply = await house.commit(TREE, MISSING)
    assert reply.accepted
    assert await house.versions() == []
    job = await house.now()
    assert job.state is JobState.FAILED
    assert job.cause is not None
    assert (job.cause.code, job.cause.retryable) == (CauseCode.MODEL_REFUSED, False)
    assert MISSING in job.cause.message


async def test_a_bad_end_does_not_look_at_models(house: House) -> None:
    await house.commit(TREE, exit_code=1)
    assert house.looked_at == []
    assert await house.versions() == []


async def test_a_store_that_fails_leaves_all_as_it_was(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(uids: Sequence[str]) -> dict[str, bytes]:
        raise OSError("disk")

    monkeypatch.setattr(house.store, "specs", broken)
    with pytest.raises(OSError, match="disk"):
        await house.commit(TREE)
    monkeypatch.undo()
    assert (await house.now()).state is JobState.STARTING
    assert (await house.commit(TREE)).accepted
    assert len(await house.versions()) == 1


# -- who is told of aliases ------------------------------------------------------------------------


async def test_listeners_hear_of_moves_that_were_made(house: House) -> None:
    told: list[tuple[str, str, str, int]] = []
    aliases = Aliases(house.store)
    aliases.listen(lambda *move: told.append(cast(Any, move)))
    await house.commit(TREE, TREE)

    def want(version: int, actor: str = "ada") -> Awaitable[Any]:
        wanted = Want("default", "digits", "live", version, None, "", actor, 1)
        return aliases.move(wanted)

    await want(1)
    await want(1)
    assert told == [("default", "digits", "live", 1)]
    await house.store.models.protect("default", "digits", ("live",), "")
    asked = await want(2)
    assert len(told) == 1
    decision = Decision("default", "digits", asked.move.number, True, "", "bea", 2)
    await aliases.decide(decision)
    await aliases.decide(decision)
    assert told[1:] == [("default", "digits", "live", 2)]
