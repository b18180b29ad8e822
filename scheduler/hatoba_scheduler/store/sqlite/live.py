"""What recovery reads: all that is not over, plain waiting jobs apart."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hatoba_scheduler.domain.parking import is_plain
from hatoba_scheduler.domain.records import Attempt, Job, Task
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.store.base import LiveState, Parked
from hatoba_scheduler.store.sqlite import rows
from hatoba_scheduler.store.sqlite.queries import Where
from hatoba_scheduler.store.sqlite.readers import decoded, fetch, keyed, legible
from hatoba_scheduler.store.sqlite.statements import Row, read

JOBS_AT_ONCE = 500
PARKED_AT_ONCE = 20_000
PLAIN_STATES = (int(JobState.QUEUED), int(JobState.HELD))
_PARKED = (
    f"{read('parked')} WHERE state = ? AND project = ? AND id > ? AND {read('plain')} "
    "ORDER BY id LIMIT ?"
)
"""After a state, a project and an id."""


class ParkedPage(NamedTuple):
    """Some parked jobs, those that cannot be read left out."""

    alike: list[Parked]
    rows: int
    last: int
    """Id of the last row."""


_WAITING = f"jobs INDEXED BY jobs_by_state WHERE state IN {PLAIN_STATES}"
_OTHERS = (
    f"SELECT id FROM jobs INDEXED BY jobs_by_state WHERE state BETWEEN {int(JobState.BLOCKED)} "
    f"AND {int(JobState.STOPPING)} UNION ALL SELECT id FROM {_WAITING} AND NOT ({read('plain')})"
)
_PLAIN = f"SELECT id FROM {_WAITING} AND {read('plain')} ORDER BY state, project, id LIMIT ?"
_HOLDING = (
    "SELECT j.id FROM attempts AS a INDEXED BY attempts_held "
    "CROSS JOIN jobs AS j ON j.uid = a.job_uid WHERE a.release < 3"
)


def live_jobs(plain: int) -> Where:
    """The condition of the jobs that are not over or hold something."""
    return Where(f"id IN ({_OTHERS} UNION SELECT * FROM ({_PLAIN}) UNION {_HOLDING})", (plain,))


def one_live_job(uid: str) -> Where:
    """The condition of one such job."""
    held = "EXISTS (SELECT 1 FROM attempts WHERE job_uid = jobs.uid AND release < 3)"
    return Where(f"uid = ? AND (state < {int(JobState.SUCCEEDED)} OR {held})", (uid,))


def live(connection: sqlite3.Connection, where: Where) -> LiveState:
    """Jobs of this condition with what of them is started, as of one moment.

    A job of which a row cannot be read is left out whole.
    """
    connection.execute("BEGIN")
    try:
        sql = f"{read('jobs')} WHERE {where.sql} ORDER BY id"
        jobs = decoded(fetch(connection, sql, where.parameters), rows.job_from, "jobs")
        tasks, attempts = _started(connection, [job.uid for job in jobs if not is_plain(job)])
    finally:
        connection.execute("COMMIT")
    return _whole(jobs, tasks, attempts)


def parked(
    connection: sqlite3.Connection, state: int, project: str, after: int, skip: int
) -> ParkedPage:
    """Parked jobs of a state and project above an id, the first `skip` passed over."""
    found = fetch(connection, _PARKED, (state, project, after, PARKED_AT_ONCE))
    uids: dict[str, list[str]] = defaultdict(list)
    for _, uid, common in legible(found[skip:], "jobs"):
        uids[common].append(uid)
    alike = decoded(uids.items(), rows.parked_from, "jobs")
    return ParkedPage(alike, len(found), found[-1][0] if found else after)


def _started(connection: sqlite3.Connection, uids: Sequence[str]) -> tuple[list[Row], list[Row]]:
    tasks: list[Row] = []
    attempts: list[Row] = []
    for start in range(0, len(uids), JOBS_AT_ONCE):
        some_of, keys = keyed(uids[start : start + JOBS_AT_ONCE])
        of_these = f"WHERE job_uid {some_of}"
        tasks += fetch(connection, f"{read('tasks')} {of_these}", keys)
        attempts += fetch(
            connection, f"{read('attempts')} {of_these} {read('newest_attempts')}", keys
        )
    return tasks, attempts


def _whole(jobs: list[Job], tasks: list[Row], attempts: list[Row]) -> LiveState:
    bad: list[Row] = []
    started: list[Task] = decoded(tasks, rows.task_from, "tasks", bad)
    quarantined = {row[0] for row in bad}
    bad.clear()
    newest: list[Attempt] = decoded(attempts, rows.attempt_from, "attempts", bad)
    quarantined |= {row[1] for row in bad}
    if not quarantined:
        return LiveState(jobs, started, newest)
    return LiveState(
        [job for job in jobs if job.uid not in quarantined],
        [task for task in started if task.job_uid not in quarantined],
        [attempt for attempt in newest if attempt.job_uid not in quarantined],
    )
