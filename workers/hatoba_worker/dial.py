"""Where the server is, and channels to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from hatoba.errors import InvalidSpec
from hatoba.settings import parse_address, read_token

# A NAT on the way forgets an idle connection after some minutes.
OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 45_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    # How long one try may take, hand-shake included; one that is refused waits for the others only.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Or control and bulk would share one connection, and a failed dial its back-off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 16 << 20),
]


SOCKET = "unix:"
_FAR: list[tuple[str, int]] = [
    # The last of two that say the same counts. What a socket leads to may be far away.
    ("grpc.min_reconnect_backoff_ms", 40_000),
    ("grpc.max_reconnect_backoff_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 30_000),
    ("grpc.client_idle_timeout_ms", 60_000),
]


class NoServer(Exception):
    """It is not known where the server is, or there is no token to show."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what proves to it who we are: a token, or what is signed anew now and then."""

    address: str
    tls: bool
    ca: bytes | None
    token: str = field(repr=False)
    credential: Callable[[], str] | None = field(default=None, repr=False)

    def proof(self) -> str:
        """What to show with a call that is made now."""
        return self.credential() if self.credential is not None else self.token


@dataclass(frozen=True, slots=True)
class Connection:
    """Two channels to one server: what is small and urgent does not wait behind what is large."""

    control: grpc.aio.Channel
    bulk: grpc.aio.Channel
    proof: Callable[[], str] = field(repr=False)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call that is made now carries."""
        return (("authorization", f"Bearer {self.proof()}"),)


class Locator:
    """Finds the server, anew before each dial: its port and the token may have changed.

    An empty `server` means the embedded one, whose address stands in `server.json`. With a
    `credential` no token is needed.
    """

    def __init__(
        self,
        data: Path,
        server: str,
        token_file: Path,
        ca_file: str,
        credential: Callable[[], str] | None = None,
    ) -> None:
        self._credential = credential
        self._data = data
        self._server = server
        self._token_file = token_file
        self._ca_file = ca_file

    def find(self) -> Target:
        """Where to dial; blocks on small files. Raises NoServer."""
        try:
            token = "" if self._credential else read_token(str(self._token_file))
            if not self._server:
                return self._embedded(token)
            if self._server.startswith(SOCKET):
                return Target(self._server, False, None, token, self._credential)
            address, tls = parse_address(self._server)
            authority = Path(self._ca_file).expanduser().read_bytes() if self._ca_file else None
            secure = tls or authority is not None
            return Target(address, secure, authority, token, self._credential)
        except (OSError, ValueError, KeyError, TypeError, InvalidSpec) as error:
            raise NoServer(str(error)) from error

    def stamp(self) -> int:
        """Changes when an embedded server has started; blocks."""
        try:
            return (self._data / "server.json").stat().st_mtime_ns
        except OSError:
            return 0

    def _embedded(self, token: str) -> Target:
        """The server of this directory speaks TLS exactly when it names an authority."""
        found = json.loads((self._data / "server.json").read_text(encoding="utf-8"))
        ca_file = found.get("ca_file")
        authority = Path(ca_file).read_bytes() if ca_file else None
        return Target(str(found["grpc"]), authority is not None, authority, token)


@asynccontextmanager
async def connection(target: Target) -> AsyncIterator[Connection]:
    """Channels to `target`, closed at the end."""
    async with _channel(target) as control, _channel(target) as bulk:
        yield Connection(control, bulk, target.proof)


def _channel(target: Target) -> grpc.aio.Channel:
    if target.address.startswith(SOCKET):
        return grpc.aio.insecure_channel(target.address, options=[*OPTIONS, *_FAR])
    if not target.tls:
        return grpc.aio.insecure_channel(target.address, options=OPTIONS)
    credentials = grpc.ssl_channel_credentials(target.ca)
    return grpc.aio.secure_channel(target.address, credentials, options=OPTIONS)
