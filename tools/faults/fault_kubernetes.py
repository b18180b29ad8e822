"""`k8s-gpu`: the outside is a namespace of a real cluster."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from fault_real import Real, instance
from testbed_fixtures import DockerEngine
from testbed_kubernetes import Kubernetes, Namespace

from hatoba.v1 import job_pb2

KIND = "k8s-gpu"


class Pods(Real):
    """Jobs of pods with exactly the rights of deploy/kubernetes."""

    instance = KIND
    components = ("docker", "kubernetes")
    modules = ("kubernetes_asyncio", "hatoba_plugins.backends.k8s_gpu.backend")
    pace = 4.0
    jobs_a_kill = 2
    _cluster: Kubernetes
    _namespace: Namespace

    async def prepare(self, engine: DockerEngine) -> None:
        """See Outside."""
        del engine
        self._cluster = await asyncio.to_thread(self.bed.kubernetes, self.work)
        self.bare_image = self._cluster.busybox
        self.runtime_image = (await asyncio.to_thread(self.bed.facts, "images"))["runtime"]
        own = ExitStack()
        self._namespace = await asyncio.to_thread(own.enter_context, self._cluster.namespace())
        self.open.push_async_callback(asyncio.to_thread, own.close)

    def configuration(self) -> str:
        """See Outside."""
        options = {
            "kubeconfig": self._namespace.kubeconfig,
            "namespace": self._namespace.name,
            "runner_image": self.runtime_image,
        }
        told = "".join(f'{name} = "{value}"\n' for name, value in options.items())
        default = f'{self.listening()}[defaults]\ntrain = "{KIND}"\n'
        return default + instance(KIND, KIND, f"{told}settles_after = 1.0")

    def without_runner(self, spec: job_pb2.JobSpec) -> None:
        """See Outside."""
        super().without_runner(spec)
        spec.backend_options.fields[KIND].struct_value.update({"runner": "none"})

    def left(self) -> list[str]:
        """See Outside."""
        where = ("-n", self._namespace.name, "-o", "name")
        told = self._cluster.kubectl("get", "jobs,pods,secrets,services", *where)
        return told.split()
