from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hatoba_worker.keeper.backoff import FIRST, LONGEST, SETTLED, Backoff


def test_it_doubles_from_50_ms_to_5_s() -> None:
    backoff = Backoff()

    delays = [backoff.after(0.0) for _ in range(9)]

    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_process_that_lived_10_s_is_started_again_soon() -> None:
    backoff = Backoff()
    for _ in range(9):
        backoff.after(9.9)

    assert backoff.after(10.0) == 0.05
    assert backoff.after(0.1) == 0.1


@given(st.lists(st.floats(min_value=0, max_value=1e6)))
def test_it_never_leaves_its_bounds(lives: list[float]) -> None:
    backoff = Backoff()

    for lived in lives:
        delay = backoff.after(lived)
        assert FIRST <= delay <= LONGEST
        assert lived < SETTLED or delay == FIRST
