"""Finds what a session is to be attached to."""

from __future__ import annotations

from hatoba.v1 import worker_pb2
from hatoba_worker.attaching import ports, processes
from hatoba_worker.attaching.doors import AttachFailed, Door
from hatoba_worker.attempts import Attempt, Book
from hatoba_worker.executors.containers import attached, states
from hatoba_worker.executors.containers.engine import EngineAway, EngineRefused
from hatoba_worker.executors.containers.executor import ContainerExecutor
from hatoba_worker.executors.process import ProcessExecutor

Order = worker_pb2.AttachAttempt


class Opener:
    """Opens doors to the attempts of one host."""

    def __init__(self, book: Book, keeper: ProcessExecutor, containers: ContainerExecutor) -> None:
        self._book = book
        self._processes = keeper
        self._containers = containers

    async def open(self, order: Order) -> Door:
        """The door that an order means. Raises AttachFailed."""
        attempt = self._book.live.get(order.attempt)
        if attempt is None or attempt.fence != order.fence or not attempt.running:
            raise AttachFailed("it does not run on its host (any more)")
        if attempt.contained:
            return await self._of_container(attempt, order)
        if order.HasField("exec"):
            return await processes.begin(self._processes, attempt.home, order)
        return await ports.connect_to(await self._pids(attempt.name), order.port)

    async def _pids(self, name: str) -> tuple[int, ...]:
        samples = await self._processes.sample()
        return next((one.pids for one in samples if one.attempt == name), ())

    async def _of_container(self, attempt: Attempt, order: Order) -> Door:
        if self._containers.facts is None:
            raise AttachFailed("the container engine of its host is away; try again soon")
        engine, _ = await self._containers.engine()
        if order.HasField("exec"):
            return await attached.begin(engine, self._containers.socket, attempt.name, order.exec)
        try:
            seen = await engine.inspect(attempt.name)
        except (EngineAway, EngineRefused) as error:
            raise AttachFailed(f"its container cannot be looked at: {error}") from error
        return await ports.connect(states.own_address(seen), order.port)
