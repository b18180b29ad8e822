"""`Store` on one SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import TypeVar

from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Attempt,
    BackendNote,
    Change,
    Event,
    Host,
    Job,
    MetricPoint,
    Micros,
    Queue,
    Task,
    TokenRecord,
)
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.store.base import (
    Applied,
    Duplicate,
    JobCount,
    JobQuery,
    LiveState,
    Met,
    MetricQuery,
    Mismatch,
    Parked,
    RequestKey,
    ServerIdentity,
    Stale,
    Submission,
    Submitted,
)
from hatoba_scheduler.store.sqlite import queries, rows
from hatoba_scheduler.store.sqlite.backup import SqliteBackups
from hatoba_scheduler.store.sqlite.blob_index import SqliteBlobIndex, job_roots
from hatoba_scheduler.store.sqlite.database import (
    FILE,
    Connect,
    DirectoryLock,
    connect,
    identity,
    migrations,
    require_sqlite,
)
from hatoba_scheduler.store.sqlite.datasets import SqliteDatasets
from hatoba_scheduler.store.sqlite.deployments import SqliteDeployments
from hatoba_scheduler.store.sqlite.devices import SqliteDevices
from hatoba_scheduler.store.sqlite.live import (
    PLAIN_STATES,
    ParkedPage,
    live,
    live_jobs,
    one_live_job,
    parked,
)
from hatoba_scheduler.store.sqlite.models import SqliteModels
from hatoba_scheduler.store.sqlite.publications import SqlitePublications
from hatoba_scheduler.store.sqlite.readers import Parameters, Readers, decoded, fetch, keyed, page
from hatoba_scheduler.store.sqlite.requests import keep, met
from hatoba_scheduler.store.sqlite.schedules import SqliteSchedules
from hatoba_scheduler.store.sqlite.statements import Row, read, warm, write
from hatoba_scheduler.store.sqlite.submits import Submit
from hatoba_scheduler.store.sqlite.unit import (
    AddMetrics,
    Apply,
    Direct,
    Remember,
    compare_request,
)
from hatoba_scheduler.store.sqlite.upgrade import open_upgraded
from hatoba_scheduler.store.sqlite.webhooks import SqliteWebhooks
from hatoba_scheduler.store.sqlite.writer import Writer
from hatoba_scheduler.store.trouble import Trouble
from hatoba_scheduler.telemetry.timings import Timings

T = TypeVar("T")

KEYS_AT_ONCE = 500
FORGET_AT_ONCE = 2_000


def _new_id() -> str:
    return uuid.uuid4().hex


async def open_store(
    directory: Path,
    now: Callable[[], Micros],
    *,
    new_id: Callable[[], str] = _new_id,
    open_connection: Connect = connect,
) -> SqliteStore:
    """Open the store of a data directory that exists, making or migrating it as needed.

    Raises AlreadyRunning when another process has it, SchemaTooNew when a newer version wrote it,
    DatabaseDamaged, StorageFull when there is no room for the copy before a migration,
    SqliteTooOld, and sqlite3.Error when the file cannot be read.
    """
    path = directory / FILE
    lock, made = await asyncio.to_thread(_prepare, path, now(), new_id, open_connection)
    writer = Writer(lambda: open_connection(path, False))
    readers = Readers(lambda: open_connection(path, True), writer.found_damaged)
    return SqliteStore(made, writer, readers, lock, now)


def _prepare(
    path: Path, now: Micros, new_id: Callable[[], str], open_connection: Connect
) -> tuple[DirectoryLock, ServerIdentity]:
    require_sqlite()
    warm()
    lock = DirectoryLock(path.parent)
    try:
        with closing(open_upgraded(path, migrations(), now, open_connection)) as connection:
            return lock, identity(connection, new_id)
    except BaseException:
        lock.release()
        raise


class SqliteStore:
    """See `Store`; made by `open_store`."""

    def __init__(
        self,
        made: ServerIdentity,
        writer: Writer,
        readers: Readers,
        lock: DirectoryLock,
        now: Callable[[], Micros],
    ) -> None:
        self._identity = made
        self._writer = writer
        self._readers = readers
        self._lock: DirectoryLock | None = lock
        self._now = now
        self._blob_index = SqliteBlobIndex(writer, readers)
        self._models = SqliteModels(writer, readers, now)

    @property
    def identity(self) -> ServerIdentity:
        """Made when the store was made."""
        return self._identity

    @property
    def commit_times(self) -> Timings:
        """How long transactions took of late, from begin to commit."""
        return self._writer.commits

    @property
    def blob_index(self) -> SqliteBlobIndex:
        """Leases and marks of stored chunks and manifests."""
        return self._blob_index

    @property
    def models(self) -> SqliteModels:
        """Models, their versions and aliases."""
        return self._models

    async def manifest_roots(self) -> set[str]:
        """See `Store.manifest_roots`."""
        return await self._readers.run(job_roots)

    @property
    def datasets(self) -> SqliteDatasets:
        """Datasets, their heads, and code versions."""
        return SqliteDatasets(self._writer, self._readers, self._now)

    @property
    def devices(self) -> SqliteDevices:
        """Devices, where they stand in roll-outs, and what they sent."""
        return SqliteDevices(self._writer, self._readers)

    @property
    def deployments(self) -> SqliteDeployments:
        """Deployments, what routers were told, and what they told."""
        return SqliteDeployments(self._writer, self._readers, self._now)

    @property
    def backups(self) -> SqliteBackups:
        """Copies of the store, and the store as a whole."""
        return SqliteBackups(self._writer, self._readers)

    @property
    def schedules(self) -> SqliteSchedules:
        """What is submitted by the clock."""
        return SqliteSchedules(self._writer, self._readers, self._now)

    @property
    def webhooks(self) -> SqliteWebhooks:
        """Webhooks, and how far they were told."""
        return SqliteWebhooks(self._writer, self._readers)

    @property
    def publications(self) -> SqlitePublications:
        """Jobs whose outputs become dataset versions."""
        return SqlitePublications(self._writer, self._readers)

    # -- jobs ---------------------------------------------------------------------------------

    async def submit(self, items: Sequence[Submission]) -> list[Submitted | Duplicate | Mismatch]:
        """See `Store.submit`."""
        answer: list[Submitted | Duplicate | Mismatch] = await self._writer.call(
            Submit(items, self._now())
        )
        return answer

    async def apply(self, changes: Sequence[Change]) -> list[Applied | Stale]:
        """See `Store.apply`."""
        answer: list[Applied | Stale] = await self._writer.call(Apply(changes))
        return answer

    async def job(self, uid: str) -> Job | None:
        """One job by uid."""
        return (await self.jobs_by_uid([uid])).get(uid)

    async def job_by_name(self, project: str, name: str) -> Job | None:
        """One job by NAME-N."""
        sql = f"{read('jobs')} WHERE project = ? AND base_name = ? AND number = ?"
        base, number = queries.split_name(name)
        found = await self._all(sql, (project, base, number), rows.job_from, "jobs")
        return found[0] if found else None

    async def jobs_by_uid(self, uids: Sequence[str]) -> dict[str, Job]:
        """Those of the jobs that exist."""
        found = decoded(await self._by_uid(read("jobs"), uids), rows.job_from, "jobs")
        return {job.uid: job for job in found}

    async def specs(self, uids: Sequence[str]) -> dict[str, bytes]:
        """Serialised specs of those jobs that exist."""
        return dict(await self._by_uid(read("specs"), uids))

    async def list_jobs(self, query: JobQuery, after: str, limit: int) -> list[Job]:
        """Newest first, below the uid `after`. Raises ValueError for an unknown term."""

        def work(connection: sqlite3.Connection) -> list[Job]:
            def some(below: str, count: int) -> list[Row]:
                where = queries.listing(query, below, count)
                return fetch(connection, f"{read('jobs')} {where.sql}", where.parameters)

            return page(some, rows.job_from, "jobs", after, limit, lambda row: row[0])

        return await self._readers.run(work)

    async def count_jobs(self, query: JobQuery) -> dict[JobState, int]:
        """Jobs per state. Raises ValueError for an unknown term."""
        where = queries.counting(query)
        counts = await self._readers.run(lambda c: fetch(c, where.sql, where.parameters))
        known = set(JobState)
        return {JobState(state): count for state, count in counts if state in known}

    async def tasks(self, job_uid: str, after_index: int, limit: int) -> list[Task]:
        """Started tasks by index, above `after_index`."""
        sql = f"{read('tasks')} WHERE job_uid = ? AND idx > ? ORDER BY idx LIMIT ?"

        def work(connection: sqlite3.Connection) -> list[Task]:
            def some(above: int, count: int) -> list[Row]:
                return fetch(connection, sql, (job_uid, above, count))

            return page(some, rows.task_from, "tasks", after_index, limit, lambda row: row[1])

        return await self._readers.run(work)

    async def succeeded(self, job_uid: str) -> Ranges:
        """Indices of a job's own tasks that SUCCEEDED, joined to runs by the database."""

        def work(connection: sqlite3.Connection) -> Ranges:
            found = fetch(connection, read("succeeded"), (job_uid, int(JobState.SUCCEEDED)))
            return Ranges(tuple((row[0], row[1]) for row in found))

        return await self._readers.run(work)

    async def attempts(
        self, job_uid: str, index: int | None, after: tuple[int, int], limit: int
    ) -> list[Attempt]:
        """Attempts by (index, number), above `after`."""
        one = "" if index is None else "AND idx = ? "
        own: tuple[str | int, ...] = (job_uid,) if index is None else (job_uid, index)
        sql = (
            f"{read('attempts')} WHERE job_uid = ? {one}AND (idx, number) > (?, ?) "
            "ORDER BY idx, number LIMIT ?"
        )

        def work(connection: sqlite3.Connection) -> list[Attempt]:
            def some(above: tuple[int, int], count: int) -> list[Row]:
                return fetch(connection, sql, (*own, *above, count))

            return page(some, rows.attempt_from, "attempts", after, limit, lambda row: row[2:4])

        return await self._readers.run(work)

    async def attempt(self, name: str) -> Attempt | None:
        """One attempt by external name."""
        sql = f"{read('attempts')} WHERE name = ?"
        found = await self._all(sql, (name,), rows.attempt_from, "attempts")
        return found[0] if found else None

    async def attempts_by_name(self, names: Sequence[str]) -> dict[str, Attempt]:
        """Those of the attempts that exist, by external name."""
        some_of, own = keyed(names)
        sql = f"{read('attempts')} WHERE name {some_of}"
        found = await self._all(sql, own, rows.attempt_from, "attempts")
        return {attempt.name: attempt for attempt in found}

    async def live(self, plain: int) -> LiveState:
        """See `Store.live`. A job of which a row cannot be read is left out whole."""
        return await self._readers.run(lambda c: live(c, live_jobs(plain)))

    async def live_job(self, uid: str) -> LiveState:
        """See `Store.live_job`."""
        return await self._readers.run(lambda c: live(c, one_live_job(uid)))

    async def parked(self, skip: int) -> AsyncIterator[Sequence[Parked]]:
        """See `Store.parked`. A job that cannot be read is left out."""
        projects = [row[0] for row in await self._rows(read("projects"), ())]
        for state, project in product(PLAIN_STATES, projects):
            after = 0
            while (page := await self._parked(state, project, after, skip)).rows:
                after, skip = page.last, max(0, skip - page.rows)
                if page.alike:
                    yield page.alike

    async def _parked(self, state: int, project: str, after: int, skip: int) -> ParkedPage:
        return await self._readers.run(lambda c: parked(c, state, project, after, skip))

    async def job_counts(self) -> list[JobCount]:
        """Jobs of all projects by queue and state."""
        return [
            JobCount(project, queue, JobState(state), count)
            for project, queue, state, count in await self._rows(read("job_counts"), ())
        ]

    async def remember_request(self, key: RequestKey, resource: str) -> Duplicate | Mismatch | None:
        """Store a key, or say what it met before."""
        met: Duplicate | Mismatch | None = await self._writer.call(
            Remember(key, resource, self._now())
        )
        return met

    async def recall_request(self, key: RequestKey) -> Duplicate | Mismatch | None:
        """What the key met before, if anything."""
        found = await self._readers.run(lambda c: fetch(c, read("request"), key[:3]))
        return compare_request(key, *found[0]) if found else None

    async def forget_requests(self, before: Micros) -> int:
        """Drop request keys older than this, some at a time; how many."""
        total = 0
        while True:
            dropped: int = await self._writer.call(Direct(lambda c: _forget(c, before)))
            total += dropped
            if dropped < FORGET_AT_ONCE:
                return total

    # -- events -------------------------------------------------------------------------------

    async def events(self, after_seq: int, limit: int, job_uids: Sequence[str] = ()) -> list[Event]:
        """Events above a position, in order; of these jobs only, when any are named."""
        wanted, own = "", list[str]()
        if job_uids:
            some_of, own = keyed(list(dict.fromkeys(job_uids)))
            wanted = f"INDEXED BY events_by_job WHERE job_uid {some_of} AND"
        sql = f"{read('events')} {wanted or 'WHERE'} seq > ? ORDER BY seq LIMIT ?"

        def work(connection: sqlite3.Connection) -> list[Event]:
            def some(above: int, count: int) -> list[Row]:
                return fetch(connection, sql, (*own, above, count))

            return page(some, rows.event_from, "events", after_seq, limit, lambda row: row[0])

        return await self._readers.run(work)

    async def event_bounds(self) -> tuple[int, int]:
        """(oldest kept, newest) positions; (1, 0) when there are none."""
        ((oldest, newest),) = await self._readers.run(lambda c: fetch(c, read("event_bounds")))
        return oldest, newest

    # -- metrics ------------------------------------------------------------------------------

    async def add_metrics(self, points: Sequence[MetricPoint]) -> None:
        """See `Store.add_metrics`."""
        await self._writer.call(AddMetrics(points))

    async def metrics(self, query: MetricQuery) -> list[MetricPoint]:
        """Points by key, index, step."""
        sql = f"{read('metrics')} WHERE job_uid = ?"
        own: list[str | int] = [query.job_uid]
        if query.keys:
            some_of, keys = keyed(query.keys)
            sql += f" AND key {some_of}"
            own += keys
        if query.index is not None:
            sql += " AND idx = ?"
            own.append(query.index)
        return await self._all(f"{sql} ORDER BY key, idx, step", own, rows.metric_from, "metrics")

    # -- queues, hosts, tokens ------------------------------------------------------------------

    async def put_queue(
        self, queue: Queue, expected_version: int, request: RequestKey | None = None
    ) -> Queue | Stale | Met:
        """See `Store.put_queue`."""
        row, now = rows.queue_row(queue), self._now()

        def work(connection: sqlite3.Connection) -> Queue | Stale | Met:
            known = met(connection, request)
            if known is not None:
                return known
            if _queue_version(connection, queue.project, queue.name) != expected_version:
                return Stale.STALE
            connection.execute(write("put_queue"), row)
            keep(connection, request, queue.name, now)
            return queue

        answer: Queue | Stale | Met = await self._writer.call(Direct(work))
        return answer

    async def queue(self, project: str, name: str) -> Queue | None:
        """One queue."""
        sql = f"{read('queues')} WHERE project = ? AND name = ?"
        found = await self._all(sql, (project, name), rows.queue_from, "queues")
        return found[0] if found else None

    async def queues(self, project: str | None, after: str, limit: int) -> list[Queue]:
        """See `Store.queues`."""
        of_one = f"{read('queues')} WHERE project = ? AND name > ? ORDER BY name LIMIT ?"
        of_all = f"{read('queues')} WHERE (project, name) > (?, ?) ORDER BY project, name LIMIT ?"
        start, _, name = after.partition("/")
        above = (project, after) if project is not None else (start, name)

        def work(connection: sqlite3.Connection) -> list[Queue]:
            def some(above: tuple[str, str], count: int) -> list[Row]:
                sql = of_all if project is None else of_one
                return fetch(connection, sql, (*above, count))

            return page(some, rows.queue_from, "queues", above, limit, lambda row: row[:2])

        return await self._readers.run(work)

    async def delete_queue(
        self, project: str, name: str, expected_version: int, request: RequestKey | None = None
    ) -> bool | Stale | Met:
        """See `Store.delete_queue`."""
        now = self._now()

        def work(connection: sqlite3.Connection) -> bool | Stale | Met:
            known = met(connection, request)
            if known is not None:
                return known
            if _queue_version(connection, project, name) != expected_version:
                return Stale.STALE
            if connection.execute(write("queue_in_use"), (project, name)).fetchone():
                return False
            connection.execute(write("delete_queue"), (project, name))
            keep(connection, request, name, now)
            return True

        answer: bool | Stale | Met = await self._writer.call(Direct(work))
        return answer

    async def put_host(self, host: Host) -> None:
        """Write a host's row."""
        await self._put("put_host", rows.host_row(host))

    async def delete_host(self, name: str) -> None:
        """Remove a host's row, if there is one."""
        await self._put("delete_host", (name,))

    async def hosts(self) -> list[Host]:
        """All hosts by name."""
        return await self._all(read("hosts"), (), rows.host_from, "hosts")

    async def put_backend(self, note: BackendNote) -> None:
        """Write what an operator said of a backend."""
        row = (note.name, int(note.cordoned), note.cordon_reason, int(note.draining))
        await self._put("put_backend", row)

    async def backends(self) -> list[BackendNote]:
        """All that operators said of backends, by name."""
        found = await self._rows(read("backends"), ())
        return [
            BackendNote(name, bool(cordoned), reason, bool(draining))
            for name, cordoned, reason, draining in found
        ]

    async def put_queue_usage(self, usage: Mapping[tuple[str, str], tuple[float, Micros]]) -> None:
        """Write what queues used on average."""
        sql = write("put_queue_usage")
        found = [(*key, repr(share), time) for key, (share, time) in usage.items()]

        def work(connection: sqlite3.Connection) -> None:
            for row in found:
                connection.execute(sql, row)

        await self._writer.call(Direct(work))

    async def queue_usage(self) -> dict[tuple[str, str], tuple[float, Micros]]:
        """What queues used on average, as it was written last."""
        found = await self._rows(read("queue_usage"), ())
        return {(project, name): (float(share), time) for project, name, share, time in found}

    async def put_token(self, token: TokenRecord) -> None:
        """Write a token's row."""
        await self._put("put_token", rows.token_row(token))

    async def tokens(self) -> list[TokenRecord]:
        """All tokens by id."""
        return await self._all(read("tokens"), (), rows.token_from, "tokens")

    # -- life -----------------------------------------------------------------------------------

    @property
    def trouble(self) -> Trouble:
        """Whether writes reach the disk."""
        return self._writer.trouble

    async def broken(self) -> AsyncIterator[BaseException]:
        """Yields once the writer can go on no more."""
        yield await asyncio.shield(self._writer.broken)

    async def close(self) -> None:
        """Finish what is queued, checkpoint and close; a second call does nothing."""
        await self._readers.close()
        await self._writer.stop()
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.release()

    # -- helpers ----------------------------------------------------------------------------------

    async def _put(self, name: str, row: Row) -> None:
        await self._writer.call(Direct(lambda connection: _execute(connection, name, row)))

    async def _rows(self, sql: str, parameters: Parameters) -> list[Row]:
        return await self._readers.run(lambda connection: fetch(connection, sql, parameters))

    async def _all(
        self, sql: str, parameters: Parameters, decode: Callable[[Row], T], table: str
    ) -> list[T]:
        return await self._readers.run(lambda c: decoded(fetch(c, sql, parameters), decode, table))

    async def _by_uid(self, head: str, uids: Sequence[str]) -> list[Row]:
        """Rows of jobs by uid; a lot of uids is asked for in pieces."""
        found: list[Row] = []
        for start in range(0, len(uids), KEYS_AT_ONCE):
            some_of, keys = keyed(uids[start : start + KEYS_AT_ONCE])
            found += await self._rows(f"{head} WHERE uid {some_of}", keys)
        return found


def _execute(connection: sqlite3.Connection, name: str, row: Row) -> None:
    connection.execute(write(name), row)


def _forget(connection: sqlite3.Connection, before: Micros) -> int:
    return connection.execute(write("forget_requests"), (before, FORGET_AT_ONCE)).rowcount


def _queue_version(connection: sqlite3.Connection, project: str, name: str) -> int:
    found = connection.execute(write("queue_version"), (project, name)).fetchone()
    return found[0] if found else 0
