"""`hosts` whose jobs run in containers: the outside is a Docker engine beside the worker."""

from __future__ import annotations

from typing import Any

from fault_outside import DESK
from fault_real import Real
from testbed_fixtures import DockerEngine
from waiting import eventually
from wire import Wire

from hatoba.v1 import worker_pb2
from hatoba_worker.executors.containers.choosing import LABEL, key_of

HOST = "faults"


class Containers(Real):
    """Every job in a container of busybox; the runner is the host's."""

    instance = "hosts"
    hosts = True
    pace = 2.0
    at_once = 24
    _engine: DockerEngine

    async def prepare(self, engine: DockerEngine) -> None:
        """See Outside."""
        self._engine = engine

    def worker(self) -> dict[str, Any]:
        """See Outside."""
        return {"name": HOST, "named": DESK, "engine": self._engine.socket}

    async def begin(self, wire: Wire) -> None:
        """See Outside."""

        async def runs_containers() -> bool:
            request = worker_pb2.ListHostsRequest()
            found = await wire.call(request, worker_pb2.ListHostsResponse)
            return any(LABEL in host.labels for host in found.hosts)

        await eventually(runs_containers)

    def left(self) -> list[str]:
        """See Outside."""
        label = f"label=hatoba.dev/host={key_of(HOST, self.data)}"
        return self._engine.docker("ps", "-aq", "--no-trunc", "--filter", label).split()

    def clear(self) -> None:
        """See Outside."""
        if left := self.left():
            self._engine.docker("rm", "-f", "-v", *left)
