"""`ecs`: the outside is ministack's ECS, which runs tasks in real containers."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from typing import Any

from ecs_yard import REGION, clear, ecs
from fault_real import Real, instance
from testbed_fixtures import AwsEmulator, DockerEngine, fresh_name

from hatoba.v1 import job_pb2

BARE, FENCED = "ecs", "fenced"


class Ecs(Real):
    """Two clusters: one for jobs without our runner, one for those whose image has it."""

    instance = BARE
    components = ("docker", "ministack")
    modules = ("aioboto3", "hatoba_plugins.backends.ecs.backend")
    _engine: DockerEngine
    _emulator: AwsEmulator

    async def prepare(self, engine: DockerEngine) -> None:
        """See Outside."""
        self._engine = engine
        self._emulator = await asyncio.to_thread(self.bed.aws, "ministack")
        self.environ = self._emulator.credentials
        self.runtime_image = (await asyncio.to_thread(self.bed.facts, "images"))["runtime"]
        self._clusters = {name: fresh_name("faults") for name in (BARE, FENCED)}
        self._ecs = await asyncio.to_thread(ecs, self._emulator)
        for cluster in self._clusters.values():
            await asyncio.to_thread(self._ecs.create_cluster, clusterName=cluster)

    def configuration(self) -> str:
        """See Outside."""
        told = f'region = "{REGION}"\nendpoint = "{self._emulator.endpoint}"\n'
        told += 'subnets = ["subnet-1"]\npoll_every = 0.3\nfind_settles_after = 1.0\n'
        made = f'{self.listening()}[defaults]\ntrain = "{BARE}"\n'
        for name, runner in ((BARE, "none"), (FENCED, "image")):
            own = f'runner = "{runner}"\ncluster = "{self._clusters[name]}"'
            made += instance(name, "ecs", f"{told}{own}")
        return made

    def with_runner(self, spec: job_pb2.JobSpec) -> None:
        """See Outside."""
        super().with_runner(spec)
        spec.backend = FENCED

    def left(self) -> list[str]:
        """See Outside."""
        return [task["startedBy"] for task in self._tasks("RUNNING")]

    def _tasks(self, wanted: str) -> list[dict[str, Any]]:
        found = []
        pages = self._ecs.get_paginator("list_tasks")
        for cluster in self._clusters.values():
            for page in pages.paginate(cluster=cluster, desiredStatus=wanted):
                if arns := page["taskArns"]:
                    told = self._ecs.describe_tasks(cluster=cluster, tasks=arns)
                    found += told["tasks"]
        return found

    def clear(self) -> None:
        """See Outside."""
        for cluster in self._clusters.values():
            clear(self._emulator, cluster)
        self._remove_containers()

    def _remove_containers(self) -> None:
        """ministack leaves those that ended where they are."""
        ids = [task["taskArn"].rpartition("/")[2] for task in self._tasks("STOPPED")]
        ours = tuple(f"-{one[:8]}-" for one in ids)
        here = self._engine.docker("ps", "-a", "--format", "{{.Names}}").split()
        gone = [name for name in here if any(one in name for one in ours)]
        # Others may be removing them too.
        with contextlib.suppress(subprocess.CalledProcessError):
            if gone:
                self._engine.docker("rm", "-f", "-v", *gone)
