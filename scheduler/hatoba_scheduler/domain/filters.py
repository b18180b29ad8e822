"""List filters: `state = RUNNING AND labels.team = "vision"`, parsed into terms."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from hatoba_scheduler.domain.states import JobState

FIELDS = ("state", "queue", "backend", "name", "created_by", "active")
REASONS = frozenset(
    {
        "adopt",
        "cancel",
        "cancel_tasks",
        "claim",
        "deadline",
        "device_gone",
        "drain",
        "end",
        "fail_fast",
        "hold",
        "launch",
        "member_end",
        "preempt",
        "queue_timeout",
        "release",
        "repair",
        "retry",
        "run",
        "start",
        "stop",
        "submit",
        "unblock",
        "exec",
        "forward",
        "update",
        "upstream_failed",
        "wait",
    }
)
"""Why an event came: the closed set by which events are chosen."""
_TERM = re.compile(
    r"""\s*(?P<field>[a-z_]+(?:\.[A-Za-z0-9._/-]+)?)\s*(?P<op>!=|=)\s*"""
    r"""(?:"(?P<quoted>[^"]*)"|(?P<bare>[^\s"]+))\s*"""
)
_AND = re.compile(r"AND\s", re.ASCII)
_NUMBERED = re.compile(r".*-[0-9]+")


class Term(NamedTuple):
    """One comparison: a column of the store, `=` or `!=`, and a value."""

    column: str
    operator: str
    value: str | int


class FilterError(ValueError):
    """What of a filter is wrong, and what to write instead."""


def parse_filter(text: str) -> tuple[Term, ...]:
    """The terms of a filter; none for an empty one. Raises FilterError."""
    return tuple(_term(*comparison) for comparison in comparisons(text))


def comparisons(text: str) -> Iterator[tuple[str, str, str]]:
    """(field, operator, value) of every comparison of a filter. Raises FilterError."""
    position = 0
    first = True
    while position < len(text.rstrip()):
        if not first:
            joined = _AND.match(text, position)
            if joined is None:
                raise FilterError(f"expected AND at {text[position : position + 20]!r}")
            position = joined.end()
        match = _TERM.match(text, position)
        if match is None:
            raise FilterError(
                f"expected FIELD = VALUE or FIELD != VALUE at {text[position : position + 20]!r}"
            )
        value = match["quoted"] if match["quoted"] is not None else match["bare"]
        yield match["field"], match["op"], value
        position = match.end()
        first = False


def _term(field: str, operator: str, value: str) -> Term:
    if field.startswith("labels.") and len(field) > len("labels."):
        return Term("label:" + field.removeprefix("labels."), operator, value)
    if field == "state":
        return Term("state", operator, _state(value))
    if field == "active":
        return Term("active", operator, _flag(value))
    if field == "name":
        return Term("name" if _NUMBERED.fullmatch(value) else "base_name", operator, value)
    if field in FIELDS:
        return Term(field, operator, value)
    near = difflib.get_close_matches(field, FIELDS, 1)
    hint = (
        f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(FIELDS)}, labels.KEY"
    )
    raise FilterError(f"there is no field {field!r}{hint}")


def _state(value: str) -> int:
    try:
        return int(JobState[value])
    except KeyError:
        near = difflib.get_close_matches(value.upper(), JobState.__members__, 1)
        hint = (
            f"did you mean {near[0]}?" if near else f"known are {', '.join(JobState.__members__)}"
        )
        raise FilterError(f"there is no state {value!r}; {hint}") from None


def reason_problem(reasons: Iterable[str]) -> str:
    """What is wrong with the reasons by which events are to be chosen; empty: nothing."""
    for reason in reasons:
        if reason not in REASONS:
            near = difflib.get_close_matches(reason, REASONS, 1)
            known = (
                f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(REASONS))}"
            )
            return f"no event has the reason {reason!r}; {known}"
    return ""


def _flag(value: str) -> int:
    if value not in ("true", "false"):
        raise FilterError(f"active is true or false, not {value!r}")
    return int(value == "true")
