"""Checks the store while it is served, and what memory holds of it; mends through the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import islice

from hatoba_plugins.backend import Clock
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.domain.mending import let_go, recounted
from hatoba_scheduler.domain.records import Change
from hatoba_scheduler.domain.transitions import Now, Rows
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.store.problems import Execute, LetGo, Recount, StoreProblem

JOBS_AT_ONCE = 500
MOST_ATTEMPTS = 2_000
"""Attempts in memory that are compared, each by a query of its own."""
LOOKS = 5
LOOK_AGAIN = 0.05
"""Seconds until a difference is looked at again: a commit may be on its way to memory."""

LIVE_CHECKED = "I28: memory says what the store says"


class StoreCheck:
    """The doctor's visit to a store that is served."""

    def __init__(self, store: Store, ledger: Ledger, clock: Clock) -> None:
        self._store = store
        self._ledger = ledger
        self._clock = clock

    async def check(self, actor: str, *, repair: bool) -> list[StoreProblem]:
        """What is wrong; with `repair`, what needs no guess is mended in the name of `actor`."""
        now = round(self._clock.time() * 1e6)
        problems = await self._store.backups.check(now)
        if repair:
            problems = [await self._mended(one, Now(now, actor)) for one in problems]
        return [*problems, *[one async for one in self._memory()]]

    async def _mended(self, problem: StoreProblem, now: Now) -> StoreProblem:
        if problem.mend is None:
            return problem
        return problem._replace(repaired=await self._mend(problem.mend, now))

    async def _mend(self, mend: Recount | LetGo | Execute, now: Now) -> bool:
        if isinstance(mend, Execute):
            await self._store.backups.execute(mend)
            return True

        def decide(rows: Rows) -> Change | None:
            if isinstance(mend, Recount):
                current = rows.job.version == mend.version
                return recounted(rows.job, mend.counts, now) if current else None
            attempt = rows.attempts.get(mend.task)
            found = attempt is not None and attempt.number == mend.number
            return let_go(rows.job, attempt) if attempt is not None and found else None

        return await self._ledger.ask(mend.job_uid, decide) is not None

    # -- memory ----------------------------------------------------------------------------------

    async def _memory(self) -> AsyncIterator[StoreProblem]:
        uids = [rows.job.uid for rows in self._ledger.all_rows()]
        for start in range(0, len(uids), JOBS_AT_ONCE):
            for uid in await self._differing(uids[start : start + JOBS_AT_ONCE]):
                yield StoreProblem("I28", f"memory and store differ about job {uid}; restart mends")
        names = list(islice(self._attempt_names(), MOST_ATTEMPTS))
        for name in names:
            if await self._differs(name):
                text = f"memory and store differ about attempt {name}; restart mends"
                yield StoreProblem("I28", text)

    def _attempt_names(self) -> list[str]:
        return [
            attempt.name for rows in self._ledger.all_rows() for attempt in rows.attempts.values()
        ]

    async def _differing(self, uids: Sequence[str]) -> Sequence[str]:
        """Those that differ, however often one looks."""
        for _ in range(LOOKS):
            stored = await self._store.jobs_by_uid(uids)
            uids = [uid for uid in uids if not self._same_job(uid, stored.get(uid))]
            if not uids:
                break
            await self._clock.sleep(LOOK_AGAIN)
        return uids

    def _same_job(self, uid: str, stored: object) -> bool:
        rows = self._ledger.rows(uid)
        return rows is None or rows.job == stored

    async def _differs(self, name: str) -> bool:
        for _ in range(LOOKS):
            stored = await self._store.attempt(name)
            where = self._ledger.find_attempt(name)
            rows = self._ledger.rows(where[0]) if where else None
            if where is None or rows is None or rows.attempts.get(where[1]) == stored:
                return False
            await self._clock.sleep(LOOK_AGAIN)
        return True
