"""Who may answer for whom, by the names alone."""

from __future__ import annotations

import pytest

from hatoba.replica_names import may_serve_for

OURS, OTHERS = "r-" + "a" * 32, "r-" + "b" * 32


@pytest.mark.parametrize(
    ("said", "serves"),
    [
        ("", True),
        ("ip-10-0-1-2", True),
        (f"{OURS}-1-00000001", True),
        (f"{OURS}-1", True),
        # The next task of a replica, or its pod.
        (f"{OURS}-1-00000002", True),
        (f"{OURS}-1-00000001-x7k2p", True),
        (f"{OURS}-2-00000001", False),
        (f"{OURS}-11-00000001", False),
        (f"{OTHERS}-1-00000001", False),
    ],
)
def test_only_who_says_another_revision_does_not_serve_for_it(said: str, serves: bool) -> None:
    assert may_serve_for(said, f"{OURS}-1-00000001") is serves
    assert may_serve_for(said, "r-1")
