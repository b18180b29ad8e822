"""The verdict: what jobs recorded by themselves and what was acknowledged, against what is told."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """What a witness wrote: `start`, `beat` (still there), `overlap` or `end` of an attempt, in
    seconds since boot."""

    event: str
    attempt: str
    time: float
    pid: int


class Told(NamedTuple):
    """An ended job as the server tells of it; `last_attempts` are external names, one a task."""

    name: str
    state: str
    exit_code: int
    last_attempts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """A job that was asked for: its number, which ends are right for it, and its tasks.

    An end is `STATE`, or `FAILED 3` with the exit code that has to be told.
    """

    number: int
    ends: frozenset[str]
    tasks: int = 1


class LeftOut(NamedTuple):
    """Of a schedule: a restored store knew its runs up to `after`; it was adopted by `until`."""

    schedule: str
    after: dt.datetime
    until: dt.datetime

    def has(self, schedule: str, time: dt.datetime) -> bool:
        """Whether this time may have had no run."""
        return schedule == self.schedule and self.after < time <= self.until


@dataclass(slots=True)
class Evidence:
    """All that is known when everything has come to rest."""

    asked: Mapping[int, Ask]
    acknowledged: Mapping[int, str]
    """Number of a job to the name that the server acknowledged it under."""
    told: Mapping[str, Told]
    """By name, every job that the server knows of and has ended."""
    unfinished: Mapping[str, str]
    """By name, every other job with what it waits for."""
    lines: Sequence[Line] = ()
    terminal_events: Counter[str] = field(default_factory=Counter)
    gaps: Sequence[str] = ()
    renamed: Sequence[str] = ()
    """Submits that were repeated and got another job."""
    processes: Sequence[str] = ()
    """Processes of attempts, after the last job has ended."""
    held: int = 0
    """Attempts that still hold resources."""
    objects: Sequence[str] = ()
    """What the platform still has of what was launched."""
    runs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Jobs that schedules submitted: the schedule, and the time that it was for."""
    left_out: Sequence[LeftOut] = ()
    """Times of schedules that restores left out."""


def read_lines(path: Path) -> list[Line]:
    """What the witnesses wrote; a line that a kill tore is none, for it was never whole."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().split("\n")[:-1]:
        event, attempt, time, pid = text.split()
        lines.append(Line(event, attempt, float(time), int(pid)))
    return lines


def task_of(attempt: str) -> tuple[str, int]:
    """A task's key and the number, from an attempt's external name, of whatever store epoch."""
    task, _, number = attempt.rpartition("-")
    return task.partition("-")[2], int(number)


def violations(found: Evidence, *, witnessed: bool = True) -> list[str]:
    """Everything that must not be; empty is good.

    `witnessed` says that jobs wrote lines: their absence is then a violation too.
    """
    return [
        *_lost(found),
        *_wrong_ends(found),
        *_doubled_jobs(found),
        *_started_twice(found.lines),
        *_overlaps(found.lines),
        *(_never_ran(found) if witnessed else ()),
        *_events(found),
        *_runs(found),
        *(f"the platform still has {name}" for name in found.objects),
        *(f"process left: {each}" for each in found.processes),
        *([f"{found.held} attempts still hold resources"] if found.held else ()),
        *found.gaps,
        *found.renamed,
    ]


def _lost(found: Evidence) -> Iterable[str]:
    for number, name in sorted(found.acknowledged.items()):
        if name in found.unfinished:
            yield f"{name} (number {number}) never ended: {found.unfinished[name]}"
        elif name not in found.told:
            yield f"{name} (number {number}) was acknowledged and is not there"


def _wrong_ends(found: Evidence) -> Iterable[str]:
    for number, name in sorted(found.acknowledged.items()):
        told = found.told.get(name)
        if told is None:
            continue
        end = f"{told.state} {told.exit_code}" if told.state == "FAILED" else told.state
        if end not in found.asked[number].ends:
            yield f"{name} ended {end}, not {' or '.join(sorted(found.asked[number].ends))}"


def _doubled_jobs(found: Evidence) -> Iterable[str]:
    counts = Counter(found.acknowledged.values())
    yield from (f"{name} was given to {n} requests" for name, n in counts.items() if n > 1)
    known = set(found.told) | set(found.unfinished)
    unasked = known - set(counts) - set(found.runs)
    yield from (f"{name} is a job nobody asked for" for name in sorted(unasked))


def _runs(found: Evidence) -> Iterable[str]:
    """Each schedule ran once for each minute from its first to its last, but for those that a
    restore left out, and each run ended."""
    for name in found.runs:
        if name in found.unfinished:
            yield f"{name} of a schedule never ended: {found.unfinished[name]}"
        elif (told := found.told.get(name)) is None or told.state != "SUCCEEDED":
            yield f"{name} of a schedule ended {told.state if told else 'nowhere'}"
    for run, count in Counter(found.runs.values()).items():
        if count > 1:
            yield f"schedule {run[0]} ran {count} times for {run[1]}"
    times: dict[str, set[dt.datetime]] = defaultdict(set)
    for schedule, time in found.runs.values():
        times[schedule].add(dt.datetime.fromisoformat(time))
    for schedule, those in times.items():
        minutes = (max(those) - min(those)) // dt.timedelta(minutes=1) + 1
        all_times = {min(those) + dt.timedelta(minutes=number) for number in range(minutes)}
        wanted = {time for time in all_times if not _left_out(found, schedule, time)}
        if wanted - those:
            yield f"schedule {schedule} ran for {len(wanted & those)} of {len(wanted)} minutes"


def _left_out(found: Evidence, schedule: str, time: dt.datetime) -> bool:
    return any(one.has(schedule, time) for one in found.left_out)


def _started_twice(lines: Iterable[Line]) -> Iterable[str]:
    starts = Counter(line.attempt for line in lines if line.event == "start")
    yield from (f"{attempt} started {n} times" for attempt, n in starts.items() if n > 1)


def _overlaps(lines: Sequence[Line]) -> Iterable[str]:
    for line in lines:
        if line.event == "overlap":
            yield f"{line.attempt} started at {line.time:.3f} beside an earlier attempt"
    there = {task_of(line.attempt): line.time for line in lines if line.event in ("beat", "end")}
    starts: dict[str, dict[int, float]] = defaultdict(dict)
    for line in lines:
        if line.event == "start":
            task, number = task_of(line.attempt)
            starts[task][number] = line.time
    for task, numbers in starts.items():
        for number, began in numbers.items():
            for earlier in range(1, number):
                if there.get((task, earlier), began) > began:
                    yield f"{task}-{number} started before {task}-{earlier} ended"
                if numbers.get(earlier, began) > began:
                    yield f"{task}-{number} started before {task}-{earlier} started"


def _never_ran(found: Evidence) -> Iterable[str]:
    ends = {line.attempt for line in found.lines if line.event == "end"}
    tasks = {name: found.asked[number].tasks for number, name in found.acknowledged.items()}
    for told in found.told.values():
        if told.state not in ("SUCCEEDED", "FAILED"):
            continue
        for attempt in told.last_attempts:
            if attempt not in ends:
                yield f"{told.name} is told {told.state}, but {attempt} wrote no end"
        if len(told.last_attempts) != tasks.get(told.name, 1):
            yield f"{told.name} is told {told.state} after {len(told.last_attempts)} tasks ran"


def _events(found: Evidence) -> Iterable[str]:
    for name in found.told:
        if found.terminal_events[name] != 1:
            yield f"{name} has {found.terminal_events[name]} terminal events"
