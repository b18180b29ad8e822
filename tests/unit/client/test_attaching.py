"""What is said of a command or a port that the server refuses while we are still asking."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, cast

import pytest

from hatoba.attaching import Forward, exec_in_job, forward_port
from hatoba.errors import FailedPrecondition, HatobaError, StreamBroken
from hatoba.transport import Transport
from hatoba.v1 import job_pb2

BROKEN = StreamBroken("the server does not answer: Internal error from Core")
REFUSED = FailedPrecondition("task 0 does not run")
ENDED = job_pb2.ExecJobResponse(output=job_pb2.AttachOutput(ended=job_pb2.ExecEnded(exit_code=4)))
BEGUN = job_pb2.ExecJobResponse(output=job_pb2.AttachOutput())


class Scripted:
    """A transport whose calls go one after the other as a test says: messages, and an error."""

    def __init__(self, *calls: list[Any]) -> None:
        self.calls = list(calls)
        self.asked = 0

    async def exchange(
        self, requests: AsyncIterator[Any], request: object, response: object
    ) -> AsyncGenerator[Any, None]:
        del request, response
        self.asked += 1
        await anext(requests)
        for one in self.calls.pop(0):
            if isinstance(one, HatobaError):
                raise one
            yield one

    @property
    def transport(self) -> Transport:
        return cast(Transport, self)


async def nothing() -> AsyncIterator[job_pb2.AttachInput]:
    await asyncio.Event().wait()
    yield job_pb2.AttachInput()


async def codes(script: Scripted) -> list[int]:
    told = exec_in_job(script.transport, job_pb2.ExecStart(command=["true"]), nothing())
    async with contextlib.aclosing(told):
        return [one.ended.exit_code async for one in told if one.HasField("ended")]


async def test_a_command_that_did_not_begin_is_asked_for_once_more() -> None:
    assert await codes(Scripted([BROKEN], [BEGUN, ENDED])) == [4]
    with pytest.raises(FailedPrecondition, match="does not run"):
        await codes(Scripted([BROKEN], [REFUSED]))
    script = Scripted([BROKEN], [BROKEN], [ENDED])
    with pytest.raises(StreamBroken):
        await codes(script)
    assert script.asked == 2


async def test_a_command_that_began_is_never_run_twice() -> None:
    script = Scripted([BEGUN, BROKEN], [ENDED])
    with pytest.raises(StreamBroken):
        await codes(script)
    assert script.asked == 1


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ([[REFUSED]], REFUSED),
        ([[BROKEN], [REFUSED]], REFUSED),
        ([[BROKEN], [BROKEN]], BROKEN),
        ([[BROKEN], []], BROKEN),
    ],
)
async def test_why_a_connection_is_refused_is_asked_for(
    calls: list[list[Any]], told: HatobaError
) -> None:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    problem: asyncio.Future[HatobaError] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(
            forward_port(
                Scripted(*calls).transport,
                Forward("job-1", 0, 0, 80),
                port.set_result,
                problem.set_result,
            )
        )
        _, writer = await asyncio.open_connection("127.0.0.1", await port)
        assert await problem is told
        writer.close()
        serving.cancel()
