"""The keeper's socket: several clients, requests in order, replies once a turn."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from hatoba_worker.keeper.frames import FrameBuffer, FrameError, Json, encode

SOCKET = "keeper.sock"
_SLICE = 0.01
_MOST_UNSENT = 16 << 20
_EVENTS_A_FRAME = 1000

Handler = Callable[["Peer", Json], Json]


@contextlib.contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """Give a path of the socket in `directory` that fits a socket address (107 bytes)."""
    handle = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{SOCKET}"
    finally:
        os.close(handle)


def listen(directory: Path) -> socket.socket:
    """Bind the socket of `directory`, for its user alone; an old socket file is replaced."""
    (directory / SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        with short_path(directory) as path:
            listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(128)
    listener.setblocking(False)
    return listener


class Peer:
    """One connected client."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = FrameBuffer()
        self.out = bytearray()
        self.requests: deque[Json] = deque()
        self.replies: list[Json] = []
        self.events: list[Json] = []
        self.watching = False


class Service:
    """Reads requests, hands their commands to `handler` in slices, and sends what it returns.

    A client sees the reply of its request before any event of what the request began.
    """

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self._listener = listener
        self._handler = handler
        self._peers: dict[int, Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def wake_by(self, handle: int) -> None:
        """Let a readable `handle` end the wait."""
        self._selector.register(handle, selectors.EVENT_READ)

    def wait(self, timeout: float | None) -> None:
        """Wait for something to happen, and take in what has been received."""
        if any(peer.requests for peer in self._peers.values()):
            timeout = 0.0
        for key, mask in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif (peer := self._peers.get(key.fd)) is not None:
                self._serve(peer, mask)
            else:
                _drain(key.fd)

    def work(self) -> None:
        """Handle commands for about 10 ms; what is left waits for the next turn."""
        until = time.monotonic() + _SLICE
        for peer in [each for each in self._peers.values() if each.requests]:
            while peer.requests and time.monotonic() < until:
                self._step(peer)

    def publish(self, events: list[Json]) -> None:
        """Queue `events` for every client that watches."""
        for peer in self._peers.values():
            if peer.watching:
                peer.events += events

    def send(self) -> None:
        """Send what there is, as far as it goes without waiting."""
        for peer in list(self._peers.values()):
            if peer.events and not peer.requests:
                self._put_events(peer)
            if peer.out:
                self._flush(peer)

    def close(self) -> None:
        """Close the socket and all connections."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            sock.setblocking(False)
            self._peers[sock.fileno()] = Peer(sock)
            self._selector.register(sock, selectors.EVENT_READ)

    def _serve(self, peer: Peer, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(peer)
        if mask & selectors.EVENT_READ and peer.sock.fileno() >= 0:
            self._receive(peer)

    def _receive(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(1 << 18)
            peer.requests += peer.inbox.feed(data)
        except BlockingIOError:
            return
        except (OSError, FrameError):
            data = b""
        if not data:
            self._drop(peer)

    def _step(self, peer: Peer) -> None:
        request = peer.requests[0]
        commands = request.get("commands")
        if not isinstance(commands, list):
            commands = []
        if len(peer.replies) < len(commands):
            peer.replies.append(self._handler(peer, commands[len(peer.replies)]))
        if len(peer.replies) >= len(commands):
            peer.requests.popleft()
            self._answer(peer, {"id": request.get("id"), "replies": peer.replies})
            peer.replies = []
            self._put_events(peer)

    def _answer(self, peer: Peer, body: Json) -> None:
        try:
            peer.out += encode(body)
        except FrameError as error:
            peer.out += encode({"id": body["id"], "error": str(error)})

    def _put_events(self, peer: Peer) -> None:
        for first in range(0, len(peer.events), _EVENTS_A_FRAME):
            peer.out += encode({"events": peer.events[first : first + _EVENTS_A_FRAME]})
        peer.events = []

    def _flush(self, peer: Peer) -> None:
        try:
            sent = peer.sock.send(peer.out)
            del peer.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(peer)
            return
        if len(peer.out) > _MOST_UNSENT:
            self._drop(peer)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.out else 0)
        if self._selector.get_key(peer.sock).events != wanted:
            self._selector.modify(peer.sock, wanted)

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(peer.sock.fileno(), None)
        self._selector.unregister(peer.sock)
        peer.sock.close()


def _drain(handle: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(handle, 4096):
            pass
