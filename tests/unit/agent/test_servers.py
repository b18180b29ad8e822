"""What servers of releases are called: each by a name of its own, for ever the same."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from hatoba_worker.agent.servers import own_name, replica_name
from hatoba_worker.agent.slots import Release

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-"
ONE = Release(2**31 - 1, 2**31 - 1, f"sha256:{'f' * 64}")


@given(st.text(LETTERS, min_size=1, max_size=48), st.text(LETTERS, min_size=1, max_size=48))
def test_a_name_is_one_that_may_be(project: str, name: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]{1,63}", own_name(f"{project}.{name}", ONE, ""))


def test_long_names_that_begin_alike_are_told_apart() -> None:
    slots = [f"vision-team-tokyo.camera-reader-{end}" for end in ("north", "south")]
    slots += ["a.b-c", "a-b.c"]
    assert len({replica_name(one, ONE) for one in slots}) == 4


def test_each_release_has_a_name_of_its_own() -> None:
    digest = f"sha256:{'0' * 64}"
    releases = [
        Release(1, 0, digest),
        Release(2, 0, digest),
        Release(1, 1, digest),
        Release(1, 0, f"sha256:1{'0' * 63}"),
    ]
    assert len({replica_name("p.d", one) for one in releases}) == 4
    assert replica_name("p.d", releases[0]) == replica_name("p.d", Release(1, 0, digest))


def test_what_is_kept_keeps_its_name_and_what_begins_anew_gets_another() -> None:
    kept = own_name("p.d", ONE, "")
    assert own_name("p.d", ONE, kept) == kept
    other = own_name("p.d", Release(2, 0, ONE.digest), kept)
    assert own_name("p.d", ONE, other) not in (kept, other)
