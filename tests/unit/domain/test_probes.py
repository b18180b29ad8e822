"""What a probe that failed says, and what it says to do."""

from __future__ import annotations

from typing import Any

import pytest
from domain_rows import launched_rows, new_job, view_of

from hatoba_scheduler.domain.changing import changed
from hatoba_scheduler.domain.probes import Grounds, Trouble, ended, late, refused
from hatoba_scheduler.domain.records import Attempt, Cause
from hatoba_scheduler.domain.states import AttemptState, CauseCode, Origin

POD = Grounds("pod", "grpcs://hatoba:443")
HOST = Grounds("host", "grpc://127.0.0.1:1")


def attempt(**fields: Any) -> Attempt:
    found: Attempt = changed(view_of(launched_rows(new_job())).attempt, **fields)
    return found


def test_a_pod_that_does_not_claim_cannot_reach_the_server() -> None:
    one = attempt(state=AttemptState.STARTING)
    told = late("start", one, "", POD, 120)
    assert told.message.startswith(f"pod {one.name} cannot reach grpcs://hatoba:443")
    assert "set `advertise`" in told.remedy
    assert late("start", attempt(state=AttemptState.WAITING), "", POD, 5).remedy.startswith("raise")
    claimed = late("start", attempt(state=AttemptState.STARTING, claim_time=1), "", POD, 5)
    assert "cannot reach" not in claimed.message
    assert "cannot reach grpc" not in late("start", one, "", HOST, 5).message


def test_why_it_is_not_launched_is_the_planners_word() -> None:
    assert late("launch", None, "No host.", HOST, 3) == Trouble(
        "after 3 s it is not launched: No host.", "make room for it, or wait"
    )


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (CauseCode.REFUSED_DENIED, "give the server's account there the right"),
        (CauseCode.NO_CAPACITY, "raise the quota"),
        (CauseCode.IMAGE_MISSING, "correct the image's name"),
        (CauseCode.COMMAND_NOT_FOUND, "use an image with `sh`"),
        (CauseCode.LOST, "`hatoba jobs get"),
    ],
)
def test_an_early_end_tells_its_cause_and_what_to_do(code: CauseCode, remedy: str) -> None:
    cause = Cause(code, Origin.INFRASTRUCTURE, "It may not.", False, last_log_lines=("a", "b"))
    told = ended(changed(new_job(), cause=cause), None, POD)
    assert told.message == "It may not.\n  a\n  b"
    assert told.remedy.startswith(remedy)


def test_a_runner_that_gave_up_says_so_by_its_code() -> None:
    cause = Cause(CauseCode.EXIT_CODE, Origin.USER, "Exit code 85.", False, exit_code=85)
    told = ended(changed(new_job(), cause=cause), None, Grounds("image", "grpc://10.0.0.1:7"))
    assert told.message.startswith("its container cannot reach grpc://10.0.0.1:7")
    assert not ended(changed(new_job(), cause=cause), None, HOST).message.startswith("its")


def test_a_backend_of_images_asks_for_one() -> None:
    asks = refused("environment.image: name an image", imageless=True)
    assert "--image REF" in asks.remedy
    assert "--image" not in refused("environment.image: no such", imageless=False).remedy
