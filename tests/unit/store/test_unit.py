"""Writes carried out together do what they do one after another."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from store_faults import contents

from hatoba_scheduler.domain.records import (
    AttemptWrite,
    Change,
    MetricPoint,
    TaskWrite,
)
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.store.base import RequestKey
from hatoba_scheduler.store.samples import (
    event_of,
    new_attempt,
    new_job,
    new_task,
    submission,
)
from hatoba_scheduler.store.sqlite.database import connect, migrate, migrations
from hatoba_scheduler.store.sqlite.recent_specs import RecentSpecs
from hatoba_scheduler.store.sqlite.submits import Submit
from hatoba_scheduler.store.sqlite.unit import (
    AddMetrics,
    Apply,
    Remember,
    Write,
    carry_out,
)

Make = Callable[[], Write]
JOBS = [replace(new_job(3), uid=f"job-{number}") for number in range(3)]
versions = st.integers(0, 3)


def _key(number: int, body: int) -> RequestKey:
    return RequestKey("default", "M", str(number), bytes([body]))


def _submit(job: int, key: int, body: int) -> Make:
    # The first three jobs are there from the start: these are new ones, by the same few keys.
    def make() -> Write:
        item = submission(replace(new_job(), uid=f"new-{key}-{body}-{job}"))
        return Submit([replace(item, request=_key(key, body))], 5)

    return make


def _apply(parts: list[tuple[int, int, int, int, int]]) -> Make:
    return lambda: Apply([_change(*part) for part in parts])


def _change(job: int, expected: int, index: int, task: int, attempt: int) -> Change:
    row = replace(JOBS[job], name="x", version=expected + 1)
    lost = replace(new_attempt(row, index, 1), state=AttemptState.LOST, version=attempt + 1)
    return Change(
        row,
        expected,
        (TaskWrite(replace(new_task(row, index), version=task + 1), task),),
        (AttemptWrite(lost, attempt),),
        (event_of(row, expected + 1, index),),
    )


def _metrics(points: list[tuple[int, int, int]]) -> Make:
    found = [MetricPoint("job", 0, "k", step, attempt, value, 7) for step, attempt, value in points]
    return lambda: AddMetrics(found)


makes = st.one_of(
    st.builds(_submit, st.just(0), st.integers(0, 3), st.integers(0, 1)),
    st.builds(
        _apply,
        st.lists(
            st.tuples(st.integers(0, 2), versions, st.integers(0, 1), versions, versions),
            max_size=3,
        ),
    ),
    st.builds(
        lambda key, body: lambda: Remember(_key(key, body), "r", 5),
        st.integers(0, 3),
        st.integers(0, 1),
    ),
    st.builds(_metrics, st.lists(st.tuples(versions, versions, st.integers(0, 9)), max_size=3)),
)


@settings(deadline=None, max_examples=40)
@given(makes=st.lists(makes, max_size=12), cuts=st.lists(st.integers(0, 12), max_size=4))
def test_batches_do_not_change_what_happens(makes: Sequence[Make], cuts: Sequence[int]) -> None:
    singly = _outcome([[make] for make in makes])
    edges = [0, *sorted(cuts), len(makes)]
    together = _outcome([makes[a:b] for a, b in pairwise(edges)])
    assert together == singly


def _outcome(batches: Sequence[Sequence[Make]]) -> tuple[list[Any], dict[str, list[Any]]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "hatoba.db"
        with closing(connect(path, False)) as connection:
            migrate(connection, path, migrations(), 1)
            connection.execute("PRAGMA synchronous=OFF")
            answers = _run(connection, batches)
        return answers, contents(path)


def _run(connection: sqlite3.Connection, batches: Sequence[Sequence[Make]]) -> list[Any]:
    first = [lambda: Submit([submission(job, keyed=False) for job in JOBS], 5)]
    position, answers, recent = 0, list[Any](), RecentSpecs()
    for batch in [first, *batches]:
        connection.execute("BEGIN IMMEDIATE")
        found, position = carry_out(connection, [make() for make in batch], position, recent)
        connection.execute("COMMIT")
        answers += found
    return answers
