"""Which events a filter takes, decided on the event and its job."""

from __future__ import annotations

from dataclasses import replace

import pytest
from domain_rows import NOW, new_job

from hatoba_scheduler.control.event_filters import EventFilter, Facts, Key
from hatoba_scheduler.domain.filters import FilterError
from hatoba_scheduler.domain.records import Event
from hatoba_scheduler.domain.states import JobState
from hatoba_scheduler.domain.transitions import submitted

FACTS = Facts("ada", "local", (("team", "vision"),))


def event() -> Event:
    first = submitted(new_job(), NOW)
    return replace(first, job_name="digits-7", queue="gpu", job_to=JobState.QUEUED)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("", True),
        ("queue = gpu", True),
        ("queue != gpu", False),
        ("name = digits", True),
        ("name = digits-7", True),
        ("name = digits-8", False),
        ("state = QUEUED", True),
        ("state = RUNNING", False),
        ("created_by = ada", True),
        ("created_by != ada", False),
        ("backend = local AND queue = gpu", True),
        ("backend = far AND queue = gpu", False),
        ('labels.team = "vision"', True),
        ("labels.team != vision", False),
        ("labels.other != vision", True),
    ],
)
def test_terms_are_of_the_event_and_of_its_job(text: str, taken: bool) -> None:
    assert EventFilter.parse(text).admits(event(), FACTS) is taken


@pytest.mark.parametrize("text", ["created_by != ada", "labels.a != b", "backend != x"])
def test_an_unknown_job_fits_nothing_that_asks_for_it(text: str) -> None:
    assert not EventFilter.parse(text).admits(event(), None)
    assert EventFilter.parse("queue = gpu").admits(event(), None)


def test_reasons_and_moves() -> None:
    inner = replace(event(), reason="claim", job_from=JobState.RUNNING, job_to=JobState.RUNNING)
    assert EventFilter.parse("", reasons=["claim"]).admits(inner, None)
    assert not EventFilter.parse("", reasons=["retry"]).admits(inner, None)
    assert not EventFilter.parse("", jobs_only=True).admits(inner, None)
    assert EventFilter.parse("", jobs_only=True).admits(event(), None)


@pytest.mark.parametrize("text", ["active = true", "quue = gpu", "state = GONE", "queue gpu"])
def test_what_no_event_has_is_refused(text: str) -> None:
    with pytest.raises(FilterError):
        EventFilter.parse(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", None),
        ("queue != gpu", None),
        ("queue = gpu AND name = digits-7", Key("name", "digits-7")),
        ("queue = gpu AND labels.team = vision", Key("label:team", "vision")),
        ("state = RUNNING", Key("state", "7")),
    ],
)
def test_the_most_telling_value_is_the_key(text: str, key: Key | None) -> None:
    assert EventFilter.parse(text).key == key
