"""The router as a process: its address, its parts, its signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from aiohttp import web

from hatoba.errors import InvalidSpec
from hatoba.router_port import FILE, router_address
from hatoba.sampling import RateSampler
from hatoba.settings import LOOPBACK
from hatoba_worker.process_log import configure_log
from hatoba_worker.router.access_log import AccessLog
from hatoba_worker.router.figures import Figures, Statistics
from hatoba_worker.router.front import OWN, Front, OwnPages, bind, listening
from hatoba_worker.router.keeping import Chooser
from hatoba_worker.router.passport import Passport
from hatoba_worker.router.proxy import Connector, Parts, Proxy, open_session
from hatoba_worker.router.reports import Reports
from hatoba_worker.router.spool import Spool
from hatoba_worker.router.table import Table
from hatoba_worker.router.table_file import FILE as TABLE
from hatoba_worker.router.table_file import load
from hatoba_worker.router.visits import Listener, Tracer, Visits

if TYPE_CHECKING:
    from hatoba_worker.router.feed import Feed

TAKEN = 75
USAGE = 78


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. An empty `server` means the embedded one of `data`."""

    data: Path
    host: str
    port: int
    tls: ssl.SSLContext | None = None
    server: str = ""
    token_file: str = ""
    ca_file: str = ""

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}"


def main(arguments: Sequence[str]) -> int:
    """Route until SIGTERM or SIGINT; the exit code. 75: the port is taken, 78: wrong options."""
    try:
        options = _options(arguments)
    except (InvalidSpec, OSError, ValueError) as error:
        sys.stderr.write(f"hatoba router: {error}\n")
        return USAGE
    configure_log()
    gc.set_threshold(20_000, 20, 50)
    try:
        bound = bind(options.host, options.port)
    except OSError as error:
        sys.stderr.write(f"hatoba router: {_taken(options, error)}\n")
        return TAKEN
    asyncio.run(_until_told(options, bound))
    return 0


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="hatoba-router", description="Answers for deployments.")
    parser.add_argument("--data", type=Path, required=True, help="data directory")
    parser.add_argument("--listen", default="", metavar="HOST:PORT", help=f"instead of DATA/{FILE}")
    parser.add_argument("--certificate", default="", metavar="FILE", help="for another than this")
    parser.add_argument("--key", default="", metavar="FILE", help="of the certificate")
    parser.add_argument("--server", default="", metavar="HOST:PORT", help="instead of DATA's own")
    parser.add_argument(
        "--token-file", default="", metavar="FILE", help="default DATA/router.token"
    )
    parser.add_argument("--ca-file", default="", metavar="FILE", help="the server's authority")
    told = parser.parse_args(arguments)
    data: Path = told.data.resolve()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    host, port = _address(told.listen or router_address(data))
    tls = None
    if told.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(told.certificate, told.key or None)
    elif not LOOPBACK.match(f"[{host}]" if ":" in host else host):
        raise ValueError(f"--listen {host} would take tokens in plain text: give --certificate")
    token_file = told.token_file or str(data / "router.token")
    return Options(data, host, port, tls, told.server, token_file, told.ca_file)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _taken(options: Options, error: OSError) -> str:
    return (
        f"cannot listen on {options.host}:{options.port}: {os.strerror(error.errno or 0)}; "
        f"end what holds the port, or remove {options.data / FILE} and start the server again "
        "for another one"
    )


async def _until_told(options: Options, bound: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: task.cancel() if task else None)
    with contextlib.suppress(asyncio.CancelledError):
        await Router(options).run(bound)


class Router:
    """One run of the router of a data directory."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._rng = Random()
        self._table = Table()
        self._statistics = Statistics()
        self._figures = Figures(self._table)
        self._access_log = AccessLog(options.data / "router-access.log")
        spool = Spool(options.data / "router-spool", time.time_ns)
        self._reports = Reports(spool, Chooser(self._rng))
        self._figures.watch("hatoba_router_dropped", "Not kept, since it began.", self._dropped)
        self._feed: Feed | None = None

    async def run(self, bound: socket.socket) -> None:
        """Answer at a port until cancelled."""
        await asyncio.to_thread(load, self._table, self._options.data / TABLE)
        passport = Passport(self._options.data)
        await asyncio.to_thread(passport.load)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            connector = Connector()
            session = await stack.enter_async_context(open_session(connector))
            tasks.create_task(self._access_log.run(), name="access log")
            tasks.create_task(self._reports.run(), name="reports")
            visits = Visits(Tracer(self._rng, RateSampler()), self._listeners(), time.time_ns)
            proxy = Proxy(Parts(self._table, session, visits, passport, self._rng))
            pages = OwnPages(self._figures.registry, self._state)

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                own = request.raw_path.startswith(OWN)
                return await (pages.handle(request) if own else proxy.handle(request))

            async with listening(Front(handle), bound, self._options.tls):
                # gRPC takes its time to load: the kept table answers meanwhile.
                self._feed = await asyncio.to_thread(self._make_feed, connector, passport)
                await self._feed.run()

    def _listeners(self) -> tuple[Listener, ...]:
        return self._statistics, self._figures, self._access_log, self._reports

    def _make_feed(self, connector: Connector, passport: Passport) -> Feed:
        from hatoba_worker.dial import Locator
        from hatoba_worker.router.feed import Around, Feed

        options = self._options
        token = Path(options.token_file).expanduser()
        locator = Locator(options.data, options.server, token, options.ca_file)
        around = Around(
            self._table,
            self._figures,
            self._statistics,
            self._reports,
            connector.settled,
            passport,
        )
        return Feed(locator, options.data, options.url, around)

    def _state(self) -> dict[str, Any]:
        return {
            "status": "ok",
            "connected": self._feed is not None and self._feed.connected,
            "cursor": self._table.cursor,
            "deployments": len(self._table.routes),
        }

    def _dropped(self) -> dict[str, float]:
        return {**self._reports.dropped, "log_lines": self._access_log.dropped}
