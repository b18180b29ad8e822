"""Whether the replica that is meant answers at an address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hatoba_plugins.backends.ecs.addresses import answers

UID, OTHER = "a" * 32, "b" * 32
NAME = f"r-{UID}-1-0123abcd"


@asynccontextmanager
async def answering(*head: str) -> AsyncIterator[str]:
    """The address of a server that gives this reply to everybody."""
    text = "\r\n".join((*head, "Content-Length: 0", "", ""))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(text.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (NAME, True),
        (f"r-{UID}-1", True),
        ("an-older-image", True),
        (f"r-{UID}-1-0123abce", False),
        (f"r-{UID}-12", False),
        (f"r-{UID}-2-0123abcd", False),
        (f"r-{OTHER}-1-0123abcd", False),
    ],
)
async def test_who_says_another_name_is_not_the_replica(said: str, taken: bool) -> None:
    async with answering("HTTP/1.1 200 OK", f"Hatoba-Replica: {said}") as address:
        assert await answers(address, NAME) is taken


async def test_who_says_nothing_is_taken_by_its_status() -> None:
    async with answering("HTTP/1.1 200 OK") as address:
        assert await answers(address, NAME)
    async with answering("HTTP/1.1 503 Service Unavailable", f"hatoba-replica: {NAME}") as address:
        assert not await answers(address, NAME)
    assert not await answers(address, NAME)


async def test_what_is_no_http_is_no_answer() -> None:
    async with answering("x" * 100_000) as address:
        assert not await answers(address, NAME)
    async with answering("") as address:
        assert not await answers(address, NAME)
