"""One watcher of events: pulls from the log by position, at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.convert import event_to_proto
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.records import Event, Job
from hatoba_scheduler.errors import InvalidArgument, Reason
from hatoba_scheduler.store.base import Store

HEARTBEAT = 10.0
Response = job_pb2.WatchJobsResponse


class Watcher:
    """Answers one WatchJobs call. A cursor is `EPOCH.SEQ`, or `0` for the oldest kept event."""

    def __init__(self, events: EventLog, store: Store, stopping: asyncio.Event) -> None:
        self._events = events
        self._store = store
        self._stopping = stopping
        # Taken before the watched jobs are read, so that none can end unseen in between.
        self._start = events.newest

    def _cursor(self, seq: int) -> str:
        return f"{self._store.identity.store_epoch}.{seq}"

    async def watch(
        self, request: job_pb2.WatchJobsRequest, jobs: Sequence[Job]
    ) -> AsyncIterator[Response]:
        """Events after the cursor, then new ones, until every watched job has ended."""
        oldest, newest = await self._store.event_bounds()
        after = self._begin(request.cursor, oldest)
        if after + 1 < oldest:
            resync = Response.Resync(oldest_cursor=self._cursor(oldest - 1))
            yield Response(cursor=self._cursor(oldest - 1), resync=resync)
            return
        wanted = {job.uid for job in jobs}
        open_jobs = {job.uid for job in jobs if not job.state.terminal}
        if not request.cursor:
            # A stream that breaks before its first event must know where it began.
            yield Response(cursor=self._cursor(after), heartbeat=Response.Heartbeat())
        loop = asyncio.get_running_loop()
        spoke = loop.time()
        while True:
            page = await self._events.read(after)
            for event in page:
                if self._stopping.is_set():
                    break
                after = event.seq
                if self._relevant(event, request, wanted):
                    spoke = loop.time()
                    yield Response(cursor=self._cursor(after), event=event_to_proto(event))
                if event.job_terminal:
                    open_jobs.discard(event.job_uid)
            over = bool(wanted) and not open_jobs and after >= newest and not page
            if over or self._stopping.is_set():
                reason = "terminal" if over else "shutdown"
                yield Response(cursor=self._cursor(after), end=Response.End(reason=reason))
                return
            # Where others' events come all the time, this watcher is told that it lives as well.
            quiet = loop.time() - spoke >= HEARTBEAT if page else not await self._more(after)
            if quiet:
                spoke = loop.time()
                yield Response(cursor=self._cursor(after), heartbeat=Response.Heartbeat())

    def _begin(self, cursor: str, oldest: int) -> int:
        """The position to begin after; one before `oldest` when the cursor is of no use."""
        if not cursor:
            return self._start
        if cursor == "0":
            return oldest - 1
        epoch, _, seq = cursor.partition(".")
        current = str(self._store.identity.store_epoch)
        known = epoch.isdecimal() and seq.isdecimal()
        if known and epoch != current:
            return oldest - 2
        if not known or int(seq) > self._events.newest:
            raise InvalidArgument(
                f"cursor {cursor!r} is not one of this server's; start with an empty one",
                reason=Reason.INVALID_CURSOR,
            )
        return int(seq)

    def _relevant(self, event: Event, request: job_pb2.WatchJobsRequest, wanted: set[str]) -> bool:
        if wanted:
            chosen = event.job_uid in wanted
        else:
            chosen = event.project == (request.project or DEFAULT_PROJECT)
        moved = event.job_from is not event.job_to or event.reason == "submit"
        return chosen and (moved or not request.jobs_only)

    async def _more(self, after: int) -> bool:
        """Wait for an event or the server's stop; False after a heartbeat's time without any."""
        try:
            async with asyncio.timeout(HEARTBEAT), asyncio.TaskGroup() as group:
                stop = group.create_task(self._stopping.wait(), name="watch:stop")
                grown = group.create_task(self._events.wait_beyond(after), name="watch:grown")
                await asyncio.wait((stop, grown), return_when=asyncio.FIRST_COMPLETED)
                stop.cancel()
                grown.cancel()
        except TimeoutError:
            return False
        return True
