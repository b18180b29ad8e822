"""Asks a file what must be true of it, and mends what needs no guess.

The numbers are those of the invariants that one file can show: I1 every job is whole, I2 request
keys, I3 one attempt under way, I7 none before the last is gone, I8 final states, I17 cancels, I20
one event for each change, I31 numbers, I32 reservations, I34 unreadable rows.
"""

from __future__ import annotations

import functools
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hatoba_scheduler.domain.mending import let_go, recounted
from hatoba_scheduler.domain.records import PLAIN, Change, Counts, Job, Micros, no_counts
from hatoba_scheduler.domain.states import AttemptState, Desired, JobState, Release
from hatoba_scheduler.domain.transitions import Now, state_of
from hatoba_scheduler.store.base import Applied
from hatoba_scheduler.store.problems import Execute, LetGo, Recount, StoreProblem
from hatoba_scheduler.store.sqlite import rows
from hatoba_scheduler.store.sqlite.database import connect, migrations
from hatoba_scheduler.store.sqlite.readers import decoded_row, lenient
from hatoba_scheduler.store.sqlite.recent_specs import RecentSpecs
from hatoba_scheduler.store.sqlite.statements import Row, of, read, write
from hatoba_scheduler.store.sqlite.unit import Apply, carry_out

PART = "doctor"
SHOWN = 20
"""Problems of one kind that are told one by one; of the rest the number."""
RELEASING_FOR: Micros = 24 * 3600 * 1_000_000
"""An ended attempt should be known to be gone by then."""
ACTOR = "doctor"

Words = Callable[..., StoreProblem]
T = TypeVar("T")


def check(connection: sqlite3.Connection, now: Micros = 0) -> list[StoreProblem]:
    """All that is wrong with a file, as one moment shows it; `now` 0: ages are not judged.

    Raises nothing for whatever is in the file: what cannot be read is a problem.
    """
    try:
        connection.execute("BEGIN")
        try:
            return list(_all(connection, now))
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return [_damaged(f"{error}")]


CHECKED = (
    "file: pages, indexes and rules",
    "schema: every table, index and trigger of this version",
    "I1: every job has its spec, every row its job",
    "I2: request keys name jobs that exist",
    "I3: at most one attempt of a task is under way",
    "I7: no attempt before the last one is gone",
    "I8: counts and states agree, final states are final",
    "I17: nothing of a cancelled job waits",
    "I20: one event for each change, without gaps",
    "I31: numbers and fences of attempts grow by one launch each",
    "I32: ended attempts hold nothing",
    "I34: every row can be read",
)
"""What `check` looks at."""


def _all(connection: sqlite3.Connection, now: Micros) -> Iterator[StoreProblem]:
    broken = list(_file(connection))
    yield from broken
    if not broken:
        outdated = list(_schema(connection))
        yield from outdated
        if not any(problem.mend is None for problem in outdated):
            yield from _contents(connection, now)


def _contents(connection: sqlite3.Connection, now: Micros) -> Iterator[StoreProblem]:
    for question in QUESTIONS:
        yield from _asked(connection, question, ())
    if now:
        yield from _asked(connection, _RELEASING, (now - RELEASING_FOR,))
    yield from _leftovers(connection)
    yield from _jobs(connection)
    for table, head, decode in _TABLES:
        for found in _decoded(connection, table, f"{read(head)} {_SUSPECT.get(table, '')}", decode):
            if isinstance(found, StoreProblem):
                yield found


# -- the file ------------------------------------------------------------------------------------


def _damaged(text: str) -> StoreProblem:
    return StoreProblem("file", f"the database is damaged: {text}; restore a backup of it")


def _file(connection: sqlite3.Connection) -> Iterator[StoreProblem]:
    for (text,) in connection.execute(f"PRAGMA integrity_check({SHOWN})"):
        if text != "ok":
            yield _damaged(text)


def _schema(connection: sqlite3.Connection) -> Iterator[StoreProblem]:
    known = migrations()
    (found,) = connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()
    if found != known[-1].version:
        what = "start the server once: it takes a backup and migrates it"
        if found > known[-1].version:
            what = "use the version that wrote it, or a newer one"
        yield StoreProblem(
            "schema", f"it is {found}, this version brings {known[-1].version}; {what}"
        )
        return
    have = _objects(connection)
    for (kind, name), sql in _wanted().items():
        if (kind, name) in have:
            continue
        mend = Execute(sql) if kind != "table" else None
        yield StoreProblem("schema", f"{kind} {name} is missing", "make it" if mend else "", mend)


