"""After a restore: what backends run or ran is attached to the jobs that it belongs to.

A store from a backup knows less than was true. Everything that carries our labels, of whatever
epoch, ended or not, is attached to its (job, task, attempt); what has no place is reported and left
alone. Only when all backends and all hosts have answered is it known that nothing will run twice.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hatoba.v1 import runner_pb2
from hatoba_plugins.backend import Backend, Clock
from hatoba_plugins.values import Owned
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.launches import encode_handle
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.domain.adopting import Stray, attached, over, why_not
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.errors import FailedPrecondition
from hatoba_scheduler.failpoints import hit
from hatoba_scheduler.store.base import Store

LIST_DEADLINE = 60.0
HOSTS_DEADLINE = 15.0
HOSTS_DIAL = 8.0
"""Seconds from this server's start within which every host that is there has dialled: hosts that
joined after the backup are not in it, and cannot be waited for by name.
"""
LOOK_AGAIN = 0.1
Commit = Callable[[runner_pb2.CommitAttemptRequest], Awaitable[runner_pb2.CommitAttemptResponse]]


@dataclass(slots=True)
class AdoptReport:
    """External names that have their tasks again, and what was left alone: name and why."""

    adopted: list[str] = field(default_factory=list)
    reported: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Adoption:
    """One adoption. `commit` decides how an attempt ended, as its runner said."""

    ledger: Ledger
    store: Store
    clock: Clock
    hub: Hub
    backends: Mapping[str, Backend]
    commit: Commit
    began: float
    """When this server started, by the clock's monotonic time."""

    async def adopt(self, *, dry_run: bool) -> AdoptReport:
        """Attach everything, or say what would be.

        Raises FailedPrecondition when a backend or a host does not answer.
        """
        await self.clock.sleep(max(0.0, self.began + HOSTS_DIAL - self.clock.monotonic()))
        if not dry_run:
            await self._until_hosts_told()
        report = AdoptReport([], [f"host {name}: it is away" for name in self.hub.silent_hosts()])
        for name, backend in self.backends.items():
            if backend.jobs is not None:
                for owned in await self._listed(name, backend):
                    await self._attach(name, backend, owned, report, dry_run=dry_run)
        return report

    async def _until_hosts_told(self) -> None:
        until = self.clock.monotonic() + HOSTS_DEADLINE
        while silent := self.hub.silent_hosts():
            if self.clock.monotonic() > until:
                raise FailedPrecondition(
                    f"hosts {', '.join(silent)} have not told what ran on them, and it would run "
                    "twice; start their workers, or `hatoba hosts declare-gone` what is no more"
                )
            await self.clock.sleep(LOOK_AGAIN)

    async def _listed(self, name: str, backend: Backend) -> Sequence[Owned]:
        """All that is ours there; of one task the newest attempt last."""
        cluster = self.store.identity.cluster_id
        try:
            async with asyncio.timeout(LIST_DEADLINE):
                found = [one async for one in backend.list_owned(cluster)]
        except Exception as error:
            raise FailedPrecondition(
                f"backend {name!r} does not say what it has, and it could run twice: {error!r}; "
                "repair it, or take it out of hatoba.toml"
            ) from error
        ours = [one for one in found if one.cluster_id == cluster]
        return sorted(ours, key=lambda one: (one.job_uid, one.index, one.number))

    async def _attach(
        self, name: str, backend: Backend, owned: Owned, report: AdoptReport, *, dry_run: bool
    ) -> None:
        rows = await self.ledger.load(owned.job_uid)
        if rows is None:
            known = await self.store.job(owned.job_uid)
            why = "its job is over in this store" if known else "this store has no such job"
            if not (known and owned.ended):
                report.reported.append(f"{owned.name}: {why}")
            return
        if owned.ended and over(rows, owned.index, owned.number):
            # Over there and here: nobody has anything to do or to know.
            return
        stray = self._stray(name, backend, owned)
        known_as = rows.attempts.get(owned.index)
        if (known_as is None or known_as.name != owned.name) and (why := why_not(rows, stray)):
            report.reported.append(f"{owned.name}: {why}")
            return
        report.adopted.append(owned.name)
        if not dry_run:
            await self._carry_out(rows, stray)

    def _stray(self, name: str, backend: Backend, owned: Owned) -> Stray:
        return Stray(
            name=owned.name,
            backend=name,
            index=owned.index,
            number=owned.number,
            handle=encode_handle(owned.handle),
            fenced=backend.capabilities().runner != "none",
            span_id=secrets.token_hex(8),
            host=owned.pool,
            gpus=owned.gpus,
            nonce=owned.nonce,
        )

    async def _carry_out(self, rows: Rows, stray: Stray) -> None:
        now = Now(round(self.clock.time() * 1e6))
        hit("adopt.attach.before")
        await self.ledger.decide(rows.job.uid, lambda current: attached(current, stray, now))
        hit("adopt.attach.after")
        outcome = self.hub.outcome(stray.name)
        if outcome is not None:
            await self.commit(outcome)
            hit("adopt.commit.after")
