"""One device by its shadow, and by hints of its connection, in any order."""

from __future__ import annotations

import itertools

import pytest

from hatoba.shadows import Said
from hatoba_plugins.backends.iot_edge.far import MISSED, TRANSPORT, FarDevice, Heard
from hatoba_plugins.backends.iot_edge.letters import Presence
from hatoba_plugins.conformance.sites import hello, report
from hatoba_plugins.values import DeviceCame, DeviceTold, DeviceWent

HELLO = hello("a")
CAME = DeviceCame("a", HELLO, TRANSPORT, vouched=True)
ALIVE_EVERY = 100.0


def said(version: int, link: str = "one", *, gone: str = "", spoke: float = 1000.0) -> Said:
    return Said(version, link, gone, by=link, spoke=spoke)


def there(link: str = "one", spoke: float = 1000.0) -> FarDevice:
    far = FarDevice("a")
    assert far.hear(Heard(said(1, link, spoke=spoke), HELLO), 0.0) == [CAME]
    return far


def gone(at: float, session: str = "s1", *, taken_over: bool = False) -> Presence:
    return Presence("a", connected=False, session=session, at=at, taken_over=taken_over)


def back(at: float, session: str = "s2") -> Presence:
    return Presence("a", connected=True, session=session, at=at)


def test_an_older_version_is_history() -> None:
    far = there()
    assert far.hear(Heard(said(3), HELLO, report(2)), 1.0) == [DeviceTold("a", report(2))]
    assert far.hear(Heard(said(2), HELLO, report(1)), 2.0) == []
    assert far.hear(Heard(said(3), HELLO, report(1)), 2.0) == []
    assert far.known() == [CAME, DeviceTold("a", report(2))]


def test_a_shadow_that_was_made_anew_counts() -> None:
    far = there()
    far.hear(Heard(said(9), HELLO), 0.0)
    assert far.hear(Heard(Said(2)), 1.0, anew=True) == [DeviceWent("a")]
    assert far.known() == []


def test_a_new_link_comes_anew_and_the_same_one_does_not() -> None:
    far, other = there(), hello("a", 5)
    assert far.hear(Heard(said(2), HELLO), 1.0) == []
    assert far.hear(Heard(said(3, "two"), other), 2.0) == [
        DeviceCame("a", other, TRANSPORT, vouched=True)
    ]


def test_a_goodbye_and_a_verdict_both_end_it() -> None:
    far = there()
    assert far.hear(Heard(said(2, "")), 1.0) == [DeviceWent("a")]
    assert far.hear(Heard(said(3, "two"), HELLO), 1.0) == [CAME]
    assert far.hear(Heard(said(4, "two", gone="two")), 1.0) == [DeviceWent("a")]
    assert far.hear(Heard(said(5, "three", gone="two"), HELLO), 1.0) == [CAME]


def test_who_says_hello_in_no_words_is_not_there() -> None:
    far = FarDevice("a")
    assert far.hear(Heard(said(1)), 0.0) == []
    assert not far.there


def test_the_same_report_is_told_once() -> None:
    far = there()
    assert len(far.hear(Heard(said(2), HELLO, report(1)), 1.0)) == 1
    assert far.hear(Heard(said(3), HELLO, report(1)), 1.0) == []


def test_whose_connection_ended_is_looked_at_after_a_while() -> None:
    far = there()
    far.hint(gone(1005.0), due=10.0)
    far.hint(gone(1005.0), due=20.0)
    assert not far.suspect(9.9, ALIVE_EVERY)
    assert far.suspect(10.0, ALIVE_EVERY)


def test_hints_in_any_order_say_the_same() -> None:
    """It connected, was cut off, and connected again: whatever of that is heard first, and twice,
    it is there."""
    events = [back(1001.0, "s1"), gone(1005.0, "s1"), back(1007.0, "s2")]
    for order in itertools.permutations([*events, *events]):
        far = there()
        for event in order:
            far.hint(event, due=10.0)
        assert far.suspicion is None, order


def test_a_connection_that_was_taken_over_is_no_loss() -> None:
    far = there()
    far.hint(back(1004.0, "s2"), due=10.0)
    far.hint(gone(1004.2, "s1", taken_over=True), due=10.0)
    assert far.suspicion is None


def test_the_end_of_a_former_connection_after_the_new_one_began() -> None:
    far = there()
    far.hint(gone(1004.2, "s1"), due=10.0)
    far.hint(back(1004.0, "s2"), due=10.0)
    assert far.suspicion is None


def test_a_session_that_is_taken_up_again_has_the_same_name() -> None:
    far = there()
    far.hint(gone(1004.0, "s1"), due=10.0)
    far.hint(back(1006.0, "s1"), due=10.0)
    assert far.suspicion is None
    far.hint(gone(1004.0, "s1"), due=10.0)
    assert far.suspicion is None


def test_what_ended_before_it_spoke_last_says_nothing() -> None:
    """The shadow's times are in whole seconds."""
    far = there(spoke=1000.0)
    far.hint(gone(999.9), due=10.0)
    assert far.suspicion is None
    far.hint(gone(1000.4), due=10.0)
    assert far.suspicion is not None


@pytest.mark.parametrize(
    ("heard", "suspected"),
    [
        (said(2, spoke=1006.0), False),
        (said(2, spoke=1005.0), True),
        (said(2, "two", spoke=1005.0), False),
    ],
)
def test_who_writes_later_is_connected(heard: Said, suspected: bool) -> None:
    far = there()
    far.hint(gone(1005.2), due=10.0)
    far.hear(Heard(heard, HELLO), 6.0)
    assert far.suspect(10.0, ALIVE_EVERY) is suspected


def test_who_is_silent_for_too_long_is_looked_at() -> None:
    far = there()
    assert not far.suspect(MISSED * ALIVE_EVERY, ALIVE_EVERY)
    assert far.suspect(MISSED * ALIVE_EVERY + 1, ALIVE_EVERY)
    far.hear(Heard(said(2), HELLO), 250.0)
    assert not far.suspect(MISSED * ALIVE_EVERY + 1, ALIVE_EVERY)


def test_nobody_looks_for_who_said_goodbye() -> None:
    far = there()
    far.hear(Heard(said(2, "")), 1.0)
    far.hint(gone(1005.0), due=10.0)
    assert not far.suspect(1e9, ALIVE_EVERY)