@functools.cache
def _wanted() -> Mapping[tuple[str, str], str]:
    """What a new store has."""
    with closing(sqlite3.connect(":memory:")) as fresh:
        for migration in migrations():
            fresh.executescript(migration.sql)
        return _objects(fresh)


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    query = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    return {(kind, name): sql for kind, name, sql in connection.execute(query)}


# -- questions that SQL answers ------------------------------------------------------------------


class Question(NamedTuple):
    """A statement of `sql/doctor.sql` whose rows are problems, and the words for one of them."""

    name: str
    words: Words


def _asked(
    connection: sqlite3.Connection, question: Question, parameters: Sequence[int]
) -> Iterator[StoreProblem]:
    cursor = connection.execute(of(PART, question.name), parameters)
    problems = [question.words(*row) for row in cursor]
    yield from problems[:SHOWN]
    if len(problems) > SHOWN:
        more = problems[SHOWN]
        yield StoreProblem(more.invariant, f"and {len(problems) - SHOWN:,} more of this kind")
        yield from (problem for problem in problems[SHOWN:] if problem.mend is not None)


def _state(number: int) -> str:
    return JobState(number).name if number in list(JobState) else f"state {number}"


def _attempt_state(number: int) -> str:
    return AttemptState(number).name if number in list(AttemptState) else f"state {number}"


def _plain(invariant: str, text: str) -> Words:
    """A problem whose words are made of the row's values, and that nothing mends."""
    return lambda *row: StoreProblem(invariant, text.format(*row))


def _task_and_attempt(
    job: str, index: int, state: int, attempt: int, number: int, found: int
) -> StoreProblem:
    if attempt != number:
        text = f"{job}[{index}] says attempt {attempt}, the newest is {number}"
        return StoreProblem("I31", text)
    other = _attempt_state(found) if found else "none"
    return StoreProblem("I3", f"{job}[{index}] is {_state(state)}, its attempt {number} is {other}")


def _held(name: str, job_uid: str, index: int, number: int) -> StoreProblem:
    return StoreProblem(
        "I32",
        f"attempt {name} has ended and still holds its place",
        "let its backend confirm that it is gone, then release it",
        LetGo(job_uid, index, number),
    )


def _overlap(name: str, number: int, state: int, release: int) -> StoreProblem:
    held = f"{_attempt_state(state)}, {Release(release).name if 0 < release < 4 else release}"
    return StoreProblem("I7", f"attempt {name} ({number}) is {held}, and there is a later one")


def _history(
    job: str, seq: int, job_seq: int, before: int | None, came: int, was: int | None
) -> StoreProblem:
    if job_seq != (before or 0) + 1:
        text = f"{job}: event {seq} is its number {job_seq}, after {before or 'none'}"
    else:
        ended = _state(was or 0)
        text = f"{job}: event {seq} begins at {_state(came)}, the one before ended at {ended}"
    return StoreProblem("I20", text)


def _untold(job: str, version: int, state: int, told: int | None, last: int | None) -> StoreProblem:
    known = f"version {told}, {_state(last or 0)}" if told else "nothing"
    return StoreProblem(
        "I20", f"{job} is at version {version}, {_state(state)}; its events tell of {known}"
    )


