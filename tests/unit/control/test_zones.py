"""Time zones by name, and what was likely meant by names that are none."""

from __future__ import annotations

import datetime as dt

import pytest

from hatoba_scheduler.control.zones import UnknownZone, load_zone


def test_known_zones() -> None:
    moment = dt.datetime(2026, 7, 1, tzinfo=load_zone("Europe/Berlin"))
    assert moment.utcoffset() == dt.timedelta(hours=2)
    assert load_zone("") is load_zone("UTC") is dt.UTC


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Europe/Berln", ["Europe/Berlin"]),
        ("berlin", ["Europe/Berlin"]),
        ("EUROPE/BERLIN", ["Europe/Berlin"]),
        ("America/New York", ["America/New_York"]),
        ("../../etc/passwd", []),
        ("localtime", []),
        ("Mars/Olympus_Mons", []),
        ("\0", []),
    ],
)
def test_unknown_zones(name: str, near: list[str]) -> None:
    with pytest.raises(UnknownZone) as caught:
        load_zone(name)
    assert caught.value.near == near
