"""Into running jobs as people go there: the command line, a server, a worker, real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from command_line import CommandLine, cli_environment
from server_process import HatobaServer
from waiting import PATIENCE, eventually
from wire import Wire

from hatoba.v1 import common_pb2, job_pb2

SERVES = """
import http.server
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
RUNNING = common_pb2.JOB_STATE_RUNNING


async def running(wire: Wire, *command: str, name: str = "looked-into") -> str:
    """A job that runs; its name."""
    spec = job_pb2.JobSpec(name=name, command=command)
    job = await wire.submit(spec)
    await wire.in_state(job.name, RUNNING)
    return str(job.name).rpartition("/")[2]


async def cancel(wire: Wire, name: str) -> None:
    await wire.cancel(f"projects/default/jobs/{name}")


async def test_exec_is_like_being_there(hatoba: CommandLine, wire: Wire) -> None:
    job = await running(wire, "sh", "-c", "echo mine > file; exec sleep 1000")
    try:
        done = await hatoba("jobs", "exec", job, "--", "sh", "-c", "cat file; echo no >&2; exit 9")
        assert (done.code, done.out, done.err) == (9, "mine\n", "no\n")
        done = await hatoba("jobs", "exec", job, "--", "sh", "-c", "kill -9 $$")
        assert done.code == 128 + 9
        missing = await hatoba("jobs", "exec", "--index", "3", job, "true")
        assert (missing.code, "has tasks 0 to 0" in missing.err) == (3, True)
    finally:
        await cancel(wire, job)
    gone = await eventually(lambda: _refused(hatoba, job))
    assert "does not run" in gone
    seen = [
        event
        for event in await wire.events(f"projects/default/jobs/{job}")
        if event.reason == "exec"
    ]
    assert "runs 'sh' with 2 arguments" in seen[0].note
    assert (seen[0].index, seen[0].attempt) == (0, 1)
    assert all("cat file" not in event.note for event in seen)


async def _refused(hatoba: CommandLine, job: str) -> str:
    done = await hatoba("jobs", "exec", job, "--", "true")
    return done.err if done.code else ""


@asynccontextmanager
async def in_terminal(
    server: HatobaServer, home: Path, *arguments: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The command line in a terminal of its own, and the end of it where a person sits."""
    ours, theirs = os.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hatoba", *arguments),
            env=cli_environment(server, home) | {"TERM": "vt100", "NO_COLOR": "1"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        yield process, ours
    finally:
        os.close(ours)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def shown(handle: int, text: bytes) -> bytes:
    """What the terminal shows up to `text`."""
    found = b""
    async with asyncio.timeout(2 * PATIENCE):
        while text not in found:
            found += await asyncio.to_thread(os.read, handle, 4096)
    return found


async def test_a_shell_in_a_terminal(server: HatobaServer, wire: Wire, tmp_path: Path) -> None:
    job = await running(wire, "sleep", "1000")
    async with in_terminal(server, tmp_path, "jobs", "exec", "-t", job, "--", "sh") as (it, hand):
        os.write(hand, b"echo in-$((1+1))-$TERM\n")
        await shown(hand, b"in-2-vt100")
        os.write(hand, b"sh -c 'echo up-$((1+1)); sleep 1000'\n")
        await shown(hand, b"up-2")
        os.write(hand, b"\x03")
        os.write(hand, b"echo after-$?\n")
        await shown(hand, b"after-130")
        os.write(hand, b"exit 5\n")
        async with asyncio.timeout(PATIENCE):
            assert await it.wait() == 5
    await cancel(wire, job)


async def test_an_interactive_job_is_a_place_to_be_in(
    server: HatobaServer, wire: Wire, tmp_path: Path
) -> None:
    said = ("run", "--no-code", "--interactive", "--idle-timeout", "2s", "--name", "desk")
    async with in_terminal(server, tmp_path, *said) as (it, hand):
        told = await shown(hand, b"submitted desk-")
        if b"\n" not in told.partition(b"submitted ")[2]:
            told += await shown(hand, b"\n")
        job = told.partition(b"submitted ")[2].split()[0].decode()
        os.write(hand, b"echo in-$((1+1))-$HATOBA_JOB; sleep 4; echo still-$((1+1))\n")
        await shown(hand, b"still-2")
        os.write(hand, b"exit 3\n")
        await shown(hand, b"stays until nobody")
        async with asyncio.timeout(PATIENCE):
            assert await it.wait() == 3
    ended = await wire.ended(f"projects/default/jobs/{job}")
    assert ended.state == common_pb2.JOB_STATE_SUCCEEDED


async def test_what_fails_is_held_so_that_one_can_look(hatoba: CommandLine, wire: Wire) -> None:
    command = ("sh", "-c", "echo broken > why; exit 7")
    said = ("run", "--no-code", "-d", "--hold-on-failure")
    job = (await hatoba(*said, "1h", "--", *command)).out.strip()

    async def held() -> bool:
        return "exit code 7; its place is kept" in (await hatoba("logs", job)).err

    await eventually(held)
    assert (await hatoba("jobs", "exec", job, "--", "cat", "why")).out == "broken\n"
    await cancel(wire, job)
    short = (await hatoba(*said, "1s", "--", *command)).out.strip()
    ended = await wire.ended(f"projects/default/jobs/{short}")
    assert (ended.state, ended.cause.exit_code) == (common_pb2.JOB_STATE_FAILED, 7)


async def test_a_port_of_a_job_is_a_port_here(hatoba: CommandLine, wire: Wire) -> None:
    job = await running(wire, sys.executable, "-c", SERVES)

    async def port_of() -> str:
        return (await hatoba("logs", job)).out.strip()

    remote = await eventually(port_of)
    forwarding = await hatoba.start("jobs", "forward", job, f"0:{remote}")
    assert forwarding.stdout is not None
    assert forwarding.stderr is not None
    try:
        line = (await forwarding.stdout.readline()).decode()
        assert line.endswith(f" -> {job} port {remote}\n")
        local = int(line.split(" ")[0].rpartition(":")[2])
        for _ in range(3):
            assert (await _ask(local)).startswith(b"HTTP/1.0 200")
        await cancel(wire, job)
        await wire.ended(f"projects/default/jobs/{job}")
        assert await _ask(local) == b""
        async with asyncio.timeout(PATIENCE):
            assert b"does not run" in await forwarding.stderr.readline()
    finally:
        forwarding.kill()
        await forwarding.wait()


async def _ask(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            answer = await reader.read()
    writer.close()
    return answer