QUESTIONS = (
    Question("two_under_way", _plain("I3", "{0}[{1}] has {2} attempts under way")),
    Question("tasks_and_attempts", _task_and_attempt),
    Question("overlapping", _overlap),
    Question("held_after_end", _held),
    Question(
        "released_before_end", _plain("I32", "attempt {0} is under way and not HELD ({2} of 3)")
    ),
    Question(
        "fences",
        _plain("I31", "attempt {0} is number {1} with fence {2}, after number {3} with fence {4}"),
    ),
    Question(
        "generations",
        _plain("I7", "{0} is in generation {1}, its attempt {2} of generation {3} is under way"),
    ),
    Question("log_gaps", _plain("I20", "the event log from {0} to {1} has {2} events")),
    Question("histories", _history),
    Question("untold_jobs", _untold),
    Question(
        "untold_tasks",
        lambda job, index, state, told: StoreProblem(
            "I20", f"{job}[{index}] is {_state(state)}, its newest event says {_state(told)}"
        ),
    ),
    Question(
        "cancels_forgotten",
        lambda job, index, state: StoreProblem(
            "I17", f"{job} was cancelled, and {job}[{index}] is still {_state(state)}"
        ),
    ),
    Question(
        "keys_to_nothing", _plain("I2", "request {1!r} of {0} names job {2}, which does not exist")
    ),
    Question("blocked_on_nothing", _plain("I1", "{0} waits for job {1}, which does not exist")),
    Question("events_of_nothing", _plain("I1", "{0} has {1} events and does not exist")),
    Question("tasks_of_nothing", _plain("I1", "job {0} does not exist, its task {1} does")),
    Question("attempts_of_nothing", _plain("I1", "attempt {0} has no task")),
    Question("jobs_without_spec", _plain("I1", "job {0} has no spec")),
)
_RELEASING = Question(
    "releasing_since",
    _plain(
        "I32",
        "attempt {0} on {1} {2} ended over a day ago and is not known to be gone; "
        "`hatoba hosts declare-gone` says it of a host that will not come back",
    ),
)


_BELONGINGS = {
    "job_labels": "id NOT IN (SELECT id FROM jobs)",
    "specs": "id NOT IN (SELECT id FROM jobs)",
    "metrics": "job_uid NOT IN (SELECT uid FROM jobs)",
    "job_inputs": "job_uid NOT IN (SELECT uid FROM jobs)",
    "publications": "job_uid NOT IN (SELECT uid FROM jobs)",
}


def _leftovers(connection: sqlite3.Connection) -> Iterator[StoreProblem]:
    """Rows that nobody can reach: their job does not exist."""
    for table, orphaned in _BELONGINGS.items():
        query = f"SELECT count(*) FROM {table} WHERE {orphaned}"
        (count,) = connection.execute(query).fetchone()
        if count:
            mend = Execute(f"DELETE FROM {table} WHERE {orphaned}")
            text = f"{count:,} rows of {table} belong to jobs that do not exist"
            yield StoreProblem("I1", text, "delete them", mend)


# -- rows ----------------------------------------------------------------------------------------


_TABLES: tuple[tuple[str, str, Callable[[Row], Any]], ...] = (
    ("tasks", "tasks", rows.task_from),
    ("attempts", "attempts", rows.attempt_from),
    ("events", "events", rows.event_from),
    ("queues", "queues", rows.queue_from),
    ("hosts", "hosts", rows.host_from),
    ("tokens", "tokens", rows.token_from),
)

_SUSPECT = {
    # By far the most rows, of which nearly none can be anything but readable.
    "events": "WHERE cause <> '' OR 13 < max(from_state, to_state, job_from, job_to) "
    "OR 1 > min(from_state, to_state, job_from, job_to)"
}


def _decoded(
    connection: sqlite3.Connection, table: str, sql: str, decode: Callable[[Row], T]
) -> Iterator[T | StoreProblem]:
    """Every row's record, or what is wrong with it."""
    for row in _streamed(connection, sql):
        try:
            yield decoded_row(row, decode)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a row is what we look for
            key = ", ".join(repr(value)[:80] for value in row[:4])
            text = f"row ({key}, ...) of {table} cannot be read: {error!r}"
            yield StoreProblem("I34", text)


def _streamed(connection: sqlite3.Connection, sql: str) -> Iterator[Row]:
    """Rows one by one; from text that is no UTF-8 on they are read in the slow way."""
    given = 0
    try:
        for row in connection.execute(sql):
            yield row
            given += 1
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" not in str(error):
            raise
    else:
        return
    connection.text_factory = lenient
    try:
        yield from islice(connection.execute(sql), given, None)
    finally:
        connection.text_factory = str


def _jobs(connection: sqlite3.Connection) -> Iterator[StoreProblem]:
    started = _started(connection)
    for found in _decoded(connection, "jobs", read("jobs"), rows.job_from):
        if isinstance(found, StoreProblem):
            yield found
        else:
            yield from _job(found, started.get(found.uid, {}))


