"""Resource names as people write them, and the external names of attempts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

DEFAULT_PROJECT = "default"
DEFAULT_QUEUE = "default"
_UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_ATTEMPT = re.compile(r"h(\d{1,9})-([0-9a-f]{32})-(\d{1,9})-(\d{1,9})")
_PART = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class JobRef(NamedTuple):
    """A job as somebody named it: by uid, or by project and NAME-N."""

    uid: str
    project: str
    name: str


class QueueRef(NamedTuple):
    """A queue as somebody named it."""

    project: str
    name: str


class ScheduleRef(NamedTuple):
    """A schedule as somebody named it."""

    project: str
    name: str


def parse_job(text: str) -> JobRef | None:
    """Read a uid, `projects/P/jobs/NAME-N` or `NAME-N`; None when it is none of them."""
    if _UID.fullmatch(text):
        return JobRef(text, "", "")
    found = _scoped(text, "jobs")
    return JobRef("", *found) if found else None


def parse_queue(text: str) -> QueueRef | None:
    """Read `projects/P/queues/Q` or `Q`; None when it is neither."""
    found = _scoped(text, "queues")
    return QueueRef(*found) if found else None


def parse_schedule(text: str) -> ScheduleRef | None:
    """Read `projects/P/schedules/S` or `S`; None when it is neither."""
    found = _scoped(text, "schedules")
    return ScheduleRef(*found) if found else None


def parse_webhook(text: str) -> QueueRef | None:
    """Read `projects/P/webhooks/W` or `W`; None when it is neither."""
    found = _scoped(text, "webhooks")
    return QueueRef(*found) if found else None


def webhook_name(project: str, name: str) -> str:
    """`projects/P/webhooks/W`."""
    return f"projects/{project}/webhooks/{name}"


def _scoped(text: str, kind: str) -> tuple[str, str] | None:
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["projects", DEFAULT_PROJECT, kind, text]
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != kind:
        return None
    if not _PART.fullmatch(parts[1]) or not _PART.fullmatch(parts[3]):
        return None
    return parts[1], parts[3]


def job_name(project: str, name: str) -> str:
    """`projects/P/jobs/NAME-N`."""
    return f"projects/{project}/jobs/{name}"


def queue_name(project: str, name: str) -> str:
    """`projects/P/queues/Q`."""
    return f"projects/{project}/queues/{name}"


def schedule_name(project: str, name: str) -> str:
    """`projects/P/schedules/S`."""
    return f"projects/{project}/schedules/{name}"


def attempt_name(epoch: int, job_uid: str, index: int, number: int) -> str:
    """An attempt's external name: the same wherever it appears, never used twice.

    At most 63 characters of `[a-z0-9-]`, so that it fits every backend.
    """
    return f"h{epoch}-{job_uid.replace('-', '')}-{index}-{number}"


@dataclass(frozen=True, slots=True)
class AttemptName:
    """What an attempt's external name says."""

    epoch: int
    job_uid: str
    index: int
    number: int


def parse_attempt(name: str) -> AttemptName | None:
    """Read an attempt's external name; None when it is none."""
    found = _ATTEMPT.fullmatch(name)
    if found is None:
        return None
    return AttemptName(int(found[1]), str(UUID(found[2])), int(found[3]), int(found[4]))
