"""Which jobs need not be in memory: those that only wait for room."""

from __future__ import annotations

from hatoba_scheduler.domain.records import Job
from hatoba_scheduler.domain.states import JobState


def is_plain(job: Job) -> bool:
    """One task that never started, queued or held, that waits for no job and no point in time."""
    if job.size != 1 or job.state > JobState.HELD or not job.unstarted.runs:
        return False
    if job.blocked_on or job.blocked_any or job.blocked_end:
        return False
    terms = job.terms
    return not (terms.start_after or terms.deadline or terms.max_queue_time)
