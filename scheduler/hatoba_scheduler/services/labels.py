"""Labels that only the server gives: what they say of a job can be relied upon."""

from __future__ import annotations

from collections.abc import Iterable

from hatoba.v1 import job_pb2
from hatoba_scheduler.errors import FieldViolation, InvalidArgument, shown

RESERVED = "hatoba/"


def reserved_labels(keys: Iterable[str], path: str) -> list[FieldViolation]:
    """What is wrong with the keys of labels that somebody gives in the field `path`."""
    return [
        FieldViolation(
            f'{path}["{key}"]',
            f"begins with `{RESERVED}`, and such labels only the server gives",
            "labels.reserved",
            shown(key),
            "choose another key, such as `team` or `lab.org/team`",
        )
        for key in keys
        if key.startswith(RESERVED)
    ]


def check_labels(spec: job_pb2.JobSpec) -> None:
    """Refuse a specification that somebody gave such labels. Raises InvalidArgument."""
    if found := reserved_labels(spec.labels, "spec.labels"):
        raise InvalidArgument.of(found)
