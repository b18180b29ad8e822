"""Time zones by name, from the machine's database or, without one, from tzdata. Reads files."""

from __future__ import annotations

import datetime as dt
import difflib
import functools
import zoneinfo

UTC = "UTC"
_NOT_ZONES = frozenset({"localtime", "Factory"})


class UnknownZone(LookupError):
    """No such time zone; `near` are names that look like it."""

    def __init__(self, name: str, near: list[str]) -> None:
        super().__init__(name)
        self.near = near


@functools.cache
def _names() -> dict[str, str]:
    """All zones, by their names without regard to case."""
    return {name.casefold(): name for name in zoneinfo.available_timezones() - _NOT_ZONES}


def load_zone(name: str) -> dt.tzinfo:
    """A time zone; UTC for an empty name. Raises UnknownZone."""
    if name in ("", UTC):
        return dt.UTC
    if _names().get(name.casefold()) != name:
        raise UnknownZone(name, _near(name))
    return zoneinfo.ZoneInfo(name)


def _near(name: str) -> list[str]:
    """Names that were likely meant: written alike, or the same city elsewhere in the tree."""
    names, wanted = _names(), name.casefold()
    if wanted in names:
        return [names[wanted]]
    cities = {known.rpartition("/")[2]: known for known in names}
    city = difflib.get_close_matches(wanted.rpartition("/")[2], cities, 1, 0.8)
    near = difflib.get_close_matches(wanted, names, 1) or [cities[one] for one in city]
    return [names[known] for known in near]
