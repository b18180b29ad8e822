"""List filters as SQL: which index to walk, and the conditions on the way."""

from __future__ import annotations

from typing import NamedTuple

from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.store.base import JobQuery

_COLUMNS = {"queue", "base_name", "created_by", "backend", "state"}
_OPERATORS = {"=", "!="}
_FIRST_FINAL = int(JobState.SUCCEEDED)

Parameter = str | int


class Where(NamedTuple):
    """What follows the table's name, and its parameters."""

    sql: str
    parameters: tuple[Parameter, ...]


def listing(query: JobQuery, after: str, limit: int) -> Where:
    """Newest first, below the uid `after`. Raises ValueError for a term that is not known."""
    terms = [_term(*term) for term in query.terms]
    conditions = ["project = ?", *(term.sql for term in terms)]
    parameters: list[Parameter] = [query.project]
    for term in terms:
        parameters += term.parameters
    if after:
        conditions.append("uid < ?")
        parameters.append(after)
    index = _index(query)
    if index in _IMPLIED:
        conditions.append(_IMPLIED[index])
    sql = f"INDEXED BY {index} WHERE {' AND '.join(conditions)} ORDER BY uid DESC LIMIT ?"
    return Where(sql, (*parameters, limit))


def counting(query: JobQuery) -> Where:
    """Rows of (state, jobs): the unfinished and the finished, each from its own index."""
    terms = [_term(*term) for term in query.terms]
    own = [query.project, *(value for term in terms for value in term.parameters)]
    conditions = " AND ".join(["project = ?", *(term.sql for term in terms)])
    halves = [
        f"SELECT state, count(*) FROM jobs INDEXED BY {index} "
        f"WHERE {conditions} AND {implied} GROUP BY state"
        for index, implied in _IMPLIED.items()
    ]
    return Where(" UNION ALL ".join(halves), (*own, *own))


_IMPLIED = {"jobs_live": f"state < {_FIRST_FINAL}", "jobs_finished": f"state >= {_FIRST_FINAL}"}
"""Partial indexes serve only those who repeat their condition."""


def _index(query: JobQuery) -> str:
    for column, operator, value in query.terms:
        if operator != "=":
            continue
        if column in ("name", "base_name"):
            return "jobs_by_name"
        if column == "state":
            return "jobs_live" if int(value) < _FIRST_FINAL else "jobs_finished"
        if column == "active" and value:
            return "jobs_live"
    return "jobs_by_project"


_LABELLED = (
    "EXISTS (SELECT 1 FROM job_labels AS l WHERE l.key = ? AND l.value = ? AND l.id = jobs.id)"
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
    return _signed(operator, f"{column} = ?", (int(value) if column == "state" else value,))


def _signed(operator: str, sql: str, parameters: tuple[Parameter, ...]) -> Where:
    return Where(sql if operator == "=" else f"NOT {sql}", parameters)


def split_name(name: str) -> tuple[str, int]:
    """NAME and N of NAME-N; a number of 0, which no job has, when it is not of that form."""
    base, _, digits = name.rpartition("-")
    if not (digits.isascii() and digits.isdigit()) or digits[0] == "0" or len(digits) > 18:
        return name, 0
    return base, int(digits)
