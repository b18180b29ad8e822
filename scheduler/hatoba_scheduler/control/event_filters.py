"""Which events somebody wants: of watchers and webhooks alike, decided on an event and its job.

An event says most of what filters speak of; the rest (`Facts`) is its job's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hatoba_scheduler.domain.filters import FilterError, Term, parse_filter
from hatoba_scheduler.domain.records import Event, Job
from hatoba_scheduler.store.base import Store

OF_THE_JOB = frozenset({"created_by", "backend"})
NEVER = frozenset({"active"})
LABEL = "label:"
# The most telling first: by the first of these that a filter asks for, its owner is found.
TELLING = ("name", "base_name", "created_by", LABEL, "queue", "backend", "state")


class Facts(NamedTuple):
    """What filters ask of a job that its events do not say."""

    created_by: str
    backend: str
    labels: tuple[tuple[str, str], ...]


def facts_of(job: Job) -> Facts:
    """What filters ask of this job."""
    return Facts(job.created_by, job.backend, job.labels)


async def stored_facts(store: Store, events: Sequence[Event]) -> Mapping[str, Facts]:
    """Facts of the jobs that these events are about, by uid."""
    jobs = await store.jobs_by_uid(sorted({event.job_uid for event in events}))
    return {uid: facts_of(job) for uid, job in jobs.items()}


class Key(NamedTuple):
    """One value that an event has, and by which those who ask for it are found."""

    column: str
    value: str


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Chooses events; without terms, reasons and `jobs_only` it takes all."""

    terms: tuple[Term, ...] = ()
    jobs_only: bool = False
    reasons: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str, jobs_only: bool = False, reasons: Iterable[str] = ()) -> EventFilter:
        """From `queue = gpu AND labels.team = "vision"`; raises FilterError.

        Fields are those of job lists without `active`; `state` is the job's after the event.
        """
        terms = parse_filter(text)
        for term in terms:
            if term.column in NEVER:
                raise FilterError(
                    f"an event has no field {term.column!r}; ask for `state`, or for the events "
                    "that move a job alone"
                )
        return cls(terms, jobs_only, frozenset(reasons))

    @property
    def asks_the_job(self) -> bool:
        """Whether it cannot decide on an event alone."""
        return any(
            term.column in OF_THE_JOB or term.column.startswith(LABEL) for term in self.terms
        )

    @property
    def key(self) -> Key | None:
        """A value that every event it takes has; None when there is no such one."""
        equal = {term.column: term for term in self.terms if term.operator == "="}
        for column in TELLING:
            for name, term in equal.items():
                if name == column or (column == LABEL and name.startswith(LABEL)):
                    return Key(name, str(term.value))
        return None

    def admits(self, event: Event, facts: Facts | None) -> bool:
        """Whether it wants this event; facts of a job that is unknown fit nothing."""
        if self.jobs_only and not moves_job(event):
            return False
        if self.reasons and event.reason not in self.reasons:
            return False
        return all(_fits(term, event, facts) for term in self.terms)


def moves_job(event: Event) -> bool:
    """Whether it moved the job's own state, or is the job's first."""
    return event.job_from is not event.job_to or event.reason == "submit"


def value_of(column: str, event: Event, facts: Facts | None) -> str | int | None:
    """What an event has in a filter's column; None when it has none or it is not known."""
    match column:
        case "state":
            return int(event.job_to)
        case "queue":
            return event.queue
        case "name":
            return event.job_name
        case "base_name":
            return event.job_name.rpartition("-")[0]
    if facts is None:
        return None
    if column == "created_by":
        return facts.created_by
    if column == "backend":
        return facts.backend
    return dict(facts.labels).get(column.removeprefix(LABEL))


def _fits(term: Term, event: Event, facts: Facts | None) -> bool:
    if facts is None and (term.column in OF_THE_JOB or term.column.startswith(LABEL)):
        return False
    same = value_of(term.column, event, facts) == term.value
    return same if term.operator == "=" else not same
