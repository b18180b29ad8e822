"""One look at everything that is active, again and again, in as few calls as there can be."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable

import structlog

from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.batch_spot.book import Book, Known, is_released
from hatoba_plugins.backends.batch_spot.calls import AT_ONCE, KEPT_SECONDS, BatchCalls
from hatoba_plugins.backends.batch_spot.lookup import Lookup
from hatoba_plugins.backends.batch_spot.options import BatchOptions
from hatoba_plugins.backends.batch_spot.states import OUR_STOP, Detail, refused_claim
from hatoba_plugins.errors import BackendError
from hatoba_plugins.feed import Feed
from hatoba_plugins.values import Observation, Phase, WatchItem

log = structlog.get_logger(__name__)


class Sweeper:
    """Keeps the book up to date, and tells watchers what is new in it."""

    def __init__(self, ctx: BackendContext, calls: BatchCalls, options: BatchOptions) -> None:
        self._ctx = ctx
        self._calls = calls
        self._every = options.sweep_every
        self._queues = [one.queue for one in options.pools()]
        self._fenced = options.runner == "image"
        self.book = Book(ctx.clock, ctx.cluster_id)
        self.lookup = Lookup(calls, self._queues, self.book)
        self.feed: Feed[WatchItem] = Feed()

    async def sweep_forever(self) -> None:
        """Look, and again some time after the last look has ended."""
        while True:
            await self._ctx.clock.sleep(self._every)
            try:
                await self._terminate_due()
                await self.sweep()
            except BackendError as error:
                log.warning("batch.sweep_failed", error=error.message)
            except Exception:
                # Whatever Batch answered: the next look may be better, and jobs go on meanwhile.
                log.exception("batch.sweep_broke")

    async def sweep(self) -> None:
        """Look once at what is active and was not looked at just now."""
        since = self._ctx.clock.monotonic() - self._every / 2
        due = [one for one in self.book.active() if one.at <= since]
        for start in range(0, len(due), AT_ONCE):
            await self.look(due[start : start + AT_ONCE])

    async def look(self, some: Iterable[Known]) -> None:
        """Look at these."""
        known = list(some)
        details = await self._calls.describe(one.job_id for one in known)
        await self._follow_winners(known, details)
        news = [self._note(one, details.get(one.job_id)) for one in known]
        self.feed.publish([one for one in news if one is not None])

    async def _follow_winners(self, known: Iterable[Known], details: dict[str, Detail]) -> None:
        """Where a run was refused its claim another job of the same name has it: look at that."""
        losers = {
            one.owner.name: one.job_id
            for one in known
            if self._fenced and one.job_id in details and refused_claim(details[one.job_id])
        }
        for name, named in (await self.lookup.named(losers)).items() if losers else ():
            if named.one is not None:
                details[losers[name]] = named.one

    def _note(self, known: Known, detail: Detail | None) -> Observation | None:
        if detail is not None:
            return self.book.take(detail, known.owner)
        self.book.drop(known.owner.name)
        return Observation(known.owner.name, Phase.GONE, exists=False)

    def take(self, detail: Detail) -> Known | None:
        """A job that was looked up: kept, and told when it is new; None: it is not ours."""
        owner = self.book.owner(detail)
        if owner is None or is_released(detail):
            self.book.let_go(detail["jobId"])
            return None
        news = self.book.take(detail, owner)
        if news is not None:
            self.feed.publish([news])
        return self.book[owner.name]

    async def list_all(self) -> AsyncIterator[Known]:
        """Everything of ours that is not released. Raises a BackendError."""
        since = self._ctx.clock.time() - KEPT_SECONDS
        for queue in self._queues:
            ids = [one["jobId"] async for one in self._calls.since(queue, since)]
            strange = [
                one for one in ids if self.book.by_id(one) is None and one not in self.book.not_ours
            ]
            for detail in (await self._calls.describe(strange)).values():
                self.take(detail)
            for known in filter(None, map(self.book.by_id, ids)):
                yield known

    async def _terminate_due(self) -> None:
        now = self._ctx.clock.monotonic()
        for known in [one for one in self.book.active() if 0 < one.terminate_at <= now]:
            known.terminate_at = 0.0
            # The core asks for the stop again until it took effect.
            with contextlib.suppress(BackendError):
                await self._calls.terminate(known.job_id, f"{OUR_STOP}, its grace is over")
