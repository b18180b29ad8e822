"""What an operator does meanwhile: cordons and drains, each taken back, and in the end all."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from fault_outside import Outside
from google.protobuf.message import Message
from wire import Wire

from hatoba.v1 import admin_pb2, queue_pb2, worker_pb2

PATIENCE = 120.0
PAUSE = 2.0
Call = tuple[Message, type[Message]]


class Operator:
    """Cordons a backend, a queue or a host for a moment, over and over."""

    def __init__(self, wire: Wire, outside: Outside, seed: int) -> None:
        self._wire = wire
        self._outside = outside
        self._dice = random.Random(f"operator-{seed}")
        self.done = 0

    async def work(self) -> None:
        """Go on until cancelled."""
        while True:
            await asyncio.sleep(self._dice.uniform(0, 2 * PAUSE) * self._outside.pace)
            kinds = [self._of_backend, self._of_queue]
            if self._outside.hosts:
                kinds.append(self._of_host)
            await self._for_a_moment(
                self._dice.choice(kinds), self._dice.random() < self._outside.drained
            )

    async def take_all_back(self) -> None:
        """Nothing is cordoned any more."""
        for kind in (self._of_backend, self._of_queue):
            await self._carry_out(kind(False, False))
        if self._outside.hosts:
            await self._carry_out(self._of_host(False, False))

    async def cordon(self, what: str, *, drain: bool = False) -> None:
        """Cordon a `backend`, `queue` or `host` for a moment."""
        kinds = {"backend": self._of_backend, "queue": self._of_queue, "host": self._of_host}
        await self._for_a_moment(kinds[what], drain)

    async def _for_a_moment(self, kind: Callable[[bool, bool], Call], drain: bool) -> None:
        await self._carry_out(kind(True, drain))
        await self._carry_out(kind(False, False))
        self.done += 1

    async def _carry_out(self, call: Call) -> None:
        request, reply = call
        if isinstance(request, worker_pb2.CordonHostRequest):
            found = await self._wire.call(
                worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse, patience=PATIENCE
            )
            if not found.hosts:
                return
            request.name = found.hosts[0].name
        await self._wire.call(request, reply, patience=PATIENCE)

    def _of_backend(self, cordoned: bool, drain: bool) -> Call:
        request = admin_pb2.CordonBackendRequest(
            name=self._outside.instance, cordoned=cordoned, drain=drain, reason="faults"
        )
        return request, admin_pb2.BackendInfo

    def _of_queue(self, cordoned: bool, drain: bool) -> Call:
        request = queue_pb2.CordonQueueRequest(
            name="default", cordoned=cordoned, drain=drain, reason="faults"
        )
        return request, queue_pb2.Queue

    def _of_host(self, cordoned: bool, drain: bool) -> Call:
        request = worker_pb2.CordonHostRequest(cordoned=cordoned, drain=drain, reason="faults")
        return request, worker_pb2.Host
