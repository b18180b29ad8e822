"""Records survive their way through the database, whatever they hold."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatoba_scheduler.domain.ranges import Ranges
from hatoba_scheduler.domain.records import (
    Attempt,
    Cause,
    Checkpoint,
    Event,
    Job,
    ManifestRef,
    Resources,
    RetryPolicy,
    Task,
    Usage,
)
from hatoba_scheduler.domain.states import (
    STATE_COUNT,
    AttemptState,
    CauseCode,
    Desired,
    JobState,
    Origin,
    Release,
)
from hatoba_scheduler.store.sqlite import rows
from hatoba_scheduler.store.sqlite.database import connect, migrate, migrations
from hatoba_scheduler.store.sqlite.queries import split_name
from hatoba_scheduler.store.sqlite.readers import keyed
from hatoba_scheduler.store.sqlite.statements import Row, chunks, execute_rows, read

numbers = st.integers(0, 2**63 - 1)
texts = st.text(max_size=20)
floats = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
pairs = st.lists(st.tuples(texts, texts), max_size=3).map(tuple)
manifests = st.builds(ManifestRef, texts, numbers, numbers)
metrics = st.lists(st.tuples(texts, floats), max_size=3).map(tuple)
checkpoints = st.builds(Checkpoint, numbers, numbers, manifests, metrics, numbers)
job_states, attempt_states = st.sampled_from(JobState), st.sampled_from(AttemptState)
causes = st.builds(
    Cause,
    st.sampled_from(CauseCode),
    st.sampled_from(Origin),
    texts,
    st.booleans(),
    st.none() | numbers,
    st.none() | numbers,
    pairs,
    st.lists(texts, max_size=3).map(tuple),
)
resources = st.builds(Resources, floats, numbers, numbers, numbers)
ranges = st.lists(st.integers(0, 10**6), unique=True, max_size=8).map(
    lambda cuts: Ranges(
        tuple((a, b) for a, b in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False))
    )
)
jobs = st.builds(
    Job,
    uid=texts,
    project=texts,
    name=st.just("a-b-7"),
    queue=texts,
    backend=texts,
    priority=st.integers(-(2**63), 2**63 - 1),
    size=numbers,
    max_parallel=numbers,
    fail_fast=st.booleans(),
    resources=resources,
    retries=st.builds(RetryPolicy, numbers, numbers, numbers, floats, floats),
    state=job_states,
    desired=st.sampled_from(Desired),
    version=numbers,
    settings_version=numbers,
    unstarted=ranges,
    unstarted_state=job_states,
    counts=st.lists(numbers, min_size=STATE_COUNT, max_size=STATE_COUNT).map(tuple),
    hold=st.booleans(),
    blocked_on=st.lists(texts, max_size=3).map(tuple),
    created_by=texts,
    create_time=numbers,
    start_time=numbers,
    end_time=numbers,
    cause=st.none() | causes,
    trace_id=texts,
    span_id=texts,
    sampled=st.booleans(),
    rerun_of=texts,
    stop_grace=floats,
    labels=pairs,
    secrets=st.lists(texts, max_size=3).map(tuple),
    embedded_only=st.booleans(),
    outputs=st.none() | manifests,
    restore=st.none() | checkpoints,
)
tasks = st.builds(
    Task,
    job_uid=texts,
    index=numbers,
    state=job_states,
    version=numbers,
    attempt=numbers,
    not_before=numbers,
    user_failures=numbers,
    infrastructure_failures=numbers,
    preemptions=numbers,
    cause=st.none() | causes,
    checkpoint=st.none() | checkpoints,
    outputs=st.none() | manifests,
    start_time=numbers,
    end_time=numbers,
)
attempts = st.builds(
    Attempt,
    name=texts,
    job_uid=texts,
    index=numbers,
    number=numbers,
    fence=numbers,
    backend=texts,
    host=texts,
    gpus=st.lists(texts, max_size=3).map(tuple),
    state=attempt_states,
    version=numbers,
    release=st.sampled_from(Release),
    fenced=st.booleans(),
    span_id=texts,
    create_time=numbers,
    handle=st.binary(max_size=20),
    nonce=texts,
    intended=st.none() | attempt_states,
    unknown_since=numbers,
    claim_time=numbers,
    start_time=numbers,
    end_time=numbers,
    cause=st.none() | causes,
    usage=st.builds(Usage, floats, numbers, floats, texts),
    checkpoint=st.none() | checkpoints,
    outputs=st.none() | manifests,
    log_sizes=st.lists(st.tuples(texts, numbers), max_size=3).map(tuple),
    reserved=resources,
)
events = st.builds(
    Event,
    job_uid=texts,
    job_seq=numbers,
    time=numbers,
    index=st.none() | numbers,
    attempt=numbers,
    from_state=job_states,
    to_state=job_states,
    job_from=job_states,
    job_to=job_states,
    cause=st.none() | causes,
    actor=texts,
    reason=texts,
    project=texts,
    job_name=texts,
    trace_id=texts,
    seq=numbers,
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path: Path = tmp_path_factory.mktemp("rows") / "hatoba.db"
    connection = connect(path, False)
    migrate(connection, path, migrations(), 1)
    yield connection
    connection.close()


def _through(database: sqlite3.Connection, statement: str, row: Row, table: str) -> Row:
    database.execute("BEGIN")
    try:
        execute_rows(database, statement, [row])
        (found,) = database.execute(read(table)).fetchall()
    finally:
        database.execute("ROLLBACK")
    return tuple(found)


@given(job=jobs)
def test_jobs(database: sqlite3.Connection, job: Job) -> None:
    row = (1, 7, *rows.new_job_row(job, "a-b"), 0)
    assert rows.job_from(_through(database, "insert_jobs", row, "jobs")) == job


@given(task=tasks)
def test_tasks(database: sqlite3.Connection, task: Task) -> None:
    assert rows.task_from(_through(database, "put_tasks", rows.task_row(task), "tasks")) == task


@given(attempt=attempts)
def test_attempts(database: sqlite3.Connection, attempt: Attempt) -> None:
    row = rows.attempt_row(attempt)
    assert rows.attempt_from(_through(database, "put_attempts", row, "attempts")) == attempt


@given(event=events)
def test_events(database: sqlite3.Connection, event: Event) -> None:
    row = (event.seq, event.job_name, *rows.event_row(event))
    assert rows.event_from(_through(database, "insert_events", row, "events")) == event


@given(count=st.integers(0, 2_000))
def test_chunks_are_the_rows_in_order(count: int) -> None:
    found = list(chunks([(number,) for number in range(count)]))
    assert [row for chunk in found for row in chunk] == [(number,) for number in range(count)]
    assert {len(chunk) for chunk in found} <= {500, 100, 10, 1}


@given(keys=st.lists(texts, min_size=1, max_size=700))
def test_keys_are_padded_with_themselves(keys: list[str]) -> None:
    sql, padded = keyed(keys)
    assert sql.count("?") == len(padded)
    assert padded[: len(keys)] == keys
    assert set(padded) == set(keys)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("digits-42", ("digits", 42)),
        ("a-2-1", ("a-2", 1)),
        ("digits", ("digits", 0)),
        ("digits-", ("digits-", 0)),
        ("digits-042", ("digits-042", 0)),
        ("digits-٣", ("digits-٣", 0)),
        ("-1", ("", 1)),
        ("x-" + "9" * 19, ("x-" + "9" * 19, 0)),
    ],
)
def test_names_are_split(name: str, parts: tuple[str, int]) -> None:
    assert split_name(name) == parts
