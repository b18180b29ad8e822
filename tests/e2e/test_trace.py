"""One trace from the command line's call to the job's end, across a server's death."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from command_line import CommandLine
from server_process import HatobaServer
from waiting import eventually
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2


async def test_one_trace_across_processes_and_restarts(
    own_server: HatobaServer, own_wire: Wire, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    waiting = f"echo $TRACEPARENT; while [ ! -e {go} ]; do sleep 0.01; done"
    hatoba = CommandLine(own_server, tmp_path)
    command = ("run", "--no-code", "--name", "traced", "-d", "--", "sh", "-c", waiting)
    name = (await hatoba(*command)).out.strip()
    await own_wire.in_state(name, common_pb2.JOB_STATE_RUNNING)
    first = own_server.pid
    # Spans are written once a second; what was asked for is on the disk.
    await spans_until(own_wire, name, "hatoba-server", "hatoba-cli")
    await own_server.restart()
    await asyncio.to_thread(go.touch)
    job = await own_wire.ended(name)
    assert job.state == common_pb2.JOB_STATE_SUCCEEDED

    traceparent = (await own_wire.log(name)).decode().strip()
    assert traceparent.split("-")[1] == job.trace_id
    # The worker tells of the command's span when it gets to it.
    server, span_id = f"hatoba-server/{own_server.pid}", traceparent.split("-")[2]
    spans = await spans_until(own_wire, name, "hatoba-worker", server, span_id=span_id)
    assert {span.trace_id for span in spans} == {job.trace_id}
    # The client, both servers, and the worker.
    processes = {span.process for span in spans}
    assert len(processes) >= 3, processes
    assert f"hatoba-server/{first}" in processes
    assert f"hatoba-server/{own_server.pid}" in processes
    ids = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_span_id not in ids]
    assert len(roots) == 1, [(span.name, span.process) for span in roots]
    attempt = next(span for span in spans if span.name == "attempt")
    assert attempt.end_unix_nanos > attempt.start_unix_nanos

    drawn = await hatoba("jobs", "trace", name)
    text = drawn.out
    assert drawn.code == 0
    assert re.search(r"attempt", text), text
    assert job.trace_id in text


async def spans_until(
    wire: Wire, name: str, *processes: str, span_id: str = ""
) -> list[job_pb2.Span]:
    """The kept spans of a job's trace once there are some of each of these processes, and this."""
    request = job_pb2.GetJobTraceRequest(job=name)

    async def complete() -> list[job_pb2.Span] | None:
        spans = list((await wire.call(request, job_pb2.GetJobTraceResponse)).spans)
        made = {span.process for span in spans}
        known = not span_id or any(span.span_id == span_id for span in spans)
        whole = all(any(one.startswith(wanted) for one in made) for wanted in processes)
        return spans if known and whole else None

    return await eventually(complete)
