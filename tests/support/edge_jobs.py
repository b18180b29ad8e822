"""Jobs on a device for the conformance kit: the server's own port for devices with mTLS, and beside
it what an agent has for jobs, with its tunnel, worker and keeper.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import grpc
import grpc.aio
from device_desk import Book, DeviceDesk, Machine, enrolled
from hosts_house import Anybody, GrantOnce, HostsOnly, NoSpans, SwallowLogs
from scripted_server import ScriptedServer

from hatoba.v1 import artifact_pb2_grpc, job_pb2, runner_pb2_grpc, worker_pb2_grpc
from hatoba_plugins.backend import BackendContext
from hatoba_plugins.backends.iot_edge import EdgeType
from hatoba_plugins.clock import SystemClock
from hatoba_plugins.conformance import Command, ShellHarness
from hatoba_scheduler.auth.authority import DEVICES_NAME
from hatoba_scheduler.control.device_hub import DeviceHub
from hatoba_scheduler.control.draining import Drainer
from hatoba_scheduler.control.hub import Hub
from hatoba_scheduler.control.ledger import Ledger
from hatoba_scheduler.control.runners import RunnerDesk
from hatoba_scheduler.device_port import DevicePort
from hatoba_scheduler.interceptors import Admission, Front, Phase, server_options
from hatoba_scheduler.services.joining import Joining
from hatoba_scheduler.services.paging import Pager
from hatoba_scheduler.services.workers import Side, WorkerItems, WorkerServicer
from hatoba_scheduler.store.base import Store
from hatoba_scheduler.telemetry.metrics import ServerMetrics
from hatoba_scheduler.telemetry.tracing import Tracer
from hatoba_worker.agent.clock import FloorClock
from hatoba_worker.agent.jobs import DeviceJobs
from hatoba_worker.agent.main import clock_of
from hatoba_worker.agent.ordinary import socket_directory
from hatoba_worker.agent.tunnel import Peer, Tunnel
from hatoba_worker.keeper.client import end_keeper

NAME = "kit"
CLUSTER = "cluster"
IDLE = 600.0


class NoTokens:
    """Nobody is known by a token."""

    async def tokens(self) -> list[Any]:
        """None."""
        return []

    async def put_token(self, token: Any) -> None:
        """None is made."""


class EdgeJobsHarness(ShellHarness):
    """A server's side in this process, and one device beside it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(EdgeType(), marks=directory / "marks")
        self._clock = SystemClock()
        self._book = Book()
        self._desk = DeviceDesk(directory, self._clock, NoTokens(), self._book)
        self._desk.gate.works = lambda device: True
        self._machine = enrolled(self._desk, self._book, NAME)
        self._hub = Hub(cast(Store, HostsOnly()), self._clock, "0", of_devices=True)
        self._data = directory / "device"
        self._world = AsyncExitStack()
        self._server: grpc.aio.Server | None = None

    def free(self) -> None:
        """Let go of the server: that takes a lock, which no coroutine of ours may wait for."""
        self._server = None

    def context(self) -> BackendContext:
        devices = DeviceHub(self._clock, 10.0)
        return replace(
            super().context(), cluster_id="conformance", devices=devices, device_jobs=self._hub
        )

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        """As on any host, for the one device."""
        spec = super().command(kind, name)
        spec.devices.names.append(NAME)
        return spec

    async def __aenter__(self) -> Self:
        if self._backend is None:
            port, self._server = await self._world.enter_async_context(self._serving())
            await self._world.enter_async_context(self._working(port))
            async with asyncio.timeout(60):
                async for _ in self._hub.watch():
                    if self._hub.ready_hosts():
                        break
        return await super().__aenter__()

    async def reopen(self) -> None:
        opened, self._opened = self._opened, None
        assert opened is not None
        await opened.__aexit__(None, None, None)
        await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        await self._world.aclose()

    # -- the server -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _serving(self) -> AsyncIterator[tuple[int, grpc.aio.Server]]:
        front = Front(self._desk.authenticator, Tracer(), ServerMetrics(), Admission(Phase.SERVING))
        server = grpc.aio.server(interceptors=[front], options=server_options())
        async with asyncio.TaskGroup() as tasks:
            worker_pb2_grpc.add_WorkerServiceServicer_to_server(self._servicer(tasks), server)
            runner_pb2_grpc.add_RunnerServiceServicer_to_server(SwallowLogs(), server)
            artifact_pb2_grpc.add_ArtifactServiceServicer_to_server(ScriptedServer(), server)
            credentials = DevicePort(self._desk.authority).credentials()
            port = server.add_secure_port("127.0.0.1:0", credentials)
            await server.start()
            try:
                yield port, server
            finally:
                self._hub.close()
                await server.stop(1)

    def _servicer(self, tasks: asyncio.TaskGroup) -> WorkerServicer:
        nobody = cast(Any, None)
        desk = cast(RunnerDesk, GrantOnce())
        items = WorkerItems(self._hub, desk, nobody, nobody, cast(Any, NoSpans()))
        return WorkerServicer(
            self._hub,
            items,
            cast(Ledger, None),
            cast(Drainer, None),
            Pager(),
            tasks,
            cast(Joining, Anybody()),
            Side(self._hub, items),
        )

    # -- the device -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _working(self, port: int) -> AsyncIterator[None]:
        clock = clock_of(self._data)
        peer = await asyncio.to_thread(self._prepared, port, clock)
        async with socket_directory(self._data / "link") as short:
            tunnel = Tunnel(short, lambda: peer, clock)
            jobs = DeviceJobs(
                self._data, lambda: NAME, tunnel.target, idle=IDLE, environ=os.environ
            )
            async with tunnel.open(), asyncio.TaskGroup() as tasks:
                running = tasks.create_task(jobs.run(), name="jobs")
                jobs.told()
                try:
                    yield
                finally:
                    running.cancel()
                    await asyncio.wait([running])
                    await end_keeper(self._data / "jobs", 0.0)

    def _prepared(self, port: int, clock: FloorClock) -> Peer:
        """What the agent keeps of who it is."""
        self._data.mkdir(parents=True, exist_ok=True)
        clock.load()
        own, authority = self._data / "own.pem", self._data / "authority.pem"
        own.write_bytes(_both(self._machine))
        authority.write_text(self._desk.authority.pem)
        return Peer("127.0.0.1", port, DEVICES_NAME, authority, own)


def _both(machine: Machine) -> bytes:
    return machine.key_pem + machine.certificate.encode()
