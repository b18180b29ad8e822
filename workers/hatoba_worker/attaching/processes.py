"""A command beside an attempt that is a process: the keeper's child, which ends with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator, Iterator
from typing import Protocol

from hatoba.scopes import lapse
from hatoba.v1 import job_pb2, worker_pb2
from hatoba_worker.attaching import handles
from hatoba_worker.attaching.doors import AttachFailed
from hatoba_worker.attaching.handles import Handles
from hatoba_worker.keeper import procfs
from hatoba_worker.keeper.joined import SOCKET
from hatoba_worker.keeper.messages import Join, Joined, JoinedEnded

BEGINS_WITHIN = 30.0
HANG_UP_GRACE = 5.0
_END_OF_INPUT = b"\x04"
Ended = asyncio.Future[JoinedEnded]
Output = job_pb2.AttachOutput


class Joins(Protocol):
    """Who starts processes beside an attempt's."""

    async def join(self, join: Join) -> tuple[Joined, Ended]:
        """Start it; the future tells its end. Raises AttachFailed."""


class ProcessDoor:
    """A command that runs, and the handles through which it speaks."""

    def __init__(self, ours: Handles, joined: Joined, ended: Ended) -> None:
        self._ours = ours
        self._joined = joined
        self._ended = ended
        self._open = set(ours.own)

    async def give(self, said: job_pb2.AttachInput) -> None:
        """Take what was said, as fast as the command reads."""
        into, of_terminal = self._ours.into, self._ours.error is None
        if into not in self._open:
            return
        if said.HasField("size"):
            if of_terminal:
                handles.resize(into, said.size)
        elif said.end and of_terminal:
            await handles.write(into, _END_OF_INPUT)
        elif said.end:
            self._shut(into)
        else:
            await handles.write(into, said.data)

    async def tell(self) -> AsyncGenerator[Output, None]:
        """What it writes as it comes, then how it ended. Who left its session may go on writing:
        nobody hears that."""
        error = self._ours.error
        sources = (self._ours.out,) if error is None else (self._ours.out, error)
        async with contextlib.aclosing(handles.chunks(sources, self._ended)) as chunks:
            async for handle, data in chunks:
                yield Output(stderr=data) if handle == error else Output(data=data)
        ended = await asyncio.shield(self._ended)
        yield Output(ended=job_pb2.ExecEnded(exit_code=ended.exit_code, signal=ended.signal))

    async def close(self) -> None:
        """Hang up: SIGHUP to all of its session, SIGKILL to what is left after a while."""
        for handle in list(self._open):
            self._shut(handle)
        for number in (signal.SIGHUP, signal.SIGKILL):
            if self._ended.done():
                return
            await asyncio.to_thread(self._signal, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HANG_UP_GRACE):
                    await asyncio.shield(self._ended)

    def _signal(self, number: signal.Signals) -> None:
        leader = procfs.stat(self._joined.pid)
        if leader is None or leader.start != self._joined.start_ticks:
            return
        for each in procfs.everyone().values():
            if each.sid == leader.pid and not each.dead:
                procfs.send(each, number)

    def _shut(self, handle: int) -> None:
        if handle in self._open:
            self._open.discard(handle)
            os.close(handle)


async def begin(joins: Joins, home: str, order: worker_pb2.AttachAttempt) -> ProcessDoor:
    """Start a command in the attempt's directory below `home`. Raises AttachFailed."""
    directory = await asyncio.to_thread(tempfile.mkdtemp, prefix="attach-", dir=home)
    start = order.exec
    ours = handles.terminal(start.size) if start.terminal else handles.pipes()
    env = {"TERM": start.term or "xterm"} if start.terminal else {}
    join = Join(order.attempt, order.session, start.command, env, directory, f"{home}/work")
    try:
        with _listening(directory) as listener:
            joined, ended = await joins.join(join)
            await _hand_over(listener, ours.theirs, ended)
    except BaseException:
        for handle in ours.own:
            os.close(handle)
        raise
    finally:
        for handle in ours.theirs:
            os.close(handle)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
    return ProcessDoor(ours, joined, ended)


@contextlib.contextmanager
def _listening(directory: str) -> Iterator[socket.socket]:
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # The directory's own path may be too long for a socket's address.
        listener.bind(f"/proc/self/fd/{handle}/{SOCKET}")
        listener.listen(1)
        yield listener
    finally:
        listener.close()
        os.close(handle)


async def _hand_over(listener: socket.socket, theirs: tuple[int, ...], ended: Ended) -> None:
    """Give the command its handles, once it asks for them."""
    loop = asyncio.get_running_loop()
    limit = asyncio.timeout(BEGINS_WITHIN)

    def give_up(_: object) -> None:
        lapse(limit)

    try:
        async with limit:
            ended.add_done_callback(give_up)
            try:
                peer, _ = await loop.sock_accept(listener)
            finally:
                ended.remove_done_callback(give_up)
    except TimeoutError:
        late = f"it did not begin within {BEGINS_WITHIN:g} s"
        raise AttachFailed("it ended before it began" if ended.done() else late) from None
    with peer:
        socket.send_fds(peer, [b"0"], theirs)
