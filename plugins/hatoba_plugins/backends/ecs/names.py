"""Names, tags and tokens of what is ours on ECS: each follows from what it is for."""

from __future__ import annotations

import re
import uuid
from typing import NamedTuple

from hatoba.replica_names import revision_prefix, task_name

_SERVICE = re.compile(r"hatoba-([0-9a-f]{32})-([1-9][0-9]{0,9})")
_SPACE = uuid.UUID("6b0c1f52-4f0e-5b7a-9d53-1f2f1f0f9a11")
_V7 = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")
FAMILY = "hatoba-"
UID_TAG = "hatoba:deployment"
REVISION_TAG = "hatoba:revision"
STOPPED = "hatoba: stopped"
"""Reason given with a stop that the core asked for."""
TIMED_OUT = "hatoba: ran longer than its timeout"
"""Reason given with the stop of what ran for too long."""


class ServiceName(NamedTuple):
    """What a service's name tells."""

    uid: str
    revision: int


def service_name(uid: str, revision: int) -> str:
    """The service that has all replicas of one revision."""
    return f"hatoba-{uid}-{revision}"


def parse_service(name: str) -> ServiceName | None:
    """What a service's name or ARN tells; None when it is none of ours."""
    found = _SERVICE.fullmatch(name.rsplit("/", 1)[-1])
    return ServiceName(found[1], int(found[2])) if found else None


def replica_name(service: ServiceName, task: str) -> str:
    """External name of the replica that began as this task."""
    return task_name(revision_prefix(*service), task)


def cluster_of(arn: str) -> str:
    """The cluster that a task's ARN names."""
    return arn.rsplit("/", 2)[-2]


def token(*parts: object) -> str:
    """A client token, 36 characters, always the same for the same request."""
    return str(uuid.uuid5(_SPACE, "\n".join(map(str, parts))))


def submitted_at(attempt: str) -> float | None:
    """When the job of an attempt was submitted, from the UUIDv7 in its name; None: it tells not.

    No launch of it can be older.
    """
    found = _V7.search(attempt)
    return int(found[0][:12], 16) / 1000 if found else None
