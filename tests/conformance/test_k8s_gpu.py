"""The conformance kit on `k8s-gpu`: a real API server, its controllers and a real kubelet.

Every test has a namespace of its own, with exactly the rights of deploy/kubernetes/rbac.yaml.
Commands say to a counter outside of the cluster that they have started.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import pytest
from kube_proxy import EXPIRED, kube_proxy
from kube_replicas import kit_image, kit_template
from kube_yard import StartCounter, authority_of, kit_command, through
from testbed_fixtures import DockerEngine
from testbed_kubernetes import Kubernetes, Namespace

from hatoba.v1 import job_pb2, worker_pb2
from hatoba_plugins.backends.k8s_gpu import K8sType, client
from hatoba_plugins.conformance import (
    BackendHarness,
    Command,
    DeploymentConformance,
    DeploymentHarness,
    FaultInjector,
    JobConformance,
    JobHarness,
    Life,
    ReplicaHarness,
)
from hatoba_plugins.conformance.attempts import opened
from hatoba_plugins.conformance.harness import OpenHarness
from hatoba_plugins.conformance.proxy import FaultProxy
from hatoba_plugins.values import NotYet, Phase, Ref

GIVEN_UP = 5.0
"""Seconds after which a call that nobody answers is given up."""


class KubeFaults(FaultInjector):
    """What the proxy can do, and what an administrator can."""

    def __init__(self, harness: Yard) -> None:
        self._harness = harness

    @property
    def proxy(self) -> FaultProxy:
        return self._harness.proxy

    async def reply_lost_after_effect(self) -> None:
        self.proxy.lose_reply("create jobs")

    async def delay_reply(self, seconds: float) -> None:
        self.proxy.delay_reply("create jobs", seconds)

    async def double_reply(self) -> None:
        self.proxy.double("create jobs")

    async def land_late(self, seconds: float) -> None:
        self.proxy.land_late("create jobs", seconds)

    async def throttle(self) -> None:
        self.proxy.throttle("create jobs", after=1)

    async def overload(self) -> None:
        self.proxy.overload("create jobs", after=1)

    async def disguise_denial(self) -> None:
        self.proxy.disguise_denial("get jobs")
        self.proxy.disguise_denial("list jobs")

    async def expire_pages(self) -> None:
        self.proxy.page_size = 1
        self.proxy.expire_page("list jobs")

    async def until_called(self) -> None:
        await self.proxy.met.wait()

    async def hide_for(self, seconds: float) -> None:
        pytest.skip("what the API server has created can be read")

    async def double_run(self) -> None:
        pytest.skip("nothing is claimed without a runner; tests/integration/k8s_gpu does")

    async def end_watches(self) -> None:
        self.proxy.end_streams()

    async def conflict(self, name: str) -> None:
        await asyncio.to_thread(self._harness.plant_foreign, name)

    async def delete_behind(self, name: str) -> None:
        await asyncio.to_thread(self._harness.kubectl, "delete", "job", name)

    async def unreachable_for(self, seconds: float) -> None:
        self.proxy.cut = True
        self.proxy.break_streams()
        loop = asyncio.get_running_loop()
        loop.call_later(seconds, self._mend)

    def _mend(self) -> None:
        self.proxy.cut = False

    async def gap(self) -> None:
        for kind in ("jobs", "pods"):
            self.proxy.refuse(f"watch {kind}", EXPIRED)
        self.proxy.end_streams()


class Yard(OpenHarness):
    """Through the proxy to the API server, with a counter of starts where pods reach it."""

    def __init__(self, cluster: Kubernetes, namespace: Namespace, **options: object) -> None:
        super().__init__(K8sType(), {"namespace": namespace.name, **options})
        self.cluster, self.namespace = cluster, namespace
        self.proxy: FaultProxy
        self.counter: StartCounter
        self._stack = AsyncExitStack()
        self._reopening = False

    async def __aenter__(self) -> Self:
        if not self._reopening:
            access = self.namespace.kubeconfig
            authority = await asyncio.to_thread(authority_of, access)
            proxy = kube_proxy(self.cluster.server, authority)
            self.proxy = await self._stack.enter_async_context(proxy)
            counter = StartCounter.running(self.cluster.gateway)
            self.counter = await self._stack.enter_async_context(counter)
            self.options["kubeconfig"] = await asyncio.to_thread(
                through, self.proxy.endpoint, access
            )
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if not self._reopening:
            await self._stack.aclose()

    async def reopen(self) -> None:
        self._reopening = True
        try:
            await super().reopen()
        finally:
            self._reopening = False

    def kubectl(self, *arguments: str) -> str:
        """In the namespace, as the administrator."""
        return self.cluster.kubectl("-n", self.namespace.name, *arguments)

    def plant_foreign(self, name: str) -> None:
        """Somebody else's Job of this name."""
        container = {"name": "main", "image": self.cluster.busybox, "command": ["true"]}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        foreign: dict[str, Any] = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": self.namespace.name},
            "spec": {"suspend": True, "template": template},
        }
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(foreign))


