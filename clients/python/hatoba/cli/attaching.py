"""`hatoba jobs exec` and `hatoba jobs forward`: into jobs that run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING

import click

from hatoba.cli.exits import Exit
from hatoba.cli.session import open_client, server_options

if TYPE_CHECKING:
    from hatoba.aio import AsyncClient
    from hatoba.v1 import job_pb2

CHUNK = 65_536


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("job")
@click.option(
    "--index", type=click.IntRange(0), default=0, metavar="N", help="Which task of an array."
)
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal, as for a shell.")
@server_options()
@click.argument("command", nargs=-1, required=True, metavar="-- COMMAND [ARGUMENT]...")
@click.pass_context
def exec_command(
    ctx: click.Context, job: str, index: int, tty: bool, command: tuple[str, ...]
) -> None:
    """Run COMMAND beside a task of JOB that runs: in its directory and environment, under its
    limits. It ends when the task does, or when you leave.

    The exit code is the command's, or 128 and the number of the signal that ended it.

    \b
    Examples:
      hatoba jobs exec digits-42 -- nvidia-smi
      hatoba jobs exec -t digits-42 -- bash
    """
    if tty and not sys.stdin.isatty():
        raise click.UsageError("-t needs a terminal on stdin; leave it out")
    # What follows the job is the command's alone, but for the two dashes that part them.
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("say which command, after --")
    try:
        code = asyncio.run(_exec(job, index, command, terminal=tty))
    except KeyboardInterrupt:
        code = Exit.DETACHED
    ctx.exit(code)


async def _exec(job: str, index: int, command: tuple[str, ...], *, terminal: bool) -> int:
    from hatoba.staying import visiting

    async with open_client() as client:
        record = await client.get(job)
        inner = visiting(record.spec, command)
        return await run_inside(client, record.name, index, inner, terminal=terminal)


async def run_inside(
    client: AsyncClient, job: str, index: int, command: Sequence[str], *, terminal: bool
) -> int:
    """Run a command beside a task with this process's handles; its exit code as shells tell it."""
    from hatoba.attaching import exec_in_job
    from hatoba.v1 import job_pb2

    start = job_pb2.ExecStart(job=job, index=index, command=command, terminal=terminal)
    if terminal:
        start.size.CopyFrom(_size())
        start.term = os.environ.get("TERM", "")
    with _raw() if terminal else contextlib.nullcontext():
        told = exec_in_job(client.transport, start, _said(terminal=terminal))
        async with contextlib.aclosing(told):
            async for output in told:
                _write(1, output.data)
                _write(2, output.stderr)
                if output.HasField("ended"):
                    ended = output.ended
                    return 128 + ended.signal if ended.signal else ended.exit_code
    raise AssertionError("it always ends, or an error tells why not")


async def _said(*, terminal: bool) -> AsyncIterator[job_pb2.AttachInput]:
    """What this process reads on stdin, and each new size of its terminal."""
    from hatoba.v1 import job_pb2

    woken = asyncio.Event()
    resized = False

    def on_resize() -> None:
        nonlocal resized
        resized = True
        woken.set()

    loop = asyncio.get_running_loop()
    if terminal:
        loop.add_signal_handler(signal.SIGWINCH, on_resize)
    with _readable(woken) as waits:
        while True:
            if waits:
                await woken.wait()
                woken.clear()
            if resized:
                resized = False
                yield job_pb2.AttachInput(size=_size())
                continue
            if waits and not select.select([0], [], [], 0)[0]:
                continue
            data = os.read(0, CHUNK)
            if not data:
                yield job_pb2.AttachInput(end=True)
                return
            yield job_pb2.AttachInput(data=data)


@contextlib.contextmanager
def _readable(woken: asyncio.Event) -> Iterator[bool]:
    """Have `woken` set whenever stdin can be read; False for a file, which always can."""
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(0, woken.set)
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        loop.remove_reader(0)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Every key goes to the other side, Ctrl-C too."""
    import termios
    import tty

    before = termios.tcgetattr(0)
    # What was typed ahead is not thrown away.
    tty.setraw(0, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _size() -> job_pb2.TerminalSize:
    from hatoba.v1 import job_pb2

    columns, rows = os.get_terminal_size(0)
    return job_pb2.TerminalSize(rows=rows or 24, columns=columns or 80)


def _write(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


class _Ports(click.ParamType[tuple[int, int]]):
    """`PORT` or `PORT:REMOTE`."""

    name = "port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        here, _, there = str(value).partition(":")
        try:
            pair = int(here), int(there or here)
        except ValueError:
            pair = (-1, -1)
        if not (0 <= pair[0] < 65_536 and 0 < pair[1] < 65_536):
            self.fail(f"{value!r} is no PORT or PORT:REMOTE of 1 to 65535", param, ctx)
        return pair


@click.command("forward")
@click.argument("job")
@click.argument("ports", nargs=-1, required=True, type=_Ports(), metavar="PORT[:REMOTE]...")
@click.option(
    "--index", type=click.IntRange(0), default=0, metavar="N", help="Which task of an array."
)
@server_options()
@click.pass_context
def forward(ctx: click.Context, job: str, ports: tuple[tuple[int, int], ...], index: int) -> None:
    """Let PORT of this machine lead to port REMOTE of a task of JOB that runs, until Ctrl-C.

    Only this machine can use PORT; 0 takes one that is free.

    \b
    Examples:
      hatoba jobs forward digits-42 6006
      hatoba jobs forward notebook-3 8888:8080
    """
    try:
        asyncio.run(_forward(job, index, ports))
    except KeyboardInterrupt:
        ctx.exit(Exit.DETACHED)


async def _forward(job: str, index: int, ports: tuple[tuple[int, int], ...]) -> None:
    async with open_client() as client:
        record = await client.get(job)
        ways = [_forward_one(client, record.name, index, pair) for pair in ports]
        await asyncio.gather(*ways)


async def _forward_one(client: AsyncClient, job: str, index: int, ports: tuple[int, int]) -> None:
    from hatoba.aio import short_name
    from hatoba.attaching import Forward, forward_port
    from hatoba.cli.main import show_error

    local, remote = ports

    def listening(port: int) -> None:
        click.echo(f"127.0.0.1:{port} -> {short_name(job)} port {remote}")

    try:
        one = Forward(job, index, local, remote)
        await forward_port(client.transport, one, listening, show_error)
    except OSError as error:
        raise click.ClickException(f"port {local} of this machine: {error.strerror}") from error
