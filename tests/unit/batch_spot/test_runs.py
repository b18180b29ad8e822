"""Of several jobs of one name the one that holds the claim is spoken of."""

from __future__ import annotations

from typing import Any

import pytest

from hatoba.runs import run_mark
from hatoba_plugins.backends.batch_spot.lookup import Named
from hatoba_plugins.backends.batch_spot.states import seen

LIVES: dict[str, Any] = {"jobId": "lives", "status": "RUNNING"}
WAITS: dict[str, Any] = {"jobId": "waits", "status": "RUNNABLE"}
ENDED: dict[str, Any] = {"jobId": "ended", "status": "SUCCEEDED"}
REFUSED: dict[str, Any] = {
    "jobId": "refused",
    "status": "FAILED",
    "attempts": [{"container": {"exitCode": 83}}],
}


@pytest.mark.parametrize(
    ("runs", "counts"),
    [
        ((REFUSED, LIVES), "lives"),
        ((ENDED, LIVES), "lives"),
        ((REFUSED, ENDED), "ended"),
        ((LIVES, WAITS), "lives"),
        ((REFUSED,), "refused"),
    ],
)
def test_what_lives_counts_until_it_is_known_who_claimed(
    runs: tuple[dict[str, Any], ...], counts: str
) -> None:
    one = Named(runs).of_run("")
    assert one is not None
    assert one["jobId"] == counts


def test_the_one_that_claimed_is_spoken_of_however_it_is() -> None:
    named = Named((LIVES, ENDED))
    assert named.of_run(run_mark("ended")) is ENDED
    assert named.of_run(run_mark("gone")) is None


def test_which_run_it_is_is_told() -> None:
    assert [seen("a", one).run for one in (LIVES, ENDED)] == ["lives", "ended"]
