"""What the end of one job means for another that waits for it.

A job waits in three ways, mixed freely: for all of `blocked_on` to succeed, for one of
`blocked_any` to succeed, for all of `blocked_end` to end. A job can name only jobs that were there
before it, so there are no cycles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hatoba_scheduler.domain import causes
from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.records import Cause, Change, Job
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import Now, Rows, job_moved

MOST_NAMED = 5
"""So many jobs are named in a sentence at most."""


class Upstream(NamedTuple):
    """A job that has ended, so."""

    uid: str
    name: str
    state: JobState

    @property
    def good(self) -> bool:
        """It did what it was to do."""
        return self.state is JobState.SUCCEEDED


def upstream_ended(rows: Rows, upstream: Upstream, now: Now) -> Change | None:
    """A job that this one waits for ended: it is UPSTREAM_FAILED, waits on, or is QUEUED.

    None when it does not wait for that job.
    """
    job = rows.job
    if job.state.terminal or upstream.uid not in job.upstreams:
        return None
    cause = _why_never(job, upstream)
    if cause is not None:
        after = changed(job, unstarted_state=JobState.UPSTREAM_FAILED)
        return job_moved(job, after, "upstream_failed", now, cause, cause.message)
    after = _waits_less(job, upstream)
    if job.unstarted_state is JobState.BLOCKED and not after.upstreams:
        after = changed(after, unstarted_state=JobState.QUEUED)
    return job_moved(job, after, "unblock", now, note=_note(after, upstream))


def _why_never(job: Job, upstream: Upstream) -> Cause | None:
    """Why it can never run after this end; None when it still can."""
    if upstream.good:
        return None
    if upstream.uid in job.blocked_on:
        return causes.upstream_failed(upstream.name, upstream.state.name)
    if job.blocked_any == (upstream.uid,):
        return causes.none_succeeded(upstream.name, upstream.state.name)
    return None


def _waits_less(job: Job, upstream: Upstream) -> Job:
    met = upstream.good and upstream.uid in job.blocked_any
    return changed(
        job,
        blocked_on=_without(job.blocked_on, upstream.uid),
        blocked_any=() if met else _without(job.blocked_any, upstream.uid),
        blocked_end=_without(job.blocked_end, upstream.uid),
    )


def _without(uids: tuple[str, ...], uid: str) -> tuple[str, ...]:
    return tuple(known for known in uids if known != uid)


def _note(after: Job, upstream: Upstream) -> str:
    left = len(set(after.upstreams))
    rest = f"{left} more to wait for" if left else "nothing more to wait for"
    return f"{upstream.name} ended {upstream.state.name}; {rest}."


def waits_for(job: Job, names: Mapping[str, str]) -> str:
    """In words, what a job waits for and how; `names` by uid, where they are known.

    Empty for a job that waits for no other.
    """
    wishes = [
        _wish(job.blocked_on, names, "", "to succeed"),
        _wish(job.blocked_any, names, "one of ", "to succeed"),
        _wish(job.blocked_end, names, "", "to end"),
    ]
    told = [wish for wish in wishes if wish]
    return f"Waits for {', and for '.join(told)}." if told else ""


def _wish(uids: Sequence[str], names: Mapping[str, str], which: str, what: str) -> str:
    if not uids:
        return ""
    known = [names.get(uid, uid) for uid in uids[:MOST_NAMED]]
    more = len(uids) - len(known)
    told = f"{', '.join(known)} and {more} more" if more else _listed(known)
    return f"{which if len(uids) > 1 else ''}{told} {what}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
