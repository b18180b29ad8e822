"""What went wrong with a probe, and what to do about it. Pure."""

from __future__ import annotations

from typing import NamedTuple

from hatoba_scheduler.domain.records import Attempt, Job
from hatoba_scheduler.domain.states import AttemptState, CauseCode

HEALTH_REMEDY = (
    "correct its section in hatoba.toml, or give it the rights it names; then check again"
)
NOT_REACHED = 85
"""Exit code of a runner that did not reach the server."""
_ELSEWHERE = ("pod", "image")
_REMEDIES = {
    CauseCode.REFUSED_DENIED: "give the server's account there the right that is named; "
    "the page of this backend has the least rights it needs",
    CauseCode.NO_CAPACITY: "raise the quota, or let something end",
    CauseCode.THROTTLED: "ask there for higher limits, or have others call less often",
    CauseCode.CONFLICT: "remove or rename what has that name there",
    CauseCode.IMAGE_MISSING: "correct the image's name, or push it",
    CauseCode.IMAGE_DENIED: "give the backend credentials for that registry",
    CauseCode.IMAGE_ARCHITECTURE: "build the image for the machines' architecture",
    CauseCode.IMAGE_UNREACHABLE: "let the machines reach that registry",
    CauseCode.COMMAND_NOT_FOUND: "use an image with `sh`: `hatoba backends check --image`",
}
_LATE = {
    "launch": "see `hatoba backends get` for how its calls went",
    "log": "let the server read logs there; the page of this backend has the rights it needs",
    "stop": "look at it with the platform's own tools",
    "release": "look at it with the platform's own tools",
}


class Trouble(NamedTuple):
    """What is the matter, and what to do."""

    message: str
    remedy: str


class Grounds(NamedTuple):
    """Where the backend's runners stand, and the address that they are told for this server."""

    runner: str
    reached_at: str


def refused(message: str, *, imageless: bool) -> Trouble:
    """The probe was not accepted."""
    if imageless and "image" in message:
        return Trouble(message, "name one that it can pull: `hatoba backends check --image REF`")
    return Trouble(message, "correct what is named, then check again")


def ended(job: Job, attempt: Attempt | None, grounds: Grounds) -> Trouble:
    """The probe ended before it was to."""
    cause = job.cause or (attempt.cause if attempt is not None else None)
    if cause is None:
        return Trouble(f"it ended {job.state.name} too early", "see its log")
    if grounds.runner in _ELSEWHERE and cause.exit_code == NOT_REACHED:
        return unreachable(attempt, grounds)
    lines = "".join(f"\n  {line}" for line in cause.last_log_lines[-3:])
    remedy = _REMEDIES.get(cause.code, f"`hatoba jobs get {job.name}` tells all of it")
    return Trouble(f"{cause.message}{lines}", remedy)


def late(
    step: str, attempt: Attempt | None, waits: str, grounds: Grounds, patience: float
) -> Trouble:
    """The probe has not come so far in time."""
    after = f"after {patience:g} s"
    if attempt is None:
        return Trouble(f"{after} it is not launched: {waits}", "make room for it, or wait")
    if attempt.unknown_since:
        return Trouble(f"{after} it cannot be reached", "see `hatoba backends get`")
    if step != "start":
        return Trouble(f"{after} there is no end of the step `{step}`", _LATE[step])
    if attempt.state is AttemptState.WAITING:
        return Trouble(
            f"{after} {attempt.name} still waits: the platform accepted it and has no room for it",
            "raise a quota, add a node, or give it more time with --patience",
        )
    if grounds.runner in _ELSEWHERE and not attempt.claim_time:
        return unreachable(attempt, grounds)
    return Trouble(f"{after} it has not begun", f"look at {attempt.name} with the platform's tools")


def log_denied(message: str) -> Trouble:
    """The platform does not let the server read the probe's log."""
    return Trouble(message, _REMEDIES[CauseCode.REFUSED_DENIED])


def unreachable(attempt: Attempt | None, grounds: Grounds) -> Trouble:
    """Its runner did not come to claim it."""
    what = {"pod": "pod", "image": "container"}[grounds.runner]
    name = f"{what} {attempt.name}" if attempt is not None else f"its {what}"
    return Trouble(
        f"{name} cannot reach {grounds.reached_at}: its runner has not claimed it",
        "set `advertise` in [server] to an address that it reaches, and let it through firewalls "
        "and network policies",
    )
