"""One watcher of events: told of what concerns it, or reading the log at its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.event_filters import EventFilter
from hatoba_scheduler.control.events import EventLog
from hatoba_scheduler.control.fanout import Place, Told, Wants
from hatoba_scheduler.domain.filters import FilterError, reason_problem
from hatoba_scheduler.domain.naming import DEFAULT_PROJECT
from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.errors import InvalidArgument, Reason
from hatoba_scheduler.store.base import Store

OLDEST = "0"
Response = job_pb2.WatchJobsResponse


class Watcher:
    """Answers one WatchJobs call. A cursor is `EPOCH.SEQ`, or `0` for the oldest kept event."""

    def __init__(self, events: EventLog, store: Store, stopping: asyncio.Event) -> None:
        self._events = events
        self._store = store
        self._stopping = stopping
        # Taken before the watched jobs are read, so that none can end unseen in between.
        self._after = events.newest
        self._newest = events.newest
        self._allowed = events.most_behind
        self._open: set[str] = set()

    async def watch(
        self, request: job_pb2.WatchJobsRequest, jobs: Sequence[Job]
    ) -> AsyncIterator[Response]:
        """Events after the cursor, then new ones, until every watched job has ended.

        Raises InvalidArgument for a cursor or a filter that is none.
        """
        wants = _wants(request, jobs)
        self._open = {job.uid for job in jobs if not job.state.terminal}
        first = await self._prepare(request.cursor)
        if first is not None:
            yield first
            if first.HasField("resync"):
                return
        with self._events.following(wants) as place:
            while (last := self._last(place)) is None:
                found, upto = await self._next(place)
                for told in found:
                    if self._stopping.is_set():
                        break
                    self._after = told.event.seq
                    place.spoke()
                    yield self._events.message(told.event)
                else:
                    self._arrived(place, upto)
                if place.due:
                    place.spoke()
                    yield self._heartbeat()
            yield last

    async def _prepare(self, cursor: str) -> Response | None:
        """Find where to begin, and what is to be said first."""
        oldest, self._newest = await self._store.event_bounds()
        self._after = self._begin(cursor, oldest)
        if self._after + 1 < oldest:
            return self._resync(oldest - 1, oldest - 1)
        if cursor == OLDEST:
            self._allowed += self._events.newest - self._after
        # A stream that breaks before its first event must know where it began.
        return None if cursor else self._heartbeat()

    def _last(self, place: Place) -> Response | None:
        """The stream's last message, once it is over."""
        if self._stopping.is_set():
            return self._end("shutdown")
        if place.behind and self._events.newest - self._after > self._allowed:
            return self._too_slow()
        told_all = not place.behind and self._after >= self._newest
        if place.wants.uids and not self._open and told_all:
            return self._end("terminal")
        return None

    async def _next(self, place: Place) -> tuple[list[Told], int]:
        """What the watcher is to be told now, and up to which position that is all of it."""
        if place.behind:
            page, upto = await self._events.read_for(place.wants, self._after)
            return self._chosen(place.wants, page), upto
        await place.woken()
        upto, page = self._events.newest, []
        for seq in place.take():
            told = self._events.kept(seq)
            if told is None:
                place.falls_behind()
                upto = page[-1].event.seq if page else self._after
                break
            page.append(told)
        return self._chosen(place.wants, page), upto

    def _chosen(self, wants: Wants, page: Sequence[Told]) -> list[Told]:
        for event, _ in page:
            if event.job_terminal:
                self._open.discard(event.job_uid)
        return [told for told in page if wants.admits(told)]

    def _arrived(self, place: Place, upto: int) -> None:
        """All up to there is told; at the end of the log the watcher is told of what comes."""
        self._after = upto
        if place.behind and upto >= self._events.newest:
            place.keeps_up()

    # -- messages -------------------------------------------------------------------------------

    def _heartbeat(self) -> Response:
        cursor = self._events.cursor(self._after)
        return Response(cursor=cursor, heartbeat=Response.Heartbeat())

    def _end(self, reason: str) -> Response:
        return Response(cursor=self._events.cursor(self._after), end=Response.End(reason=reason))

    def _too_slow(self) -> Response:
        newest = self._events.newest
        return self._resync(newest, max(self._after, newest - self._events.most_behind))

    def _resync(self, cursor: int, oldest: int) -> Response:
        resync = Response.Resync(oldest_cursor=self._events.cursor(oldest))
        return Response(cursor=self._events.cursor(cursor), resync=resync)

    def _begin(self, cursor: str, oldest: int) -> int:
        """The position to begin after; one before `oldest` when the cursor is of no use."""
        if not cursor:
            return self._after
        if cursor == OLDEST:
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


def _wants(request: job_pb2.WatchJobsRequest, jobs: Sequence[Job]) -> Wants:
    if request.filter and request.jobs:
        raise InvalidArgument.field(
            "filter",
            "goes with all jobs of a project, not with named ones",
            value=request.filter,
            remedy="leave out one of `jobs` and `filter`",
        )
    problem = reason_problem(request.reasons)
    if problem:
        raise InvalidArgument.field("reasons", problem)
    try:
        chosen = EventFilter.parse(request.filter, request.jobs_only, request.reasons)
    except FilterError as error:
        raise InvalidArgument(f"filter: {error}", reason=Reason.INVALID_FILTER) from error
    uids = frozenset(job.uid for job in jobs)
    return Wants(request.project or DEFAULT_PROJECT, uids, chosen)
