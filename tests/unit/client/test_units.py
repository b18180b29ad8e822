"""Amounts, durations, ranges and parameters as people write them."""

from __future__ import annotations

import pytest

from hatoba.units import (
    parse_array,
    parse_duration,
    parse_memory,
    parse_pair,
    say_bytes,
    say_seconds,
    typed_value,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        ("1024", 1024),
        ("4Gi", 2**32),
        ("4GiB", 2**32),
        ("12GB", 12 * 10**9),
        ("12 GB", 12 * 10**9),
        ("512m", 512 * 10**6),
        ("1.5Ki", 1536),
        ("0.3k", 300),
        ("1ti", 2**40),
        (" 7 B ", 7),
    ],
)
def test_memory(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize(
    "text", ["12 GBs", "", "GB", "-1Gi", "1e3", "1,5Gi", "4 G i", "nan", "4Gi4"]
)
def test_bad_memory_names_the_value_and_the_units(text: str) -> None:
    with pytest.raises(ValueError, match="KB, MB, GB or TB") as raised:
        parse_memory(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("1d", 86400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["600", "", "soon", "1h 30m", "-5s", "5 s", "1w", "h", "1.5.5s"])
def test_bad_durations_say_what_is_accepted(text: str) -> None:
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration(text)


def test_arrays_begin_at_nought() -> None:
    assert (parse_array("0-9"), parse_array("0-0")) == (10, 1)
    with pytest.raises(ValueError, match="begin at 0, write 0-4"):
        parse_array("3-7")
    for text in ("9", "0-", "a-b", "0-9-10", "-1-4"):
        with pytest.raises(ValueError, match="FIRST-LAST"):
            parse_array(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-2", -2),
        ("0.01", 0.01),
        ("1e-3", 0.001),
        ("true", True),
        ("false", False),
        ("True", "True"),
        ("", ""),
        ("nan", "nan"),
        ("inf", "inf"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("a=b", "a=b"),
    ],
)
def test_parameters_are_numbers_booleans_or_texts(text: str, value: object) -> None:
    found = typed_value(text)
    assert (found, type(found)) == (value, type(value))


def test_pairs() -> None:
    assert parse_pair("A=b=c", "x") == ("A", "b=c")
    for text in ("A", "=b", ""):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            parse_pair(text, "a variable")


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (2**30, "1 GiB"),
        (2**50, "1024 TiB"),
    ],
)
def test_bytes_in_words(amount: int, text: str) -> None:
    assert say_bytes(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.0123, "12ms"),
        (4.24, "4.2s"),
        (59.9, "60s"),
        (59.99, "1m00s"),
        (192, "3m12s"),
        (18240, "5h04m"),
        (183600, "2d03h"),
        (-5, "0ms"),
    ],
)
def test_seconds_in_words(seconds: float, text: str) -> None:
    assert say_seconds(seconds) == text
