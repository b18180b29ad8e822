"""Write docs/errors.md from the server's own errors: `errors.py [--check]`.

Which status goes with a reason is read from the places that raise it, so a reason that nothing
raises cannot be documented: it is a fault.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from made_page import DOCS, made, table

import hatoba_scheduler
from hatoba import errors as client_errors
from hatoba.cli.exits import OF_ERROR, Exit
from hatoba_scheduler.errors import HatobaError, Reason
from hatoba_scheduler.store import errors as _store_errors  # noqa: F401 - its classes are told too

TARGET = DOCS / "errors.md"
SOURCES = Path(hatoba_scheduler.__file__).parent
HEAD = """# Errors

Written by `python tools/docs/errors.py` from `hatoba_scheduler/errors.py` and the places that raise
each error.

A refused call has a gRPC status and, in its details (`google.rpc.Status`), an `ErrorInfo` with the
domain `hatoba`, a reason of the list below, and the trace id and request id in its metadata. Where
they help there are more details: `BadRequest` names every field that is wrong with what came and
what to send instead, `RetryInfo` says when to try again, `ResourceInfo` what it is about,
`PreconditionFailure` and `QuotaFailure` what stood in the way. Programs look at the reason, never
at the words of the message.

A job that fails is no error of a call: its cause stands in the job, see
[Causes](states.md#causes)."""
STATUSES = """## What to do

Who repeats a call sends the same `request_id` with it (SDK and command line always do): then it is
done at most once, whatever was lost on the way. The exit codes are those of the
[command line](cli.md#exit-codes)."""
REASONS = """## Reasons

A closed list: no name is ever given another meaning."""

Statuses = Mapping[Reason, frozenset[str]]


def main() -> int:
    """Write the page, or with --check fail when it is not up to date."""
    return made(TARGET, page, __doc__)


def page() -> str:
    """The whole page."""
    statuses = raised(SOURCES)
    check_all(statuses)
    parts = [HEAD, STATUSES, status_table(), REASONS, reason_table(statuses)]
    return "\n\n".join(parts) + "\n"


# -- what is raised -------------------------------------------------------------------------------


def raised(sources: Path) -> Statuses:
    """Of each reason, the statuses that it is sent with."""
    found: dict[Reason, set[str]] = defaultdict(set)
    for kind in KINDS.values():
        found[kind.default_reason].add(kind.code.name)
    for path in sorted(sources.rglob("*.py")):
        for reason, kind in of_module(ast.parse(path.read_text())):
            found[reason].add(kind.code.name)
    return {reason: frozenset(names) for reason, names in found.items()}


def kinds(kind: type[HatobaError]) -> Iterator[type[HatobaError]]:
    """A class and all below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


KINDS = {kind.__name__: kind for kind in kinds(HatobaError)}


def of_module(tree: ast.Module) -> Iterator[tuple[Reason, type[HatobaError]]]:
    """Reasons that a module gives to errors, directly or through a function that makes them."""
    makers: dict[str, type[HatobaError]] = {**KINDS, **dict(helpers(tree))}
    for call in calls(tree):
        kind = makers.get(name_of(call.func))
        if kind is not None:
            for given in (*call.args, *(keyword.value for keyword in call.keywords)):
                yield from ((reason, kind) for reason in reasons(given))


def helpers(tree: ast.Module) -> Iterator[tuple[str, type[HatobaError]]]:
    """Functions that take a reason and make an error of it."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        parameters = {argument.arg for argument in function.args.args}
        for call in calls(function):
            kind = KINDS.get(name_of(call.func))
            given = {word.value.id for word in call.keywords if isinstance(word.value, ast.Name)}
            if kind is not None and "reason" in parameters & given:
                yield function.name, kind


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Every call in a piece of code."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def name_of(function: ast.expr) -> str:
    """`Class` of `Class(...)` and of `Class.of(...)`, else the function's own name."""
    if isinstance(function, ast.Attribute):
        owner = function.value
        return owner.id if isinstance(owner, ast.Name) else function.attr
    return function.id if isinstance(function, ast.Name) else ""


def reasons(given: ast.expr) -> Iterator[Reason]:
    """Every `Reason.NAME` in an expression."""
    for node in ast.walk(given):
        if isinstance(node, ast.Attribute) and name_of(node) == "Reason":
            yield Reason[node.attr]


def check_all(statuses: Statuses) -> None:
    """Raises ValueError for reasons that nothing raises."""
    idle = [reason.name for reason in Reason if reason not in statuses]
    if idle:
        raise ValueError(f"nothing raises {', '.join(idle)}")


# -- what is written ------------------------------------------------------------------------------


def status_table() -> str:
    """Of each status: what it means, and how SDK and command line show it."""
    rows = {kind.code.name: row_of(kind) for kind in HatobaError.__subclasses__()}
    return table(("Status", "Says", "In Python", "Exit code"), rows.values())


def row_of(kind: type[HatobaError]) -> tuple[str, ...]:
    """The row of one status."""
    shown = client_errors.BY_CODE.get(kind.code.name, client_errors.ServerError)
    code = OF_ERROR.get(shown, Exit.FAILURE)
    says = " ".join((kind.__doc__ or "").split())
    return f"`{kind.code.name}`", says, f"`hatoba.errors.{shown.__name__}`", str(int(code))


def reason_table(statuses: Statuses) -> str:
    """Of each reason: its status and meaning."""
    rows = (
        (f"`{reason}`", ", ".join(f"`{name}`" for name in sorted(statuses[reason])), reason.meaning)
        for reason in Reason
    )
    return table(("Reason", "Status", "Means"), rows)


if __name__ == "__main__":
    sys.exit(main())
