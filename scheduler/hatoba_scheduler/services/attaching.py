"""ExecJob and ForwardJob: people attached to tasks that run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple

from hatoba.v1 import job_pb2
from hatoba_plugins.backend import AttachBackend
from hatoba_plugins.errors import BackendError, NoCapacity, Retry, Throttled, Unsupported
from hatoba_plugins.values import Ref
from hatoba_scheduler.control.launches import ref_of
from hatoba_scheduler.domain.records import Change, Job
from hatoba_scheduler.domain.states import AttemptState
from hatoba_scheduler.domain.transitions import Now, Rows, View, visited
from hatoba_scheduler.errors import (
    FailedPrecondition,
    HatobaError,
    InvalidArgument,
    NotFound,
    Reason,
    Unavailable,
)
from hatoba_scheduler.services.finding import JobFinder
from hatoba_scheduler.services.job_parts import JobParts

COMMAND_BYTES = 131_072
"""Of program and arguments together."""
_OPEN = (AttemptState.RUNNING, AttemptState.STOPPING)
Requests = AsyncIterator[Any]
Outputs = AsyncGenerator[job_pb2.AttachOutput, None]


class Visit(NamedTuple):
    """Where somebody goes."""

    backend: AttachBackend
    ref: Ref
    begins: list[job_pb2.AttachStarted]
    """What is told first, once something came of it."""


class Attacher:
    """Opens running tasks to those who may change jobs, and keeps who went in."""

    def __init__(self, parts: JobParts, finder: JobFinder) -> None:
        self._parts = parts
        self._finder = finder

    async def exec(
        self, requests: Requests, now: Now
    ) -> AsyncGenerator[job_pb2.ExecJobResponse, None]:
        """Run a command beside a task's. Raises what JobService.ExecJob says."""
        start: job_pb2.ExecStart = await _first(requests, "start")
        _check_command(start)
        program, more = start.command[0], len(start.command) - 1
        # Arguments may be secret: the program alone is kept.
        note = f"{now.actor} runs {program!r} with {more} arguments beside it"
        visit = await self._visit(start, "exec", note, now)
        inner = job_pb2.ExecStart()
        inner.CopyFrom(start)
        inner.ClearField("job")
        inner.ClearField("index")
        inputs = _Inputs(requests)
        async with aclosing(_told(visit.backend.exec(visit.ref, inner, inputs), inputs)) as told:
            async for output in told:
                if visit.begins:
                    yield job_pb2.ExecJobResponse(started=visit.begins.pop())
                yield job_pb2.ExecJobResponse(output=output)
                if output.HasField("ended"):
                    return
        raise _unreached(f"the connection to {start.job} was lost; what was run there was ended")

    async def forward(
        self, requests: Requests, now: Now
    ) -> AsyncGenerator[job_pb2.ForwardJobResponse, None]:
        """One connection to a task's port. Raises what JobService.ForwardJob says."""
        start: job_pb2.ForwardStart = await _first(requests, "start")
        note = f"{now.actor} connects to its port {start.port}"
        visit = await self._visit(start, "forward", note, now)
        inputs = _Inputs(requests)
        outputs = visit.backend.forward(visit.ref, start.port, inputs)
        async with aclosing(_told(outputs, inputs)) as told:
            async for output in told:
                if visit.begins:
                    yield job_pb2.ForwardJobResponse(started=visit.begins.pop())
                yield job_pb2.ForwardJobResponse(output=output)

    async def _visit(
        self, start: job_pb2.ExecStart | job_pb2.ForwardStart, reason: str, note: str, now: Now
    ) -> Visit:
        job = await self._finder.find(start.job)
        if start.index >= job.size:
            raise NotFound(f"{job.name} has tasks 0 to {job.size - 1}, not {start.index}")
        rows = self._parts.ledger.rows(job.uid)
        view = rows.view(start.index) if rows else None
        if view is None or view.attempt.state not in _OPEN:
            raise _not_running(job, start.index, view)
        visit = self._open(view)
        await self._keep(view, reason, note, now)
        return visit

    def _open(self, view: View) -> Visit:
        attempt = view.attempt
        backend = self._parts.grounds().backends.get(attempt.backend)
        jobs: object = backend.jobs if backend is not None else None
        able = backend is not None and backend.capabilities().attach
        if not able or not isinstance(jobs, AttachBackend):
            raise FailedPrecondition(
                f"{view.job.name} runs on backend {attempt.backend!r}, which has no `attach`: "
                "nobody can look into what runs there",
                reason=Reason.UNSUPPORTED,
            )
        started = job_pb2.AttachStarted(attempt=attempt.number, host=attempt.host)
        return Visit(jobs, ref_of(attempt), [started])

    async def _keep(self, view: View, reason: str, note: str, now: Now) -> None:
        """An event tells who went in; nobody goes in before it is stored."""
        name, index, decided = view.attempt.name, view.task.index, False

        def decide(rows: Rows) -> Change | None:
            nonlocal decided
            current = rows.view(index)
            if current is None or current.attempt.name != name:
                return None
            decided = True
            return visited(current, reason, note, now)

        await self._parts.ledger.ask(view.job.uid, decide)
        if not decided:
            raise _not_running(view.job, index, None)


class _Inputs:
    """What follows the first message; what is wrong with it is kept, to be told to its sender."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.error: HatobaError | None = None

    def __aiter__(self) -> _Inputs:
        return self

    async def __anext__(self) -> job_pb2.AttachInput:
        try:
            request = await anext(self._requests)
            if not request.HasField("input"):
                raise InvalidArgument.field("said", "must be `input` after the first message")
        except HatobaError as error:
            self.error = error
            raise StopAsyncIteration from error
        said: job_pb2.AttachInput = request.input
        return said


async def _told(outputs: Outputs, inputs: _Inputs) -> Outputs:
    """What a backend tells, its errors in the words of calls."""
    try:
        async with aclosing(outputs):
            async for output in outputs:
                if inputs.error is not None:
                    raise inputs.error
                yield output
    except Unsupported as error:
        raise FailedPrecondition(error.message, reason=Reason.UNSUPPORTED) from error
    except (Retry, Throttled, NoCapacity) as error:
        raise _unreached(error.message) from error
    except BackendError as error:
        raise FailedPrecondition(error.message) from error


async def _first(requests: Requests, field: str) -> Any:
    first = await anext(requests, None)
    if first is None or not first.HasField(field):
        raise InvalidArgument.field(field, "must be the first message", remedy="send it first")
    return getattr(first, field)


def _check_command(start: job_pb2.ExecStart) -> None:
    if not start.command[0]:
        raise InvalidArgument.field("command", "must begin with a program", value="")
    if sum(len(word.encode()) for word in start.command) > COMMAND_BYTES:
        raise InvalidArgument.field(
            "command",
            f"has more than {COMMAND_BYTES:,} bytes",
            remedy="send what is long through its stdin",
        )


def _not_running(job: Job, index: int, view: View | None) -> FailedPrecondition:
    state = view.task.state.name if view is not None else job.state.name
    return FailedPrecondition(
        f"{job.name}[{index}] does not run (it is {state}); `hatoba jobs explain {job.name}` says "
        "where it is",
        reason=Reason.WRONG_STATE,
    )


def _unreached(message: str) -> Unavailable:
    return Unavailable(message, reason=Reason.UNREACHED)
