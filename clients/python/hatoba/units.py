"""What people write for amounts, durations and parameters, read into numbers.

Every function raises ValueError with a sentence that names the value and what is accepted.
"""

from __future__ import annotations

import datetime as dt
import math
import re

MEMORY_UNITS = {
    "": 1,
    "b": 1,
    "k": 10**3,
    "kb": 10**3,
    "m": 10**6,
    "mb": 10**6,
    "g": 10**9,
    "gb": 10**9,
    "t": 10**12,
    "tb": 10**12,
    "ki": 2**10,
    "kib": 2**10,
    "mi": 2**20,
    "mib": 2**20,
    "gi": 2**30,
    "gib": 2**30,
    "ti": 2**40,
    "tib": 2**40,
}
DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MEMORY_HELP = (
    "write a number with KB, MB, GB or TB (powers of 1000) or with Ki, Mi, Gi or Ti "
    "(powers of 1024), for example 12GB or 4Gi"
)
DURATION_HELP = "write numbers with ms, s, m, h or d, for example 90s, 10m or 1h30m"
TIME_HELP = (
    "write a time with its zone, for example 2026-12-01T08:00:00Z, or from now on: 90s, 2h or 1d"
)
PAST_HELP = (
    "write a time with its zone, for example 2026-12-01T08:00:00Z, or how long ago: 90s, 2h or 1d"
)
MEMORY = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")
DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
DURATION = re.compile(r"^(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+$")
MAX_CPUS = 4096
ARRAY = re.compile(r"^([0-9]+)-([0-9]+)$")
NUMBER = re.compile(r"^[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?$")


def parse_memory(text: str) -> int:
    """Bytes in `4Gi`, `12GB`, `512m` or `1073741824`."""
    match = MEMORY.match(text)
    if match is None or match[2].lower() not in MEMORY_UNITS:
        raise ValueError(f"{text!r} is not an amount of memory: {MEMORY_HELP}")
    return math.ceil(float(match[1]) * MEMORY_UNITS[match[2].lower()])


def parse_cpus(text: str) -> float:
    """Cores, 0 to 4096, which may be a fraction."""
    if not NUMBER.match(text.strip()) or not 0 <= float(text) <= MAX_CPUS:
        raise ValueError(f"{text!r} is not a number of cores: write one from 0 to {MAX_CPUS}")
    return float(text)


def parse_duration(text: str) -> float:
    """Seconds in `90s`, `10m`, `2h` or `1h30m`; a bare number has no unit and is refused."""
    stripped = text.strip()
    if not DURATION.match(stripped):
        raise ValueError(f"{text!r} is not a duration: {DURATION_HELP}")
    return sum(
        float(part[1]) * DURATION_UNITS[part[2]] for part in DURATION_PART.finditer(stripped)
    )


def parse_time(text: str) -> dt.datetime:
    """A point in time: `2026-12-01T08:00:00Z`, or a duration from now, such as `2h`; in UTC."""
    stripped = text.strip()
    if DURATION.match(stripped):
        try:
            return dt.datetime.now(dt.UTC) + dt.timedelta(seconds=parse_duration(stripped))
        except OverflowError:
            raise ValueError(f"{text!r} is too far away: {TIME_HELP}") from None
    return _moment(stripped, TIME_HELP)


def _moment(text: str, how: str) -> dt.datetime:
    """A written time, in UTC; `how` says what may be written."""
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: {how}") from None
    if time.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone: add Z for UTC, or an offset like +02:00")
    try:
        return time.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is too far away: {how}") from None


def parse_past(text: str) -> dt.datetime:
    """A point in time: as in `parse_time`, but a duration is from now back; in UTC."""
    if not DURATION.match(text.strip()):
        return _moment(text.strip(), PAST_HELP)
    now = dt.datetime.now(dt.UTC)
    try:
        return now - dt.timedelta(seconds=parse_duration(text))
    except OverflowError:
        raise ValueError(f"{text!r} is too far away: {PAST_HELP}") from None


def parse_array(text: str) -> int:
    """Number of tasks in `0-9` (here 10). Indices begin at 0."""
    match = ARRAY.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a range of indices: write FIRST-LAST, for example 0-9")
    first, last = int(match[1]), int(match[2])
    if first != 0:
        raise ValueError(
            f"{text!r} begins at {first}: indices begin at 0, write 0-{max(last - first, 0)}"
        )
    return last + 1


def parse_pair(text: str, what: str) -> tuple[str, str]:
    """`KEY=VALUE` taken apart; `what` names the option in the error."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not {what}: write KEY=VALUE")
    return key, value


def typed_value(text: str) -> float | bool | str:
    """A parameter's value: `true` and `false` are booleans, numbers numbers, all else a string."""
    if text in {"true", "false"}:
        return text == "true"
    if NUMBER.match(text):
        return _number(text)
    return text


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() and not set(text) & set(".eE") else number


def say_bytes(amount: float) -> str:
    """`1.5 GiB`: three significant figures with a power of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 1024:
            return f"{amount:.3g} {unit}" if amount < 1000 else f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB" if amount < 1000 else f"{amount:.0f} TiB"


def say_seconds(seconds: float) -> str:
    """`850ms`, `4.2s`, `3m12s`, `5h04m` or `2d03h`: two units at most."""
    if seconds < 0.9995:
        return f"{max(seconds, 0) * 1000:.0f}ms"
    if seconds < 59.95:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
