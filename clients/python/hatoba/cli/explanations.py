"""What people read of a plan or of why a job waits. Pure: records in, text out."""

from __future__ import annotations

from hatoba.aio import short_name, state_name
from hatoba.cli.output import moment
from hatoba.v1 import job_pb2

Rows = list[tuple[str, str]]


def headline(found: job_pb2.Explanation) -> str:
    """A line that says most: `digits-42  QUEUED: no room`, `would start now on hosts/h1`."""
    if found.job:
        reason = reason_name(found.reason)
        state = state_name(found.state)
        told = f": {reason}" if reason and reason != state.lower() else ""
        return f"{short_name(found.job)}  {state}{told}"
    if found.places:
        places = ", ".join(dict.fromkeys(place_name(place) for place in found.places))
        return f"would start now on {places}"
    return f"would wait: {reason_name(found.reason) or 'for its turn'}"


def reason_name(reason: job_pb2.WaitReason.ValueType) -> str:
    """A reason in words: `no room`; empty when there is none."""
    if not reason:
        return ""
    return job_pb2.WaitReason.Name(reason).removeprefix("WAIT_REASON_").replace("_", " ").lower()


def place_name(place: job_pb2.Candidate) -> str:
    """`hosts/h1`, or the backend alone."""
    return f"{place.backend}/{place.pool}" if place.pool else place.backend


def explanation_rows(found: job_pb2.Explanation) -> Rows:
    """The rows below the headline, the most wanted first."""
    return [
        ("because", found.message),
        ("also", "\n".join(found.also)),
        ("to do", found.remedy),
        ("in", _line(found)),
        ("starts", _start(found)),
        ("on", "\n".join(_place(place) for place in found.places)),
        ("instead of", ", ".join(short_name(name) for name in found.preempts)),
        ("looked at", "\n".join(_candidate(one) for one in found.candidates)),
        ("warning", "\n".join(found.warnings)),
    ]


def _line(found: job_pb2.Explanation) -> str:
    if not found.position:
        return f"queue {found.queue}" if found.queue else ""
    return f"queue {found.queue}, place {found.position} of {found.queue_length}"


def _start(found: job_pb2.Explanation) -> str:
    """When, and from what that follows; `unknown` is an answer too."""
    if not found.reason:
        return ""
    when = moment(found.estimated_start)
    told = found.estimate_basis.removeprefix("unknown: ")
    basis = f" ({told})" if told else ""
    return f"about {when}{basis}" if when else f"unknown{basis}"


def _place(place: job_pb2.Candidate) -> str:
    return "  ".join(part for part in (place_name(place), place.message, _cost(place)) if part)


def _candidate(one: job_pb2.Candidate) -> str:
    mark = "yes" if one.fits else "no"
    return "  ".join(part for part in (place_name(one), mark, one.message, _cost(one)) if part)


def _cost(place: job_pb2.Candidate) -> str:
    return f"{place.cost_per_hour:g} an hour" if place.cost_per_hour else ""