class KubeHarness(Yard, BackendHarness):
    """Jobs whose commands say that they started."""

    def __init__(self, cluster: Kubernetes, namespace: Namespace) -> None:
        super().__init__(cluster, namespace, settles_after=1.0, secrets=["token"])
        self.faults = KubeFaults(self)

    def command(self, kind: Command, name: str) -> job_pb2.JobSpec:
        return kit_command(kind, name, self.cluster.busybox, self.counter)

    async def starts(self, name: str) -> int | None:
        return self.counter.starts[name]

    async def until_started(self, ref: Ref) -> None:
        await self.wait(ref, Phase.RUNNING)
        await self.counter.until_started(ref.name)


@pytest.mark.timeout(400)
class TestKubernetes(JobConformance):
    """Without a runner: what the backend itself says of Jobs."""

    @pytest.fixture
    def harness(self, kubernetes: Kubernetes) -> Iterator[JobHarness]:
        with kubernetes.namespace() as namespace:
            yield KubeHarness(kubernetes, namespace)

    async def test_what_has_ended_stays_while_others_are_launched(
        self, harness: KubeHarness
    ) -> None:
        async with opened(harness) as kit, asyncio.TaskGroup() as group:
            ref = await kit.ended()
            harness.proxy.hang("create jobs")
            launching = group.create_task(kit.launched(), name="launching")
            await harness.proxy.met.wait()
            asked = harness.proxy.counts.total()
            (outcome,) = await kit.jobs.release([ref])
            assert isinstance(outcome, NotYet)
            assert harness.proxy.counts.total() == asked
            launching.cancel()
            await asyncio.wait([launching])
            await kit.release(ref)


class ReplicaFaults(KubeFaults):
    """The same, of what makes replicas."""

    async def reply_lost_after_effect(self) -> None:
        self.proxy.lose_reply("create replicasets")

    async def delay_reply(self, seconds: float) -> None:
        self.proxy.delay_reply("create replicasets", min(seconds, 5.0))

    async def double_reply(self) -> None:
        self.proxy.double("create replicasets")

    async def delete_behind(self, name: str) -> None:
        await asyncio.to_thread(self._harness.kubectl, "delete", "replicaset", name)

    async def throttle(self) -> None:
        self.proxy.throttle("create replicasets", after=1)

    async def land_late(self, seconds: float) -> None:
        self.proxy.land_late("create replicasets", GIVEN_UP + seconds)


class KubeReplicas(Yard, ReplicaHarness):
    """Replicas of an image whose entrypoint is a script."""

    def __init__(self, cluster: Kubernetes, namespace: Namespace, image: str) -> None:
        super().__init__(cluster, namespace)
        self.faults = ReplicaFaults(self)
        self._image = image

    def template(self, life: Life) -> worker_pb2.ReplicaSpec:
        return kit_template(life, self._image)


@pytest.fixture(scope="session")
def replica_image(
    docker_engine: DockerEngine, registry: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return kit_image(docker_engine, registry, tmp_path_factory.mktemp("replica"))


@pytest.mark.timeout(400)
class TestKubernetesDeployments(DeploymentConformance):
    """A ReplicaSet of one for each replica."""

    @pytest.fixture
    def harness(
        self, kubernetes: Kubernetes, replica_image: str, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[DeploymentHarness]:
        # What lands late is given up first.
        monkeypatch.setattr(client, "CALL_TIMEOUT", GIVEN_UP)
        with kubernetes.namespace() as namespace:
            yield KubeReplicas(kubernetes, namespace, replica_image)
