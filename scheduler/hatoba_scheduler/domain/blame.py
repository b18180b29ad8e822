"""Which hosts fail many different jobs, so that they are better left alone for a while.

Pure. A host is to blame when so many different jobs failed on it within a time for causes that a
host can be behind of, and none succeeded there between.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hatoba_scheduler.domain.records import Attempt, Job, Micros
from hatoba_scheduler.domain.states import AttemptState, CauseCode

BLAMED = frozenset(
    {
        CauseCode.DEVICE_FAULT,
        CauseCode.BACKEND_FAILED,
        CauseCode.STAGING_FAILED,
        CauseCode.OUTPUT_FAILED,
        CauseCode.ENVIRONMENT_FAILED,
    }
)
"""What a host can be behind of. What is lost with a host says nothing of how it does its work."""
_PERHAPS_THE_JOBS = frozenset({CauseCode.STAGING_FAILED, CauseCode.ENVIRONMENT_FAILED})
"""Jobs of one name are likely to fail of these together, wherever they are."""
_SECOND = 1_000_000


class BlameRules(NamedTuple):
    """When a host is left alone, and for how long; seconds."""

    jobs: int = 5
    window: float = 600.0
    first: float = 300.0
    longest: float = 3600.0


class Sentence(NamedTuple):
    """A host is left alone until then, for this reason."""

    host: str
    until: Micros
    reason: str


@dataclass(slots=True)
class _Record:
    """What is held against one host."""

    failures: dict[str, tuple[Micros, CauseCode]] = field(default_factory=dict)
    """By job: when it failed last, and of what."""
    since: Micros = 0
    """Failures up to then are forgotten: it was left alone for them."""
    times: int = 0
    """How often in a row it was left alone."""


class Blame:
    """What is held against hosts. Bounded: so many failures a host as its rules need."""

    def __init__(self, rules: BlameRules | None = None) -> None:
        self._rules = rules or BlameRules()
        self._records: dict[str, _Record] = {}

    def note(self, job: Job, attempt: Attempt) -> Sentence | None:
        """An attempt stands so now; the sentence when its host is to be left alone from now on."""
        if attempt.state is AttemptState.SUCCEEDED:
            self._clear(attempt)
            return None
        cause = attempt.cause
        if cause is None or cause.code not in BLAMED or not attempt.state.terminal:
            return None
        record = self._records.setdefault(attempt.host, _Record())
        if attempt.end_time <= record.since:
            return None
        record.failures[_same(job, cause.code)] = (attempt.end_time, cause.code)
        self._forget_old(record, attempt.end_time)
        if len(record.failures) < self._rules.jobs:
            return None
        return self._sentence(attempt.host, record, attempt.end_time)

    def _clear(self, good: Attempt) -> None:
        record = self._records.get(good.host)
        if record is not None:
            record.failures.clear()
            record.since, record.times = max(record.since, good.end_time), 0

    def _forget_old(self, record: _Record, now: Micros) -> None:
        oldest = now - round(self._rules.window * _SECOND)
        for key in [key for key, (time, _) in record.failures.items() if time < oldest]:
            del record.failures[key]

    def _sentence(self, host: str, record: _Record, now: Micros) -> Sentence:
        codes = sorted({code.name for _, code in record.failures.values()})
        count = len(record.failures)
        rest = min(self._rules.longest, self._rules.first * 2.0 ** min(record.times, 20))
        record.failures.clear()
        record.since, record.times = now, record.times + 1
        reason = (
            f"{count} different jobs failed here within {self._rules.window:g} s "
            f"({', '.join(codes)}) and none succeeded; left alone for {rest:g} s."
        )
        return Sentence(host, now + round(rest * _SECOND), reason)


def _same(job: Job, code: CauseCode) -> str:
    """Under what a failure is counted: jobs that are likely to fail together count once."""
    if code in _PERHAPS_THE_JOBS:
        return f"{job.project}/{job.name.rpartition('-')[0]}"
    return job.uid
