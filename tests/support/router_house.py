"""A router for tests: its directory, its process, its replicas, and the server it follows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from scripted_feed import ROUTER_TOKEN, USER_TOKEN, ScriptedFeed
from server_process import clean_environment
from waiting import eventually, until

from hatoba.router_port import router_address
from hatoba.v1 import deployment_pb2
from hatoba_worker.keeper import procfs

TINY = Path(__file__).with_name("tiny_replica.py")
READER = "projects/default/deployments/reader"


@dataclass
class TinyReplica:
    """A replica's process."""

    name: str
    port: int
    process: asyncio.subprocess.Process

    @property
    def message(self) -> deployment_pb2.RouteReplica:
        """As it stands in a route."""
        return deployment_pb2.RouteReplica(name=self.name, address=f"127.0.0.1:{self.port}")

    async def end(self) -> int:
        """SIGTERM; its exit code, once it has answered what it had."""
        self.process.terminate()
        return await self.process.wait()

    async def kill(self) -> None:
        """kill -9."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


def route(
    *targets: tuple[int, int, list[TinyReplica]],
    deployment: str = READER,
    capture: tuple[str, float] = ("", 0.0),
    seconds: float = 0,
    max_queue: int = 0,
    max_body_bytes: int = 0,
) -> deployment_pb2.Route:
    """A deployment's route; each target is (revision, weight, replicas)."""
    made = deployment_pb2.Route(
        deployment=deployment,
        generation=1,
        limits=deployment_pb2.ServingLimits(max_queue=max_queue, max_body_bytes=max_body_bytes),
        capture=deployment_pb2.Capture(dataset=capture[0], rate=capture[1]),
    )
    if seconds:
        made.limits.timeout.FromMilliseconds(round(seconds * 1000))
    for revision, weight, replicas in targets:
        made.targets.add(
            revision=revision,
            weight=weight,
            model_version=f"projects/default/models/digits/versions/{revision}",
            replicas=[one.message for one in replicas],
        )
    return made


def memory(pid: int) -> int:
    """What a process has resident, in bytes."""
    known = procfs.stat(pid)
    return known.rss_bytes if known else 0


async def back_within() -> float:
    """Two seconds; more on a machine so busy now that the mere imports take most of them."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import aiohttp, asyncio")
    await process.wait()
    return max(2.0, 4 * (time.monotonic() - began))


async def answers(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until the router there answers; nobody tells when another process listens."""

    async def well() -> bool:
        async with session.get(f"{url}/-/healthz") as reply:
            return reply.status == 200

    await eventually(well, despite=(aiohttp.ClientError,))


class RouterHouse:
    """One router's directory."""

    def __init__(self, root: Path) -> None:
        self.data = root / "house"
        self.data.mkdir()
        self.feed = ScriptedFeed()
        self.url = ""
        self._router: asyncio.subprocess.Process | None = None
        self._routers: list[asyncio.subprocess.Process] = []
        self._replicas: list[TinyReplica] = []
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """A client without limits of its own."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._session

    @property
    def pid(self) -> int:
        """Of the router that runs."""
        assert self._router is not None
        return self._router.pid

    async def start(self, *arguments: str) -> None:
        """Start a router and wait until it answers."""
        await self.launch(*arguments)
        await self.answers()

    async def launch(self, *arguments: str) -> asyncio.subprocess.Process:
        """Start a router and do not wait for it."""
        await asyncio.to_thread(self._prepare)
        log = await asyncio.to_thread((self.data / "router.log").open, "ab")
        self._router = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "hatoba_worker.router", "--data", str(self.data), *arguments),
            env=clean_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        self._routers.append(self._router)
        return self._router

    def _prepare(self) -> None:
        address = f"127.0.0.1:{self.feed.port}"
        (self.data / "server.json").write_text(json.dumps({"grpc": address}))
        (self.data / "router.token").write_text(ROUTER_TOKEN)
        self.url = f"http://{router_address(self.data)}"

    async def answers(self) -> None:
        """Wait until the router answers."""
        await answers(self.session, self.url)

    async def replica(self, name: str, port: int = 0) -> TinyReplica:
        """Start a replica, and wait until it listens."""
        ready = self.data / f"{name}.ready"
        await asyncio.to_thread(ready.unlink, missing_ok=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(TINY), str(ready), name, str(port)), env=clean_environment()
        )
        await until(ready.exists)
        found = json.loads(await asyncio.to_thread(ready.read_text))
        made = TinyReplica(name, found["port"], process)
        self._replicas.append(made)
        return made

    @asynccontextmanager
    async def ask(
        self, told: Any = None, path: str = "/reader/predict", **fields: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request with the user's token; the reply, not read yet."""
        headers = {"authorization": f"Bearer {fields.pop('token', USER_TOKEN)}"}
        headers |= fields.pop("headers", {})
        method = fields.pop("method", "POST")
        body = {"data": fields.pop("data")} if "data" in fields else {"json": told or {}}
        if method == "GET":
            body = {}
        async with self.session.request(
            method, self.url + path, headers=headers, **body, **fields
        ) as reply:
            yield reply

    async def predict(self, told: Any = None, **fields: Any) -> tuple[int, Any]:
        """One request; the status and the JSON that came."""
        async with self.ask(told, **fields) as reply:
            return reply.status, await reply.json()

    async def page(self, path: str) -> str:
        """One of the router's own pages."""
        async with self.session.get(self.url + path) as reply:
            return await reply.text()

    async def kill(self) -> None:
        """kill -9 of the router."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: int) -> int:
        assert self._router is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._router.pid, number)
        code = await self._router.wait()
        self._router = None
        return code

    def log(self) -> str:
        """What routers said."""
        return (self.data / "router.log").read_text()

    async def close(self) -> None:
        """End all."""
        if self._session is not None:
            await self._session.close()
        for router in self._routers:
            if router.returncode is None:
                router.kill()
                await router.wait()
        for replica in self._replicas:
            await replica.kill()
        await self.feed.stop()
