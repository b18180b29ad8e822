"""The router that comes with a server, kept running by the keeper."""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
from router_house import answers, back_within
from server_process import HatobaServer, clean_environment
from waiting import until


async def _answers(server: HatobaServer) -> float:
    """Seconds until the router answers."""
    began = time.monotonic()
    async with aiohttp.ClientSession() as session:
        await answers(session, server.router_url)
    return time.monotonic() - began


async def test_it_answers_where_the_server_said_and_is_back_without_the_server(
    own_server: HatobaServer,
) -> None:
    await _answers(own_server)
    url = own_server.router_url
    await own_server.kill()
    killed = await own_server.kill_router()
    took = await _answers(own_server)
    print(f"\nback {took:.2f} s after kill -9, with the server down")
    assert took < await back_within()
    await until(own_server.router_pid)
    assert await asyncio.to_thread(own_server.router_pid) != killed
    await own_server.start()
    assert own_server.router_url == url


async def test_it_is_started_again_for_another_version_and_not_for_the_same(
    own_server: HatobaServer,
) -> None:
    await _answers(own_server)
    await until(own_server.router_pid)
    first = await asyncio.to_thread(own_server.router_pid)
    await _embed(own_server)
    assert await asyncio.to_thread(own_server.router_pid) == first
    await _embed(own_server, "embedded.__version__ = '99.0.0'")
    await until(lambda: own_server.router_pid() not in (0, first))
    await _answers(own_server)


async def _embed(server: HatobaServer, before: str = "") -> None:
    """As a server does it at its start; `before` is a line of Python."""
    script = f"""
import sys
from hatoba_worker import embedded
{before}
sys.exit(embedded.main(["embed", "--data", {str(server.data)!r}]))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, env=clean_environment()
    )
    assert await process.wait() == 0
