"""Spans of attempts, emitted at their end from stored times under ids allocated at their launch."""

from __future__ import annotations

from collections.abc import Sequence

from hatoba_scheduler.control.ledger import Commit
from hatoba_scheduler.domain.naming import job_name
from hatoba_scheduler.domain.records import Attempt, Change, Event, Job, Micros
from hatoba_scheduler.telemetry.tracing import SpanContext, Tracer

_ENDS = frozenset({"end", "retry"})


class AttemptSpans:
    """Emits what a job's trace shows of its attempts: the wait before each, its launch, itself."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def on_commit(self, commits: Sequence[Commit], events: Sequence[Event]) -> None:
        """Emit for attempts that ended with this commit; a listener of the ledger."""
        del events
        for commit in commits:
            change = commit.change
            if not change.job.sampled:
                continue
            for attempt, _ in change.attempts:
                if attempt.state.terminal and _ends(change, attempt):
                    self._emit(change.job, attempt)

    def _emit(self, job: Job, attempt: Attempt) -> None:
        parent = SpanContext(job.trace_id, job.span_id, job.sampled)
        context = SpanContext(job.trace_id, attempt.span_id, job.sampled)
        facts = {
            "hatoba.job": job_name(job.project, job.name),
            "hatoba.index": str(attempt.index),
            "hatoba.attempt": str(attempt.number),
            "hatoba.backend": attempt.backend,
            "hatoba.host": attempt.host,
            "hatoba.state": attempt.state.name,
        }
        if attempt.number == 1:
            self._step(parent, "queue.wait", job.create_time, attempt.create_time)
        self._tracer.emit(
            context,
            "attempt",
            start_ns=attempt.create_time * 1000,
            end_ns=attempt.end_time * 1000,
            parent_id=job.span_id,
            error=attempt.cause.message if attempt.cause else "",
            attributes=facts,
        )
        self._step(context, "launch", attempt.create_time, attempt.claim_time or attempt.start_time)

    def _step(self, parent: SpanContext, name: str, start: Micros, end: Micros) -> None:
        if end:
            self._tracer.emit(
                self._tracer.child(parent),
                name,
                start_ns=start * 1000,
                end_ns=max(start, end) * 1000,
                parent_id=parent.span_id,
            )


def _ends(change: Change, attempt: Attempt) -> bool:
    """Whether it is this change that ends the attempt."""
    number = attempt.number
    return any(one.attempt == number and one.reason in _ENDS for one in change.events)
