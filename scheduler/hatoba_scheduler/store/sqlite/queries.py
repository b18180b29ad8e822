"""List filters as SQL: which index to walk, and the conditions on the way.

Ids of jobs grow with time and end every index, so whatever is walked comes newest first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.store.base import JobQuery

_COLUMNS = {"queue", "base_name", "created_by", "backend", "state", "desired"}
_NUMBERS = {"state", "desired"}
_OPERATORS = {"=", "!="}
_FIRST_FINAL = int(JobState.SUCCEEDED)
_UNDER_WAY = frozenset(range(JobState.LAUNCHING, _FIRST_FINAL))
"""States that few jobs are in at a time."""

Parameter = str | int


class Where(NamedTuple):
    """A piece of SQL and its parameters."""

    sql: str
    parameters: tuple[Parameter, ...]


class Walk(NamedTuple):
    """Jobs (id, state) along one index; `order` is its last column, which grows with the job."""

    sql: str
    parameters: tuple[Parameter, ...]
    order: str = "jobs.id"


def listing(query: JobQuery, after: str, limit: int) -> Where:
    """Newest first, below the job `after` (a uid). Raises ValueError for an unknown term.

    What follows the table's name.
    """
    walks = [_limited(walk, after, limit) for walk in _walks(query)]
    some = " UNION ALL ".join(f"SELECT * FROM ({walk.sql})" for walk in walks)
    sql = f"WHERE id IN (SELECT id FROM ({some}) ORDER BY id DESC LIMIT ?) ORDER BY id DESC"
    return Where(sql, (*_all_of(walks), limit))


def counting(query: JobQuery) -> Where:
    """A statement whose rows are (state, jobs). Raises ValueError for an unknown term."""
    walks = list(_walks(query))
    some = " UNION ALL ".join(walk.sql for walk in walks)
    return Where(f"SELECT state, count(*) FROM ({some}) GROUP BY state", _all_of(walks))


def _limited(walk: Walk, after: str, limit: int) -> Where:
    order = walk.order
    column = order.rpartition(".")[2]
    below = f" AND {order} < (SELECT b.{column} FROM jobs AS b WHERE b.uid = ?)"
    sql, parameters = walk.sql, walk.parameters
    if after:
        sql, parameters = sql + below, (*parameters, after)
    return Where(f"{sql} ORDER BY {order} DESC LIMIT ?", (*parameters, limit))


def _all_of(walks: Iterable[Where | Walk]) -> tuple[Parameter, ...]:
    return tuple(value for walk in walks for value in walk.parameters)


def _walks(query: JobQuery) -> Sequence[Walk]:
    """The jobs of a query along one index, or state by state along one."""
    terms = [_term(*term) for term in query.terms]
    states = sorted(_states(query))
    exact = {column: value for column, operator, value in query.terms if operator == "="}
    if not states:
        return [Walk("SELECT id, state FROM jobs WHERE state < 0", ())]
    label = next((column for column in exact if column.startswith("label:")), "")
    few = _UNDER_WAY.issuperset(states)
    if "name" in exact or "base_name" in exact:
        walk = _walk("jobs INDEXED BY jobs_by_name", query, terms)
        return [walk._replace(order="jobs.number") if "base_name" in exact else walk]
    if label and not few:
        labels = Where("l.key = ? AND l.value = ?", (label.removeprefix("label:"), exact[label]))
        source = "job_labels AS l CROSS JOIN jobs ON jobs.id = l.id"
        return [_walk(source, query, [labels, *terms])._replace(order="l.id")]
    if "created_by" in exact and not few:
        return [_walk("jobs INDEXED BY jobs_by_creator", query, terms)]
    index = "jobs_by_queue" if "queue" in exact else "jobs_by_state"
    return [
        _walk(f"jobs INDEXED BY {index}", query, [Where("state = ?", (state,)), *terms])
        for state in states
    ]


def _walk(source: str, query: JobQuery, terms: Sequence[Where]) -> Walk:
    conditions = " AND ".join(["project = ?", *(term.sql for term in terms)])
    sql = f"SELECT jobs.id AS id, state FROM {source} WHERE {conditions}"
    return Walk(sql, (query.project, *_all_of(terms)))


def _states(query: JobQuery) -> set[int]:
    """States that jobs of this query may be in."""
    states = set(map(int, JobState))
    for column, operator, value in query.terms:
        if column == "state":
            named = {int(value)}
        elif column == "active":
            named = {state for state in states if (state < _FIRST_FINAL) == bool(value)}
        else:
            continue
        states = states & named if operator == "=" else states - named
    return states


_LABELLED = (
    "EXISTS (SELECT 1 FROM job_labels AS m WHERE m.key = ? AND m.value = ? AND m.id = jobs.id)"
)


def _term(column: str, operator: str, value: Parameter) -> Where:
    if operator not in _OPERATORS:
        raise ValueError(f"no such operator: {operator!r}")
    if column.startswith("label:"):
        return _signed(operator, _LABELLED, (column.removeprefix("label:"), value))
    if column == "name":
        base, number = split_name(str(value))
        return _signed(operator, "(base_name = ? AND number = ?)", (base, number))
    if column == "active":
        return _signed(operator, f"(state < {_FIRST_FINAL}) = ?", (int(bool(value)),))
    if column not in _COLUMNS:
        raise ValueError(f"no such column: {column!r}")
    return _signed(operator, f"{column} = ?", (int(value) if column in _NUMBERS else value,))


def _signed(operator: str, sql: str, parameters: tuple[Parameter, ...]) -> Where:
    return Where(sql if operator == "=" else f"NOT {sql}", parameters)


def split_name(name: str) -> tuple[str, int]:
    """NAME and N of NAME-N; a number of 0, which no job has, when it is not of that form."""
    base, _, digits = name.rpartition("-")
    if not (digits.isascii() and digits.isdigit()) or digits[0] == "0" or len(digits) > 18:
        return name, 0
    return base, int(digits)
