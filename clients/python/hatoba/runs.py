"""How a runner's claim tells which of its platform's runs it stands beside.

A platform may start one attempt twice. A runner that knows its run (a pod's uid, a task's ARN, a
job's id) begins its nonce with that run's mark, so that what is seen of the other run is never
taken for news of the one that was granted.
"""

from __future__ import annotations

import hashlib

_DIGITS = 16


def run_mark(run: str) -> str:
    """The mark of a run: 16 hex digits."""
    return hashlib.sha256(run.encode()).hexdigest()[:_DIGITS]


def nonce_for(run: str, secret: str) -> str:
    """A nonce of this run, made of 32 random hex digits; without a run, those alone."""
    return f"{run_mark(run)}-{secret}" if run else secret


def mark_of(nonce: str) -> str:
    """The mark that a nonce begins with; empty: its runner did not know its run."""
    mark, dash, _ = nonce.partition("-")
    return mark if dash and len(mark) == _DIGITS else ""


def same_run(nonce: str, run: str) -> bool | None:
    """Whether a nonce was made in this run; None: it cannot be told."""
    mark = mark_of(nonce)
    return mark == run_mark(run) if run and mark else None
