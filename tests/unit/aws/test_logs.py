"""Logs in CloudWatch, by cursor and by their last lines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from scripted_logs import GROUP, ScriptedLogs

from hatoba_plugins.aws.logs import LAG, LARGEST_WINDOW, CloudWatchLogs, Source
from hatoba_plugins.clock import FakeClock

NOBODY = "nobody/main/1"
LOG, NEXT = "hatoba/main/1", "hatoba/main/2"
ENDED = 1_000.0


class StepClock(FakeClock):
    """Who sleeps wakes at once, and finds that so much time has passed."""

    def __init__(self, now: float = ENDED) -> None:
        super().__init__()
        self.now = now

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def reader(logs: ScriptedLogs, clock: FakeClock | None = None) -> CloudWatchLogs:
    return CloudWatchLogs(logs, clock or StepClock(), GROUP)


async def read(logs: CloudWatchLogs, offset: int = 0, log: str = LOG) -> bytes:
    return b"".join([one.data async for one in logs.read("a", log, offset)])


def always(source: Source) -> Callable[[], Awaitable[Source]]:
    async def look() -> Source:
        return source

    return look


# -- by cursor -----------------------------------------------------------------------------------


async def test_a_log_is_read_from_any_byte_on() -> None:
    made = ScriptedLogs(page=2)
    made.wrote(LOG, "one", "two", "three", "four", "five")
    logs = reader(made)
    assert await read(logs) == b"one\ntwo\nthree\nfour\nfive\n"
    assert await read(logs, 5) == b"wo\nthree\nfour\nfive\n"
    assert [(one.offset, one.data) async for one in logs.read("a", LOG, 9)] == [
        (9, b"hree\nfour\n"),
        (19, b"five\n"),
    ]


async def test_who_goes_on_reads_nothing_twice() -> None:
    made = ScriptedLogs(page=2)
    made.wrote(LOG, *"abcdef")
    logs = reader(made)
    assert len(await read(logs)) == 12
    before = made.calls
    made.wrote(LOG, "g")
    assert await read(logs, 12) == b"g\n"
    assert made.calls - before == 2


async def test_what_wrote_nothing_has_no_log() -> None:
    made = ScriptedLogs()
    assert await read(reader(made), 0, NOBODY) == b""
    assert (await reader(made).tail("r", NOBODY, "stderr", 5)).data == b""


async def test_a_token_that_has_expired_begins_anew() -> None:
    made = ScriptedLogs()
    made.wrote(LOG, "one")
    logs = reader(made)
    assert await read(logs) == b"one\n"
    made.age += 1
    made.wrote(LOG, "two")
    assert await read(logs, 4) == b"two\n"


# -- attempts ------------------------------------------------------------------------------------


async def test_an_ended_attempts_log_is_read_until_all_of_it_is_shown() -> None:
    made, clock = ScriptedLogs(), StepClock()
    made.wrote(LOG, "one")
    pieces = []
    look = always(Source(LOG, True, ENDED))
    async for chunk in reader(made, clock).of_attempt("a", 0, False, look):
        pieces.append(chunk.data)
        if len(pieces) == 1:
            made.wrote(LOG, "shown late")
    assert pieces == [b"one\n", b"shown late\n"]
    assert clock.now >= ENDED + LAG


@pytest.mark.parametrize("over", [True, False])
async def test_what_is_there_is_told_at_once(over: bool) -> None:
    made, clock = ScriptedLogs(), StepClock(ENDED + LAG)
    made.wrote(LOG, "one")
    look = always(Source(LOG, over, ENDED))
    pieces = [one.data async for one in reader(made, clock).of_attempt("a", 2, False, look)]
    assert (pieces, clock.now) == ([b"e\n"], ENDED + LAG)


async def test_who_follows_hears_of_all_until_the_end() -> None:
    made = ScriptedLogs()
    looks = iter([Source("", False), Source(LOG, False), Source(LOG, False), Source(LOG, True)])

    async def look() -> Source:
        made.wrote(LOG, "more")
        return next(looks)

    told = [one async for one in reader(made).of_attempt("a", 0, True, look)]
    assert b"".join(one.data for one in told) == b"more\n" * 4
    assert [one.offset for one in told] == [0, 10, 15]


# -- last lines ----------------------------------------------------------------------------------


async def test_last_lines_are_counted_from_call_to_call() -> None:
    made = ScriptedLogs(page=3)
    made.wrote(LOG, *"abcdef")
    logs = reader(made)
    first = await logs.tail("r", LOG, "stderr", 2)
    assert (first.data, first.offset, first.stream) == (b"e\nf\n", 2, "stderr")
    made.wrote(LOG, *"ghij")
    second = await logs.tail("r", LOG, "stderr", 100)
    assert (second.data, second.offset) == (b"d\ne\nf\ng\nh\ni\nj\n", 0)
    third = await logs.tail("r", LOG, "stderr", 1)
    assert (third.data, third.offset) == (b"j\n", 12)


async def test_who_was_started_again_goes_on_in_another_log() -> None:
    """The last words of the first one, too, which nobody had read yet."""
    made = ScriptedLogs()
    made.wrote(LOG, "begins")
    logs = reader(made)
    assert (await logs.tail("r", LOG, "stderr", 9)).data == b"begins\n"
    made.wrote(LOG, "dies")
    assert (await logs.tail("r", NEXT, "stderr", 9)).data == b"begins\ndies\n"
    made.wrote(NEXT, "begins again")
    told = await logs.tail("r", NEXT, "stderr", 1)
    assert (told.data, told.offset) == (b"begins again\n", 12)


async def test_of_a_long_log_only_the_end_is_kept() -> None:
    made = ScriptedLogs(page=100)
    logs = reader(made)
    made.wrote(LOG, "first")
    await logs.tail("r", LOG, "stderr", 1)
    made.wrote(LOG, *("x" * 9_999 for _ in range(60)), "last")
    told = await logs.tail("r", LOG, "stderr", 10_000)
    assert told.data.endswith(b"x\nlast\n")
    assert told.data.count(b"\n") == 1 + LARGEST_WINDOW // 10_000
    assert told.offset + len(told.data) == 6 + 60 * 10_000 + 5


async def test_last_lines_after_a_day_without_a_reader() -> None:
    made = ScriptedLogs()
    made.wrote(LOG, "one")
    logs = reader(made)
    await logs.tail("r", LOG, "stderr", 1)
    made.age += 1
    made.wrote(LOG, "two")
    assert (await logs.tail("r", LOG, "stderr", 1)).data == b"two\n"
