"""Changes that bring a job's row back to what its tasks' and attempts' rows say."""

from __future__ import annotations

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import Attempt, AttemptWrite, Change, Counts, Job
from hatoba_scheduler.domain.states import Release
from hatoba_scheduler.domain.transitions import Now, job_moved

REASON = "repair"


def recounted(job: Job, counts: Counts, now: Now) -> Change | None:
    """The job with these counts and the state that follows from them; None when it is over."""
    if job.state.terminal:
        return None
    words = f"its tasks were counted anew: {_shown(counts)}, before {_shown(job.counts)}"
    return job_moved(job, changed(job, counts=counts), REASON, now, note=words)


def let_go(job: Job, attempt: Attempt) -> Change | None:
    """An attempt that ended and still holds its place: RELEASING. None when it does not."""
    if not attempt.state.terminal or attempt.release is not Release.HELD:
        return None
    after = changed(attempt, release=Release.RELEASING, version=attempt.version + 1)
    return Change(job, job.version, attempts=(AttemptWrite(after, attempt.version),))


def _shown(counts: Counts) -> str:
    return ", ".join(f"{count} in state {state}" for state, count in enumerate(counts) if count)
