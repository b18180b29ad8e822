"""Looks jobs up by the names of their attempts, live."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hatoba.runs import run_mark
from hatoba_plugins.backends.batch_spot.book import Book
from hatoba_plugins.backends.batch_spot.calls import BatchCalls
from hatoba_plugins.backends.batch_spot.states import (
    TERMINAL,
    Detail,
    refused_claim,
    run_of,
)

FEW = 3
"""So many names of one job are looked up one by one; more of them by what they have in common."""


@dataclass(frozen=True, slots=True)
class Named:
    """All jobs of one name, the oldest first: submits that were doubled made several."""

    ours: tuple[Detail, ...] = ()
    others: tuple[Detail, ...] = ()

    @property
    def one(self) -> Detail | None:
        """The one that counts: what lives before what ended, what was refused its claim last."""
        return min(self.ours, key=_precedence, default=None)  # the oldest of equals

    def of_run(self, mark: str) -> Detail | None:
        """The one that holds the claim, by its mark; the one that counts while that is unknown."""
        if not mark:
            return self.one
        return next((one for one in self.ours if run_mark(run_of(one)) == mark), None)

    @property
    def surplus(self) -> tuple[Detail, ...]:
        """The others of ours."""
        return tuple(detail for detail in self.ours if detail is not self.one)


class Lookup:
    """Live look-ups in all queues of an instance."""

    def __init__(self, calls: BatchCalls, queues: Sequence[str], book: Book) -> None:
        self._calls = calls
        self._queues = queues
        self._book = book

    async def named(self, names: Iterable[str]) -> dict[str, Named]:
        """What there is of each name. Raises a BackendError."""
        wanted = set(names)
        summaries = [
            one
            for pattern in patterns(wanted)
            for one in await self._calls.named(self._queues, pattern)
            if one["jobName"] in wanted
        ]
        details = await self._calls.describe(one["jobId"] for one in summaries)
        found: defaultdict[str, list[Detail]] = defaultdict(list)
        for detail in sorted(details.values(), key=lambda one: (one["createdAt"], one["jobId"])):
            found[detail["jobName"]].append(detail)
        return {name: self._sorted(found[name]) for name in wanted}

    def _sorted(self, details: Sequence[Detail]) -> Named:
        ours = tuple(one for one in details if self._book.owner(one) is not None)
        return Named(ours, tuple(one for one in details if one not in ours))


def _precedence(detail: Detail) -> tuple[bool, bool]:
    return refused_claim(detail), detail["status"] in TERMINAL


def patterns(names: Iterable[str]) -> list[str]:
    """What to list so that all of these names are in it: attempts of one job begin alike."""
    by_job: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        by_job[name.rsplit("-", 2)[0] if name.count("-") >= 3 else name].append(name)
    return [
        pattern
        for common, some in by_job.items()
        for pattern in (some if len(some) <= FEW else [f"{common}-*"])
    ]