def _started(connection: sqlite3.Connection) -> Mapping[str, Mapping[int, int]]:
    found: dict[str, dict[int, int]] = defaultdict(dict)
    for uid, state, count in connection.execute(of(PART, "task_counts")):
        found[uid][state] = count
    return found


def _job(job: Job, started: Mapping[int, int]) -> Iterator[StoreProblem]:
    counts = recount(job, started)
    if counts != job.counts:
        text = f"{job.name} counts {_counted(job.counts)}, its tasks are {_counted(counts)}"
        yield _miscounted(job, counts, text)
        return
    if sum(counts) != job.size:
        yield StoreProblem("I8", f"{job.name} has {job.size} tasks and counts {sum(counts)}")
        return
    state = state_of(job)
    if state is not job.state:
        text = f"{job.name} is {job.state.name}, by its tasks it is {state.name}"
        yield _miscounted(job, counts, text)
    if job.state.terminal and not job.end_time:
        yield StoreProblem("I8", f"{job.name} is {job.state.name} and has no time of its end")
    if job.desired is Desired.CANCELLED and job.unstarted and not job.unstarted_state.terminal:
        text = f"{job.name} was cancelled, and {len(job.unstarted)} of its tasks may still start"
        yield StoreProblem("I17", text)


def recount(job: Job, started: Mapping[int, int]) -> Counts:
    """A job's counts from the states of its started tasks, and from what says of the rest."""
    counts = list(no_counts())
    for state, count in started.items():
        if 0 < state < len(counts):
            counts[state] += count
    counts[job.unstarted_state] += len(job.unstarted)
    counts[JobState.CANCELLED] += len(job.dropped)
    if job.terms is not PLAIN:
        counts[JobState.SUCCEEDED] += len(job.terms.inherited)
    return tuple(counts)


def _miscounted(job: Job, counts: Counts, text: str) -> StoreProblem:
    if job.state.terminal or sum(counts) != job.size:
        return StoreProblem("I8", text)
    mend = Recount(job.uid, job.version, counts)
    return StoreProblem("I8", text, "count its tasks anew, and tell it in an event", mend)


def _counted(counts: Counts) -> str:
    return ", ".join(f"{count} {_state(state)}" for state, count in enumerate(counts) if count)


def visit(file: Path, now: Micros, *, mend: bool) -> list[StoreProblem]:
    """What is wrong with the file of a store that is not served; mended where that is wanted.

    The caller holds the directory's lock.
    """
    try:
        with closing(connect(file, reader=True)) as connection:
            found = check(connection, now)
    except sqlite3.Error as error:
        return [_damaged(str(error))]
    if not mend or not any(problem.mend for problem in found):
        return found
    with closing(connect(file, reader=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        done = repair(connection, found, now)
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return done


# -- mending -------------------------------------------------------------------------------------


def repair(
    connection: sqlite3.Connection, problems: Iterable[StoreProblem], now: Micros
) -> list[StoreProblem]:
    """Mend, in the open transaction, what can be; the problems, with what was done."""
    return [
        problem._replace(repaired=problem.mend is not None and _mended(connection, problem, now))
        for problem in problems
    ]


def _mended(connection: sqlite3.Connection, problem: StoreProblem, now: Micros) -> bool:
    if isinstance(problem.mend, Execute):
        connection.execute(problem.mend.sql)
        return True
    change = _change(connection, problem, Now(now, ACTOR))
    if change is None:
        return False
    (position,) = connection.execute(write("last_seq")).fetchone()
    (answers, _) = carry_out(connection, [Apply([change])], position, RecentSpecs())
    return bool(answers) and isinstance(answers[0], list) and isinstance(answers[0][0], Applied)


def _change(connection: sqlite3.Connection, problem: StoreProblem, now: Now) -> Change | None:
    mend = problem.mend
    assert isinstance(mend, Recount | LetGo)
    row = connection.execute(f"{read('jobs')} WHERE uid = ?", (mend.job_uid,)).fetchone()
    if row is None:
        return None
    job = rows.job_from(row)
    if isinstance(mend, Recount):
        return recounted(job, mend.counts, now) if job.version == mend.version else None
    query = f"{read('attempts')} WHERE job_uid = ? AND idx = ? AND number = ?"
    found = connection.execute(query, mend).fetchone()
    return let_go(job, rows.attempt_from(found)) if found else None
