"""Follows a job in the terminal: its log on stdout and stderr, its states in words on stderr."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from hatoba.aio import AsyncClient, AsyncJob, short_name, state_name
from hatoba.cli.exits import OF_STATE, Exit
from hatoba.cli.words import WAITING, ending, state_line
from hatoba.errors import NotFound, Unavailable
from hatoba.following import FROM_THE_OLDEST, LogPiece, LogQuery, Resync
from hatoba.units import say_bytes
from hatoba.v1 import common_pb2, job_pb2

if TYPE_CHECKING:
    from typing import BinaryIO

# States of an attempt that cannot have written anything yet.
SILENT = {common_pb2.JOB_STATE_LAUNCHING, common_pb2.JOB_STATE_WAITING}
# The states that people wait through; the others come and go.
TOLD = {"QUEUED", "HELD", "BLOCKED", "WAITING", "RUNNING", "STOPPING"}
ATTEMPTS_AHEAD = 1000
# Seconds before a follower first asks why nothing happens, and longest between two such questions.
FIRST_LOOK = 1.0
LONGEST_LOOK = 10.0


class LogWriter:
    """Writes pieces of a log: stdout to stdout, everything else to stderr."""

    def __init__(self) -> None:
        self._out: BinaryIO = sys.stdout.buffer
        self._err: BinaryIO = sys.stderr.buffer

    def write(self, piece: LogPiece) -> None:
        """Write one piece at once; bytes that are not kept any more are named."""
        if piece.gap_bytes:
            size = say_bytes(piece.gap_bytes)
            click.echo(f"hatoba: {size} of {piece.stream} are not kept any more", err=True)
        target = self._out if piece.stream == "stdout" else self._err
        target.write(piece.data)
        target.flush()


async def print_log(client: AsyncClient, query: LogQuery) -> None:
    """Write one attempt's log, with `query.follow` to its end."""
    writer = LogWriter()
    async with aclosing(client.logs(query)) as pieces:
        async for piece in pieces:
            await asyncio.to_thread(writer.write, piece)


@dataclass
class Follower:
    """Follows one job to its end; with `log`, the attempts of one of its tasks as well."""

    client: AsyncClient
    name: str
    log: LogQuery | None = None
    states: bool = True
    _attempts: asyncio.Queue[int] = field(default_factory=lambda: asyncio.Queue(ATTEMPTS_AHEAD))
    _newest: int = 0
    _begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def to_end(self) -> job_pb2.Job:
        """Write what happens until the job has ended; returns its record."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._watch(), name="watch")
                group.create_task(self._print_attempts(), name="logs")
                group.create_task(self.tell_waiting(), name="waiting")
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return await AsyncJob(self.client, job_pb2.Job(name=self.name)).settled()

    async def from_newest(self) -> job_pb2.Job:
        """As `to_end`, beginning with the newest attempt: earlier ones are passed over."""
        if self.log is not None:
            job = await self.client.job(self.name)
            self._newest = max((await job.task(self.log.index)).attempt - 1, 0)
        return await self.to_end()

    async def _watch(self) -> None:
        """Tell states, and name each attempt of the task to the printer; 0 ends it."""
        try:
            async with aclosing(self.client.events(self.name, cursor=FROM_THE_OLDEST)) as events:
                async for event in events:
                    await self._heard(event)
        finally:
            self._begun.set()
            await self._attempts.put(0)

    async def tell_waiting(self) -> None:
        """While the job does not run: what it waits for, and again when that changes."""
        told, pause = "", FIRST_LOOK
        while not await self._begins_within(pause):
            with contextlib.suppress(Unavailable):
                reason = (await self.client.get(self.name)).waiting_reason
                if reason != told:
                    click.secho(f"{short_name(self.name)} waits: {reason}", dim=True, err=True)
                told = reason
            pause = min(pause * 2, LONGEST_LOOK)

    async def _begins_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._begun.wait()
        except TimeoutError:
            return False

    async def _heard(self, event: common_pb2.Event | Resync) -> None:
        if isinstance(event, Resync):
            await self._catch_up()
            return
        if event.job_to not in WAITING:
            self._begun.set()
        if self.log is not None and event.index == self.log.index and event.to not in SILENT:
            await self._offer(event.attempt)
        if self.states and self._worth_telling(event):
            click.secho(state_line(event), dim=True, err=True)

    async def _catch_up(self) -> None:
        """After events were lost: the task says how many attempts there were."""
        if self.log is not None:
            job = await self.client.job(self.name)
            await self._offer((await job.task(self.log.index)).attempt)

    async def _offer(self, attempt: int) -> None:
        for missing in range(self._newest + 1, attempt + 1):
            await self._attempts.put(missing)
        self._newest = max(self._newest, attempt)

    def _worth_telling(self, event: common_pb2.Event) -> bool:
        if event.job_from != event.job_to:
            return state_name(event.job_to) in TOLD
        return event.reason in {"retry", "preempted", "lost"}

    async def _print_attempts(self) -> None:
        while (attempt := await self._attempts.get()) != 0:
            if self.log is None or (self.log.attempt and attempt != self.log.attempt):
                continue
            await self._print_attempt(self.log, attempt)

    async def _print_attempt(self, log: LogQuery, attempt: int) -> None:
        query = LogQuery(self.name, log.index, attempt, log.stream, log.tail_lines, follow=True)
        try:
            await print_log(self.client, query)
        except NotFound as error:
            click.echo(f"hatoba: no log of attempt {attempt}: {error.message}", err=True)


def finish(job: job_pb2.Job) -> Exit:
    """Say how a followed job ended, and with which exit code that is told."""
    sys.stdout.flush()
    click.echo(ending(job), err=True)
    return OF_STATE.get(state_name(job.state), Exit.FAILURE)


def detached(name: str) -> Exit:
    """Say that the job goes on, how to return and how to cancel."""
    short = short_name(name)
    click.echo(f"\ndetached: {short} goes on", err=True)
    click.echo(f"  return:  hatoba logs {short} -f", err=True)
    click.echo(f"  cancel:  hatoba jobs cancel {short}", err=True)
    return Exit.DETACHED


async def until_running(client: AsyncClient, name: str) -> job_pb2.Job | None:
    """Tell what a job waits for until it runs; its record when it ended before."""
    async with asyncio.TaskGroup() as group:
        follower = Follower(client, name, None)
        telling = group.create_task(follower.tell_waiting(), name="waiting")
        async with aclosing(client.events(name, cursor=FROM_THE_OLDEST)) as events:
            async for event in events:
                if isinstance(event, common_pb2.Event) and event.to == common_pb2.JOB_STATE_RUNNING:
                    telling.cancel()
                    return None
        telling.cancel()
    return await AsyncJob(client, job_pb2.Job(name=name)).settled()
