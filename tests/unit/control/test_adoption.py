"""What an adoption attaches, what it reports, and of what it says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from domain_rows import NOW, intent, new_job
from owning_backend import OwningBackend

from hatoba.v1 import runner_pb2
from hatoba_plugins.backend import Backend
from hatoba_plugins.clock import FakeClock
from hatoba_plugins.values import Handle, Owned
from hatoba_scheduler.control.adoption import Adoption, AdoptReport
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.observe import of_attempt
from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Outcome, ended, launch
from hatoba_scheduler.store.base import ServerIdentity

if TYPE_CHECKING:
    from tests.unit.control.conftest import Books

HOSTS_DIALLED = -60.0


class NoHosts:
    """A hub that no host has called."""

    def silent_hosts(self) -> list[str]:
        return []

    def outcome(self, name: str) -> None:
        return None


def thing(uid: str, number: int, *, ended: bool) -> Owned:
    name = f"h1-{uid}-0-{number}"
    return Owned(name, "cluster", uid, 0, number, Handle(1, name), ended)


async def adopted(books: Books, *things: Owned) -> AdoptReport:
    async def commit(
        request: runner_pb2.CommitAttemptRequest,
    ) -> runner_pb2.CommitAttemptResponse:
        raise AssertionError(f"nobody said how {request.attempt} ended")

    books.store.identity = ServerIdentity("cluster", 2)  # type: ignore[attr-defined]
    backends = {"mock": cast(Backend, OwningBackend(list(things)))}
    store, hub = books.store.as_store(), cast(Hub, NoHosts())
    adoption = Adoption(books.ledger, store, FakeClock(), hub, backends, commit, HOSTS_DIALLED)
    return await adoption.adopt(dry_run=False)


async def begun(books: Books, uid: str) -> None:
    await books.submit(new_job(uid))
    await books.ledger.decide(uid, lambda rows: launch(rows, intent(rows), NOW))


async def test_what_is_over_there_and_here_is_not_named(books: Books) -> None:
    await begun(books, "over")
    await begun(books, "live")
    await begun(books, "again")
    lost = Outcome(AttemptState.LOST, causes.lost("gone"), gone=True)
    name = books.rows("over").attempts[0].name
    await books.ledger.decide("over", of_attempt(0, name, lambda view: ended(view, lost, NOW)))
    report = await adopted(
        books,
        thing("over", 1, ended=True),
        thing("live", 1, ended=True),
        thing("again", 1, ended=False),
        thing("unknown", 1, ended=True),
        thing("unknown", 2, ended=False),
    )
    assert report.adopted == ["h1-again-0-1", "h1-live-0-1"]
    assert report.reported == [
        "h1-unknown-0-1: this store has no such job",
        "h1-unknown-0-2: this store has no such job",
    ]
