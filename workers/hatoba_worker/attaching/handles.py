"""Pipes and terminals on the event loop, without a thread for each."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import AsyncGenerator, Iterable
from typing import Any, NamedTuple

from hatoba.v1 import job_pb2
from hatoba_worker.attaching.doors import CHUNK


class Handles(NamedTuple):
    """Our ends, to read from and to write to, and those that the command gets. Of a terminal `out`
    and `into` are one.
    """

    into: int
    out: int
    error: int | None
    theirs: tuple[int, ...]

    @property
    def own(self) -> frozenset[int]:
        """All of ours."""
        error = () if self.error is None else (self.error,)
        return frozenset((self.into, self.out, *error))


def terminal(size: job_pb2.TerminalSize) -> Handles:
    """A new terminal of this size."""
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    resize(ours, size)
    return Handles(ours, ours, None, (theirs,))


def pipes() -> Handles:
    """Three pipes."""
    their_in, into = os.pipe()
    out, their_out = os.pipe()
    error, their_error = os.pipe()
    for ours in (into, out, error):
        os.set_blocking(ours, False)
    return Handles(into, out, error, (their_in, their_out, their_error))


def resize(handle: int, size: job_pb2.TerminalSize) -> None:
    """The terminal is of this size from now on; its foreground is told."""
    if size.rows and size.columns:
        fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("4H", size.rows, size.columns, 0, 0))


async def chunks(
    sources: Iterable[int], over: asyncio.Future[Any]
) -> AsyncGenerator[tuple[int, bytes], None]:
    """What comes from these handles, to their ends; once `over` is done, only what is there
    already."""
    left = list(sources)
    while left:
        done, idle = over.done(), True
        for handle in list(left):
            data = _read(handle)
            if data is None:
                continue
            idle = False
            if data:
                yield handle, data
            else:
                left.remove(handle)
        if idle and done:
            return
        if idle:
            await _readable(tuple(left), over)


def _read(handle: int) -> bytes | None:
    """What is there now; None: nothing, empty: its end."""
    try:
        return os.read(handle, CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        # A terminal whose last process has gone.
        return b""


async def write(handle: int, data: bytes) -> None:
    """Write all of it, as fast as it is read. What nobody reads any more is dropped."""
    rest = memoryview(data)
    with contextlib.suppress(BrokenPipeError, OSError):
        while rest:
            try:
                rest = rest[os.write(handle, rest) :]
            except BlockingIOError:
                await _writable(handle)


async def _readable(sources: Iterable[int], over: asyncio.Future[Any]) -> None:
    """Until one of them can be read, or it is over."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()

    def wake(_: object = None) -> None:
        woken.set()

    for handle in sources:
        loop.add_reader(handle, wake)
    over.add_done_callback(wake)
    try:
        await woken.wait()
    finally:
        for handle in sources:
            loop.remove_reader(handle)
        over.remove_done_callback(wake)


async def _writable(handle: int) -> None:
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    loop.add_writer(handle, woken.set)
    try:
        await woken.wait()
    finally:
        loop.remove_writer(handle)
