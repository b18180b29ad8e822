"""When schedules come, over real changes of real clocks, and what is done then."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import assume, example, given
from hypothesis import strategies as st

from hatoba_scheduler.domain.schedules import (
    MISSED_AFTER,
    Act,
    BadCron,
    Before,
    CatchUp,
    Overlap,
    Schedule,
    Settings,
    Step,
    Times,
    astray,
    brought_back,
    due_times,
    next_step,
    next_time,
    refused,
    submitted,
    submitting,
    taken,
    upcoming,
    with_run,
    with_settings,
)

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR
BERLIN, YORK, HOWE = (
    ZoneInfo(name) for name in ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
)
# Zones that shift by whole hours, at night and at midnight, and some that do not shift at all.
NAMES = [
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",
    "Asia/Beirut",
    "America/Santiago",
    "Africa/Casablanca",
    "Asia/Kolkata",
    "Pacific/Apia",
    "UTC",
]
SHIFTING = st.sampled_from([*NAMES, "Australia/Lord_Howe"]).map(ZoneInfo)
WHOLE_HOURS = st.sampled_from(NAMES).map(ZoneInfo)
MOMENTS = st.integers(1_600_000_000, 1_900_000_000).map(lambda second: second * SECOND)


def listed(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[str]:
    return st.lists(numbers, min_size=1, max_size=4, unique=True).map(
        lambda found: ",".join(map(str, sorted(found)))
    )


MINUTES = st.one_of(st.just("*"), st.just("*/7"), st.just("5-50/9"), listed(st.integers(0, 59)))
HOURS = st.one_of(st.just("*"), st.just("*/2"), st.just("1-3"), listed(st.integers(0, 23)))
DAYS = st.one_of(st.just("*"), st.just("L"), listed(st.integers(1, 28)))
WEEKDAYS = st.one_of(st.just("*"), st.just("1-5"), listed(st.integers(0, 6)))
EXPRESSIONS = st.tuples(MINUTES, HOURS, DAYS, st.just("*"), WEEKDAYS).map(" ".join)


def at(zone: dt.tzinfo, text: str, fold: int = 0) -> int:
    """Microseconds of a local time."""
    local = dt.datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)
    return round(local.timestamp()) * SECOND


def local(zone: dt.tzinfo, moment: int) -> str:
    return f"{dt.datetime.fromtimestamp(moment // SECOND, zone):%m-%d %H:%M %z}"


def shown(cron: str, zone: dt.tzinfo, start: str, count: int) -> list[str]:
    """The next times, as people there see them."""
    times = Times(cron, zone).between(at(zone, start), 1 << 62)
    return [local(zone, time) for time in islice(times, count)]


# -- changes of the clock -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "zone", "start", "wanted"),
    [
        # It does not exist: at the moment of the change.
        (
            "30 2 * * *",
            BERLIN,
            "2026-03-28 12:00",
            ["03-29 03:00 +0200", "03-30 02:30 +0200"],
        ),
        ("30 2 * * *", YORK, "2026-03-07 12:00", ["03-08 03:00 -0400", "03-09 02:30 -0400"]),
        ("15 2 * * *", HOWE, "2026-10-03 12:00", ["10-04 02:30 +1100", "10-05 02:15 +1100"]),
        # Several that do not exist are one run, as is one that falls on the change.
        (
            "0,20,40 2,3 * * *",
            BERLIN,
            "2026-03-28 12:00",
            ["03-29 03:00 +0200", "03-29 03:20 +0200"],
        ),
        # It comes twice: the first time only.
        (
            "30 2 * * *",
            BERLIN,
            "2026-10-24 12:00",
            ["10-25 02:30 +0200", "10-26 02:30 +0100"],
        ),
        ("30 1 * * *", YORK, "2026-10-31 12:00", ["11-01 01:30 -0400", "11-02 01:30 -0500"]),
        ("45 1 * * *", HOWE, "2026-04-04 12:00", ["04-05 01:45 +1100", "04-06 01:45 +1030"]),
        # In every hour: by elapsed time, so that no hour is left out and none doubled.
        (
            "0 * * * *",
            BERLIN,
            "2026-10-25 01:30",
            ["10-25 02:00 +0200", "10-25 02:00 +0100", "10-25 03:00 +0100"],
        ),
        (
            "30 * * * *",
            BERLIN,
            "2026-03-29 01:00",
            ["03-29 01:30 +0100", "03-29 03:30 +0200", "03-29 04:30 +0200"],
        ),
        (
            "*/20 * * * *",
            HOWE,
            "2026-04-05 01:30",
            ["04-05 01:40 +1100", "04-05 01:40 +1030", "04-05 02:00 +1030"],
        ),
        # Every second hour is by the clock.
        (
            "0 */2 * * *",
            BERLIN,
            "2026-10-24 23:00",
            ["10-25 00:00 +0200", "10-25 02:00 +0200", "10-25 04:00 +0100"],
        ),
    ],
)
def test_changes_of_the_clock(cron: str, zone: ZoneInfo, start: str, wanted: list[str]) -> None:
    assert shown(cron, zone, start, len(wanted)) == wanted


def test_a_start_within_the_second_coming_runs_nothing_again() -> None:
    times = Times("30 2 * * *", BERLIN)
    second = at(BERLIN, "2026-10-25 02:10", fold=1)
    assert local(BERLIN, times.after(second) or 0) == "10-26 02:30 +0100"


@given(EXPRESSIONS, SHIFTING, MOMENTS)
@example("0 0 * * *", ZoneInfo("America/Havana"), 1_741_400_000 * SECOND)
def test_times_grow_and_come_once(cron: str, zone: ZoneInfo, moment: int) -> None:
    times = list(islice(Times(cron, zone).between(moment, 1 << 62), 30))
    assert times[0] > moment
    assert all(one < other for one, other in pairwise(times))
    assert times[5:] == list(islice(Times(cron, zone).between(times[4], 1 << 62), 25))


@given(listed(st.integers(0, 59)), listed(st.integers(0, 23)), DAYS, WHOLE_HOURS, MOMENTS)
def test_fixed_times_are_those_of_cronsim(
    minutes: str, hours: str, days: str, zone: ZoneInfo, moment: int
) -> None:
    start = dt.datetime.fromtimestamp(moment // SECOND, zone)
    # Within the second coming of an hour cronsim gives times that have passed.
    assume(start.fold == 0)
    assume(len(set(hours.split(","))) < 24)
    cron = f"{minutes} {hours} {days} * *"
    ours = islice(Times(cron, zone).between(moment, 1 << 62), 10)
    theirs = islice(CronSim(cron, start), 10)
    assert list(ours) == [round(time.timestamp()) * SECOND for time in theirs]


@given(MINUTES, WHOLE_HOURS, MOMENTS)
def test_what_comes_in_every_hour_is_as_in_cronsim(
    minutes: str, zone: ZoneInfo, moment: int
) -> None:
    start = dt.datetime.fromtimestamp(moment // SECOND, zone)
    ours = islice(Times(f"{minutes} * * * *", zone).between(moment, 1 << 62), 60)
    theirs = islice(CronSim(f"{minutes} * * * *", start), 60)
    assert list(ours) == [round(time.timestamp()) * SECOND for time in theirs]


CHANGES = [
    (BERLIN, "2026-03-28 20:00"),
    (BERLIN, "2026-10-24 20:00"),
    (YORK, "2026-03-07 20:00"),
    (YORK, "2026-10-31 20:00"),
    (HOWE, "2026-10-03 20:00"),
    (HOWE, "2026-04-04 20:00"),
    (ZoneInfo("America/Havana"), "2026-03-07 20:00"),
    (ZoneInfo("America/Havana"), "2026-10-31 20:00"),
]


@given(MINUTES, st.one_of(st.just("*/2"), listed(st.integers(0, 5))), st.sampled_from(CHANGES))
def test_each_local_time_counts_once_minute_by_minute(
    minutes: str, hours: str, change: tuple[ZoneInfo, str]
) -> None:
    zone, start = change
    begin = at(zone, start)
    cron = CronSim(f"{minutes} {hours} * * *", dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
    wanted: set[int] = set()
    shown_before: set[dt.datetime] = set()
    last = dt.datetime.fromtimestamp(begin // SECOND, zone).replace(tzinfo=None)
    for moment in range(begin + MINUTE, begin + 14 * HOUR, MINUTE):
        here = dt.datetime.fromtimestamp(moment // SECOND, zone).replace(tzinfo=None)
        for minute in _minutes(last, here):
            matches = minute.minute in cron.minutes and minute.hour in cron.hours
            if matches and minute not in shown_before:
                wanted.add(moment)
            shown_before.add(minute)
        last = max(last, here)
    found = Times(f"{minutes} {hours} * * *", zone).between(begin, begin + 14 * HOUR - MINUTE)
    assert list(found) == sorted(wanted)


def _minutes(last: dt.datetime, here: dt.datetime) -> Iterator[dt.datetime]:
    """The local minutes that become past from one real minute to the next."""
    while last < here:
        last += dt.timedelta(minutes=1)
        yield last


# -- expressions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "problem"),
    [
        ("0 0 31 2 *", "never comes"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 0 0 * *", "day-of-month"),
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "day-of-week"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("0 * * * * *", "there are no seconds"),
        ("* * * *", "five fields, not 4"),
        ("@reboot", "macro"),
        ("@every 5m", "macro"),
        ("a b c d e", "minute"),
        ("0 0 ² * *", "day-of-month"),
        ("", "five fields, not 0"),
    ],
)
def test_expressions_that_are_none_are_named(cron: str, problem: str) -> None:
    with pytest.raises(BadCron, match=problem) as caught:
        Times(cron, dt.UTC)
    assert caught.value.remedy


@given(st.text(alphabet="0123456789*/,-#LW@ ²aMON\t", max_size=40))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        times = Times(text, BERLIN)
    except BadCron:
        return
    assert times.after(0) is not None


@pytest.mark.parametrize(
    ("macro", "cron"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@Monthly", "0 0 1 * *"),
    ],
)
def test_macros(macro: str, cron: str) -> None:
    assert shown(macro, BERLIN, "2026-03-01 00:00", 20) == shown(
        cron, BERLIN, "2026-03-01 00:00", 20
    )


@given(EXPRESSIONS, st.integers(1, 50), st.integers(1, 40 * 24), MOMENTS)
def test_the_newest_are_the_end_of_all(cron: str, limit: int, hours: int, moment: int) -> None:
    times = Times(cron, BERLIN)
    everything = list(times.between(moment, moment + hours * HOUR))
    assert times.newest(moment, moment + hours * HOUR, limit) == everything[-limit:]


# -- what is done -------------------------------------------------------------------------------

NOON = 1_790_000_000 * SECOND // DAY * DAY + 12 * HOUR
HOURLY = Times("@hourly", dt.UTC)
RUNNING = Before("digits-1")


def schedule(**said: object) -> Schedule:
    settings = replace(Settings("@hourly", "", b""), **said)  # type: ignore[arg-type]
    return Schedule("uid", "default", "digits", settings, "ann", NOON, position=NOON)


def step(one: Schedule, now: int, before: Before | None = None) -> Step | None:
    due = due_times(one, HOURLY, now)
    return next_step(one, due[0] if due else None, now, before)


def steps(one: Schedule, now: int, before: Before | None = None) -> list[str]:
    """What is done now until nothing is left, each as ACT and the hours after noon."""
    done: list[str] = []
    while (found := step(one, now, before)) is not None:
        done.append(f"{found.act.name} {(found.time - NOON) // HOUR}")
        if found.act is Act.SUBMIT:
            one = submitted(submitting(one, found), found, f"job-{len(done)}", "digits-9")
            before = before or Before("digits-9")
        else:
            one = taken(one, found)
        assert len(done) < 100
    return done


def test_nothing_is_done_before_its_time() -> None:
    assert step(schedule(), NOON + HOUR - 1) is None
    found = step(schedule(), NOON + HOUR)
    assert found == Step(Act.SUBMIT, NOON + HOUR, "")


@pytest.mark.parametrize(
    ("overlap", "wanted"),
    [
        (Overlap.SKIP, ["LEAVE_OUT 1"]),
        (Overlap.ALLOW, ["SUBMIT 1"]),
        (Overlap.REPLACE, ["SUBMIT 1"]),
        (Overlap.QUEUE, ["WAIT 1"]),
    ],
)
def test_a_time_while_the_run_before_goes_on(overlap: Overlap, wanted: list[str]) -> None:
    one = schedule(overlap=overlap)
    assert steps(one, NOON + HOUR, RUNNING) == wanted
    found = step(one, NOON + HOUR, RUNNING)
    assert found is not None
    assert found.replaces == (overlap is Overlap.REPLACE)


def test_one_run_waits_at_most_and_goes_when_the_one_before_has_ended() -> None:
    one = schedule(overlap=Overlap.QUEUE)
    for hour in (1, 2):
        found = step(one, NOON + hour * HOUR, RUNNING)
        assert found is not None
        one = taken(one, found)
    assert one.last_outcome == "skipped: another run waits for digits-1 already"
    assert step(one, NOON + 2 * HOUR + 1, RUNNING) is None
    found = step(one, NOON + 2 * HOUR + 1)
    assert found is not None
    assert (found.act, found.time) == (Act.SUBMIT, NOON + HOUR)
    assert submitted(submitting(one, found), found, "uid", "digits-2").waiting == 0


@pytest.mark.parametrize(
    ("catch_up", "overlap", "wanted"),
    [
        (CatchUp.NONE, Overlap.ALLOW, ["LEAVE_OUT 5"]),
        (CatchUp.LAST, Overlap.ALLOW, ["SUBMIT 5"]),
        (CatchUp.ALL, Overlap.ALLOW, [f"SUBMIT {hour}" for hour in range(1, 6)]),
        (CatchUp.ALL, Overlap.REPLACE, [f"SUBMIT {hour}" for hour in range(1, 6)]),
        (CatchUp.ALL, Overlap.SKIP, ["SUBMIT 1"]),
        (CatchUp.ALL, Overlap.QUEUE, ["SUBMIT 1"]),
    ],
)
def test_missed_times(catch_up: CatchUp, overlap: Overlap, wanted: list[str]) -> None:
    one = schedule(catch_up=catch_up, overlap=overlap)
    assert steps(one, NOON + 5 * HOUR + 30 * MINUTE) == wanted


def test_of_too_many_missed_times_the_newest_are_caught_up() -> None:
    one = schedule(catch_up=CatchUp.ALL, overlap=Overlap.ALLOW, max_catch_up=2)
    assert steps(one, NOON + 50 * HOUR + 30 * MINUTE) == ["SUBMIT 49", "SUBMIT 50"]


def test_a_time_that_has_just_passed_was_not_missed() -> None:
    one = schedule(catch_up=CatchUp.NONE)
    assert steps(one, NOON + HOUR + MISSED_AFTER) == ["SUBMIT 1"]
    assert steps(one, NOON + HOUR + MISSED_AFTER + 1) == ["LEAVE_OUT 1"]


def test_what_was_being_submitted_at_a_crash_is_carried_on_first() -> None:
    found = step(schedule(overlap=Overlap.SKIP), NOON + HOUR)
    assert found is not None
    one = submitting(schedule(overlap=Overlap.SKIP), found)
    later = step(one, NOON + 9 * HOUR, RUNNING)
    assert later is not None
    assert (later.act, later.time) == (Act.SUBMIT, NOON + HOUR)


def test_paused_it_does_nothing_and_what_passed_meanwhile_is_left_out() -> None:
    one = schedule()
    paused = with_settings(one, replace(one.settings, paused=True), NOON + 1)
    assert step(paused, NOON + 9 * HOUR) is None
    assert next_time(paused, HOURLY, NOON + 9 * HOUR) is None
    assert upcoming(paused, HOURLY, NOON, 5) == []
    resumed = with_settings(paused, one.settings, NOON + 9 * HOUR + 1)
    assert step(resumed, NOON + 9 * HOUR + 2) is None
    assert next_time(resumed, HOURLY, NOON + 9 * HOUR + 2) == NOON + 10 * HOUR


def test_after_its_end_it_does_nothing() -> None:
    one = schedule(end_time=NOON + 2 * HOUR, catch_up=CatchUp.ALL, overlap=Overlap.ALLOW)
    assert steps(one, NOON + 9 * HOUR) == ["SUBMIT 1", "SUBMIT 2"]
    assert len(upcoming(one, HOURLY, NOON, 5)) == 2
    assert next_time(replace(one, position=NOON + 2 * HOUR), HOURLY, NOON + 3 * HOUR) is None


def test_a_refused_time_is_over() -> None:
    found = step(schedule(), NOON + HOUR)
    assert found is not None
    one = refused(submitting(schedule(), found), found, "there is no such queue")
    assert one.last_outcome == "refused: there is no such queue"
    assert step(one, NOON + HOUR + 1) is None


def test_a_clock_set_back_by_a_year_does_not_silence_a_schedule() -> None:
    one = replace(schedule(), position=NOON + 365 * DAY)
    assert next_time(one, HOURLY, NOON) == NOON
    assert astray(one, NOON)
    one = brought_back(one, NOON)
    assert next_time(one, HOURLY, NOON) == NOON + HOUR
    assert steps(one, NOON + HOUR) == ["SUBMIT 1"]


def test_a_clock_set_back_a_little_repeats_nothing() -> None:
    one = replace(schedule(), position=NOON + 3 * HOUR)
    assert next_time(one, HOURLY, NOON) == NOON + 4 * HOUR


def test_late_runs_say_so() -> None:
    said = []
    for hours in (1, 2, 30, 72):
        found = step(schedule(), NOON + hours * HOUR + 50 * MINUTE)
        assert found is not None
        said.append(submitted(schedule(), found, "uid", "digits-7").last_outcome)
    assert said == ["submitted digits-7, 50 min late"] * 4


def test_recent_jobs_are_ten_and_the_newest_first() -> None:
    one = schedule()
    for number in range(12):
        one = with_run(one, f"digits-{number}")
    one = with_run(one, "digits-5")
    assert one.recent[:3] == ("digits-5", "digits-11", "digits-10")
    assert len(one.recent) == 10
