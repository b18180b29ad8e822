"""What the runners of images and pods have in common on their way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from hatoba.v1 import runner_pb2
from hatoba_worker.attempts import Attempt
from hatoba_worker.burials import Burials
from hatoba_worker.course import Course, Way
from hatoba_worker.entrypoint import codes

log = structlog.get_logger(__name__)
T = TypeVar("T")
BRING_OUT = 0.3
"""Share of the platform's time between SIGTERM and SIGKILL that is kept for bringing out."""
MOST_BRING_OUT = 20.0


class NotBuried(Burials):
    """What an attempt leaves in its container goes with the container."""

    def __init__(self) -> None:
        """Nothing is needed for that."""

    def add(self, attempt: Attempt, outcome: str) -> None:
        """Leave everything where it is."""


async def unless(event: asyncio.Event, way: Coroutine[Any, Any, T]) -> T | None:
    """What `way` returns or raises; None when the event is set before."""
    async with asyncio.TaskGroup() as tasks:
        going = tasks.create_task(_settled(way), name="way")
        waiting = tasks.create_task(event.wait(), name="unless")
        await asyncio.wait([going, waiting], return_when=asyncio.FIRST_COMPLETED)
        going.cancel()
        waiting.cancel()
    found = None if going.cancelled() else going.result()
    # Raised outside the group, which would wrap it.
    if isinstance(found, Exception):
        raise found
    return found


async def _settled(way: Coroutine[Any, Any, T]) -> T | Exception:
    try:
        return await way
    except Exception as error:  # noqa: BLE001 - told to who asked
        return error


async def along(course: Course, attempt: Attempt, way: Way) -> None:
    """Go all the way; what the runner itself cannot do ends the attempt, and is said."""
    try:
        await way
    except Exception as error:
        log.exception("attempt.given_up", attempt=attempt.name)
        await course.give_up(attempt, repr(error))


def grace_of(attempt: Attempt, term_seconds: float) -> float:
    """Seconds that the command has from SIGTERM on: what it asked for, as far as there is time."""
    budget = term_seconds - min(term_seconds * BRING_OUT, MOST_BRING_OUT)
    return min(attempt.launch.stop_grace.ToTimedelta().total_seconds() or budget, budget)


def code_of(attempt: Attempt, accepted: bool | None) -> int:
    """The exit code: `accepted` tells whether our commit counted, None when nobody answered it."""
    commit = commit_of(attempt)
    if commit is None:
        return codes.ENDED
    if accepted is False:
        return codes.REFUSED
    code = codes.of_commit(commit)
    if not accepted and code in (0, codes.REFUSED):
        return codes.NOT_BROUGHT_OUT
    return code


def commit_of(attempt: Attempt) -> runner_pb2.CommitAttemptRequest | None:
    """What was committed, or was to be."""
    if attempt.outcome:
        return runner_pb2.CommitAttemptRequest.FromString(attempt.outcome)
    item = attempt.unanswered.get("commit")
    return item.commit if item else None
