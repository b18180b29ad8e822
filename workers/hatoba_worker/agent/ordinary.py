"""The server's ordinary port: a device is made there, and renewed once its certificate ended."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from hatoba.settings import parse_address
from hatoba_worker import key_files
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.tunnel import Peer, Tunnel

LONGEST_PATH = 90
"""Characters of a directory with a socket: the name of one may have 107."""


@dataclass(frozen=True, slots=True)
class Place:
    """`HOST:PORT`, and who is believed there (PEM); empty: those whom the machine believes."""

    server: str
    authority: str = ""


@contextlib.asynccontextmanager
async def reached(
    place: Place, directory: Path, clock: FloorClock
) -> AsyncIterator[tuple[grpc.aio.Channel, Tunnel | None]]:
    """A channel to it. With an authority of its own it goes by the clock that the agent keeps, for
    this machine's may say 1970, and `directory` gets a socket. Raises InvalidSpec, OSError.
    """
    address, tls = parse_address(place.server)
    if place.authority:
        async with _tunnelled(place.authority, address, directory, clock) as both:
            yield both
        return
    channel = (
        grpc.aio.secure_channel(address, grpc.ssl_channel_credentials())
        if tls
        else grpc.aio.insecure_channel(address)
    )
    async with channel:
        yield channel, None


@contextlib.asynccontextmanager
async def _tunnelled(
    authority: str, address: str, wanted: Path, clock: FloorClock
) -> AsyncIterator[tuple[grpc.aio.Channel, Tunnel]]:
    host, _, port = address.rpartition(":")
    name = host.strip("[]")
    async with socket_directory(wanted) as directory:
        path = directory / "authority.pem"
        await asyncio.to_thread(key_files.write_secret, path, authority)
        peer = Peer(name, int(port), name, path)
        tunnel = Tunnel(directory, lambda: peer, clock)
        async with tunnel.open(), grpc.aio.insecure_channel(tunnel.target) as channel:
            yield channel, tunnel


@contextlib.asynccontextmanager
async def socket_directory(directory: Path) -> AsyncIterator[Path]:
    """A directory of our own for a socket: this one unless its name is too long. Raises OSError."""
    if len(str(directory)) <= LONGEST_PATH:
        await asyncio.to_thread(directory.mkdir, 0o700, True, True)
        yield directory
        return
    short = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="hatoba-"))
    try:
        yield short
    finally:
        await asyncio.to_thread(shutil.rmtree, short, True)
