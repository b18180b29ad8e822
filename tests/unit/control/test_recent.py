"""The same question within a moment is answered once."""

from __future__ import annotations

from hatoba_plugins.clock import FakeClock
from hatoba_scheduler.control import recent
from hatoba_scheduler.control.recent import Recent


async def test_an_answer_is_kept_for_a_moment() -> None:
    clock = FakeClock()
    known = Recent[str, int](clock, 0.5)
    known.put("a", 1)
    await clock.advance(0.4)
    known.put("b", 2)
    assert (known.get("a"), known.get("b"), known.get("c")) == (1, 2, None)
    await clock.advance(0.2)
    assert (known.get("a"), known.get("b")) == (None, None)
    known.put("a", 3)
    assert known.get("a") == 3


def test_it_holds_so_many_and_no_more() -> None:
    known = Recent[int, int](FakeClock(), 60.0)
    for number in range(recent.MOST + 1):
        known.put(number, number)
    assert (known.get(0), known.get(recent.MOST)) == (None, recent.MOST)
