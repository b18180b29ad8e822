"""A follower of a log that never comes whole is told what is missing, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
from domain_rows import new_job

from hatoba.v1 import job_pb2
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.logs import LogStore, Piece
from hatoba_scheduler.domain.records import Attempt, Job, Task
from hatoba_scheduler.domain.states import AttemptState, JobState, Release
from hatoba_scheduler.services import tail as tail_module
from hatoba_scheduler.services.tail import LogTail
from hatoba_scheduler.store.base import Store

JOB = replace(new_job(), state=JobState.SUCCEEDED)
ENDED = Attempt(
    "a",
    JOB.uid,
    0,
    1,
    1,
    "local",
    "here",
    (),
    AttemptState.SUCCEEDED,
    1,
    Release.RELEASED,
    True,
    "",
    1,
    log_sizes=(("stderr", 3), ("stdout", 10)),
)


@dataclass
class OneAttempt:
    """A store with one job, which had one attempt."""

    attempt_now: Attempt = ENDED

    async def job(self, uid: str) -> Job:
        return JOB

    async def tasks(self, job_uid: str, after: int, limit: int) -> list[Task]:
        return [Task(JOB.uid, 0, JobState.SUCCEEDED, 1, 1)]

    async def attempts(
        self, job_uid: str, index: int, after: tuple[int, int], limit: int
    ) -> Sequence[Attempt]:
        return [self.attempt_now]

    async def attempt(self, name: str) -> Attempt:
        return self.attempt_now


async def pieces(logs: LogStore, **fields: object) -> list[job_pb2.TailLogsResponse]:
    store = cast(Store, OneAttempt())
    tail = LogTail(store, cast(Ledger, None), logs, asyncio.Event())
    request = job_pb2.TailLogsRequest(job="a", **fields)  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        return [response async for response in tail.tail(JOB, request)]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogStore:
    monkeypatch.setattr(tail_module, "LOOK_AGAIN", 0.001)
    monkeypatch.setattr(tail_module, "SILENT_LOOKS", 3)
    return LogStore(tmp_path)


async def test_what_never_came_is_a_named_gap_and_the_end(logs: LogStore) -> None:
    await logs.append(ENDED, "stdout", Piece(0, b"1234"))
    told = [
        (one.stream, one.offset, one.data, one.gap_bytes, one.end)
        for one in await pieces(logs, follow=True)
    ]
    assert told == [
        ("stdout", 0, b"1234", 0, False),
        ("stderr", 0, b"", 3, False),
        ("stdout", 4, b"", 6, False),
        ("", 0, b"", 0, True),
    ]


async def test_one_stream_is_missed_alone(logs: LogStore) -> None:
    (gap, end) = await pieces(logs, follow=True, stream="stdout", offset=0)
    assert (gap.stream, gap.gap_bytes, end.end) == ("stdout", 10, True)


async def test_a_mere_reader_is_told_what_is_there(logs: LogStore) -> None:
    await logs.append(ENDED, "stdout", Piece(0, b"1234"))
    (piece,) = await pieces(logs)
    assert (piece.data, piece.gap_bytes) == (b"1234", 0)


async def test_what_comes_late_is_waited_for(logs: LogStore) -> None:
    async with asyncio.TaskGroup() as group:
        following = group.create_task(pieces(logs, follow=True))
        await logs.append(ENDED, "stderr", Piece(0, b"abc"))
        await logs.append(ENDED, "stdout", Piece(0, b"0123456789"))
    told = following.result()
    assert b"".join(one.data for one in told if one.stream == "stdout") == b"0123456789"
    assert not any(one.gap_bytes for one in told)
    assert told[-1].end
