"""Clusters and clouds that are not as somebody thought: refused at submit, or told with what to do.

One server has all of them as backends: real components, asked wrongly. Whatever cannot be known at
submit is tried by a job each, all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import pytest_asyncio
from aws_proxy import AwsProxy
from batch_yard import REGION, make_queue
from bed_kubernetes import access
from ecs_yard import clear, ecs
from google.protobuf import empty_pb2
from server_process import ColdLauncher, configured, running_server
from testbed_fixtures import AwsEmulator, DockerEngine, fresh_name
from testbed_kubernetes import Kubernetes
from waiting import eventually
from wire import Wire, shell

from hatoba.v1 import common_pb2, job_pb2
from hatoba_plugins.conformance.proxy import Refusal, aws_refusal
from tests.integration.bad_input.test_wire import assert_told, refused

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

PATIENCE = 240.0
EXPIRED = "The security token included in the request is expired"
WIDE = "/wide/" + "x" * 1_900 + "/"
NAMES = [f"s{number}" for number in range(64)]


class Wrong(NamedTuple):
    """What is asked of which backend, and what has to be said of it."""

    backend: str
    code: str
    words: tuple[str, ...]
    no_image: bool = False


WRONG = {
    "an ECS cluster that is not there": Wrong(
        "ecs-nowhere", "REFUSED_INVALID", ("ClusterNotFoundException",)
    ),
    "credentials of AWS that have expired": Wrong(
        "ecs-expired", "REFUSED_DENIED", ("expired", "Renew the credentials")
    ),
    "a namespace that is not there": Wrong("ml-nowhere", "BACKEND_FAILED", ("create it",)),
    "a namespace that is being deleted": Wrong("ml-dying", "BACKEND_FAILED", ("being deleted",)),
    "an image that is not there, on ECS": Wrong("ecs", "IMAGE_MISSING", ("no-such-image",), True),
    "an image that is not there, on Kubernetes": Wrong(
        "ml", "IMAGE_MISSING", ("no-such-image",), True
    ),
}
"""What its attempt ends with."""
WAITS = {
    "an endpoint that does not speak AWS": ("ecs-other", ("may not be AWS",)),
    "a queue of Batch that is not there": ("batch-nowhere", ("no-such-queue",)),
    "a queue of Batch in another region": (
        "batch-far",
        ("does not exist in this account and region",),
    ),
    "rights in a cluster that are missing": ("ml-rightless", ("cannot list", "rbac.yaml")),
    "credentials of a cluster that are over": ("ml-expired", ("credentials",)),
    "an endpoint that is no Kubernetes": ("ml-other", ("something else",)),
}
"""Backends that cannot be looked at: nothing is sent there, and `hatoba explain` says why."""


@dataclass(frozen=True)
class Platforms:
    """The server, and the jobs that were asked of it by what is wrong with them."""

    wire: Wire
    jobs: Mapping[str, str]
    image: str


# -- at submit -------------------------------------------------------------------------------------


def many_secrets(spec: job_pb2.JobSpec) -> None:
    spec.backend = "ecs"
    for name in NAMES:
        spec.secrets.add(name=name)


def unknown_gpu(spec: job_pb2.JobSpec) -> None:
    spec.backend = "ml"
    spec.resources.gpus = 1
    spec.backend_options.update({"k8s-gpu": {"gpu_product": "NVIDIA-Z9000"}})


def more_gpus_than_a_node(spec: job_pb2.JobSpec) -> None:
    spec.backend, spec.resources.gpus = "ml", 64


def large_environment(spec: job_pb2.JobSpec) -> None:
    spec.backend = "batch"
    spec.env.update({f"V{number}": "x" * 4_000 for number in range(10)})


def large_overrides(spec: job_pb2.JobSpec) -> None:
    spec.backend = "ecs"
    spec.env.update({"V": "x" * 8_200})


def no_gpu_cluster(spec: job_pb2.JobSpec) -> None:
    spec.backend, spec.resources.gpus = "ecs", 1


def no_such_backend(spec: job_pb2.JobSpec) -> None:
    spec.backend = "nowhere"


def unknown_secret(spec: job_pb2.JobSpec) -> None:
    spec.backend = "ml"
    spec.secrets.add(name=NAMES[0])


REFUSED = {
    "a backend that is not there": (no_such_backend, "spec.backend", ("nowhere",)),
    "a GPU type that no node has": (unknown_gpu, "spec.backend_options", ("NVIDIA-Z9000",)),
    "more GPUs than a node has": (more_gpus_than_a_node, "spec.resources.gpus", ("largest",)),
    "GPUs where there is no cluster for them": (no_gpu_cluster, "spec.resources.gpus", ()),
    "a definition over ECS's limit": (many_secrets, "spec.resources", ("65536",)),
    "overrides over ECS's limit": (large_overrides, "spec.command", ("8192",)),
    "an environment over Batch's limit": (large_environment, "spec.env", ("Batch takes",)),
    "a secret that is elsewhere": (unknown_secret, "spec.secrets", ("create a Secret", "`value`")),
}


@pytest.mark.parametrize("wrong", REFUSED)
async def test_what_can_be_known_is_refused_at_submit(wrong: str, platforms: Platforms) -> None:
    change, field, words = REFUSED[wrong]
    spec = asked(platforms.image)
    change(spec)
    request = job_pb2.SubmitJobRequest(spec=spec)
    error = await refused(lambda: platforms.wire.once(request, empty_pb2.Empty, timeout=60.0))
    assert_told(error, grpc.StatusCode.INVALID_ARGUMENT.name, field, words)


# -- at the attempt --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRONG)
async def test_what_shows_later_is_a_cause_that_says_what_to_do(
    wrong: str, platforms: Platforms
) -> None:
    name, (_, code, words, _) = platforms.jobs[wrong], WRONG[wrong]
    cause = await eventually(lambda: first_cause(platforms.wire, name), PATIENCE)
    assert common_pb2.CauseCode.Name(cause.code) == f"CAUSE_CODE_{code}", cause
    assert [word for word in words if word not in cause.message] == [], cause.message


@pytest.mark.parametrize("wrong", WAITS)
async def test_what_waits_for_a_backend_that_is_not_well_says_so(
    wrong: str, platforms: Platforms
) -> None:
    name, (_, words) = platforms.jobs[wrong], WAITS[wrong]

    async def told() -> str:
        request = job_pb2.ExplainJobRequest(name=name)
        found = await platforms.wire.call(request, job_pb2.Explanation)
        return "\n".join(one for one in found.also if "is not well" in one)

    said = await eventually(told, PATIENCE)
    assert [word for word in words if word not in said] == [], said


async def first_cause(wire: Wire, name: str) -> common_pb2.Cause | None:
    """Why the job's first attempt ended; None: it has not."""
    request = job_pb2.ListAttemptsRequest(job=name)
    found = (await wire.call(request, job_pb2.ListAttemptsResponse)).attempts
    causes = [one.cause for one in found if one.cause.code]
    return causes[0] if causes else None


def asked(image: str) -> job_pb2.JobSpec:
    """A job that would run in a good place."""
    spec = shell("true", "asked")
    spec.environment.image = image
    return spec


# -- the platforms ---------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def platforms(
    docker_engine: DockerEngine,
    kubernetes: Kubernetes,
    moto: AwsEmulator,
    ministack: AwsEmulator,
    registry: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Platforms]:
    """A server that has them all, and every job that goes wrong later."""
    root = tmp_path_factory.mktemp("platforms")
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        late = await enter(refusing(ministack, aws_refusal(400, "ExpiredTokenException", EXPIRED)))
        unknown = aws_refusal(400, "ClusterNotFoundException", "Cluster not found.")
        nowhere = await enter(refusing(ministack, unknown))
        cluster = fresh_name("wrong")
        await asyncio.to_thread(ecs(ministack).create_cluster, clusterName=cluster)
        stack.push_async_callback(asyncio.to_thread, clear, ministack, cluster)
        tasks = {"endpoint": ministack.endpoint, "cluster": cluster}
        backends = {
            "ecs": of_ecs(**tasks, secrets_prefix=WIDE, secrets=NAMES),
            "ecs-nowhere": of_ecs(**tasks | {"endpoint": nowhere}),
            "ecs-expired": of_ecs(**tasks | {"endpoint": late}),
            "ecs-other": of_ecs(**tasks | {"endpoint": f"http://{registry}"}),
            **await asyncio.to_thread(of_batch, moto),
            **await asyncio.to_thread(of_kubernetes, stack, kubernetes, registry, root),
        }
        data = await asyncio.to_thread(configured, root / "data", told(backends))
        launcher = ColdLauncher()
        launcher.environ |= moto.credentials
        stack.push_async_callback(asyncio.to_thread, launcher.close)
        server = await enter(running_server(data, worker=False, launcher=launcher, patience=120.0))
        wire = await enter(Wire(server))
        missing = f"{registry}/no-such-image:1"
        places = {wrong: (one.backend, one.no_image) for wrong, one in WRONG.items()}
        places |= {wrong: (backend, False) for wrong, (backend, _) in WAITS.items()}
        jobs = {}
        for wrong, (backend, no_image) in places.items():
            spec = asked(missing if no_image else docker_engine.busybox)
            spec.backend = backend
            request = job_pb2.SubmitJobRequest(spec=spec)
            jobs[wrong] = (await wire.once(request, job_pb2.Job, timeout=60.0)).name
        yield Platforms(wire, jobs, docker_engine.busybox)


@contextlib.asynccontextmanager
async def refusing(emulator: AwsEmulator, refusal: Refusal) -> AsyncIterator[str]:
    """An endpoint at which tasks are not run."""
    async with AwsProxy.before(emulator.endpoint) as proxy:
        for _ in range(100):
            proxy.refuse("runtask", refusal)
        yield proxy.endpoint


def of_ecs(**options: Any) -> dict[str, Any]:
    usual = {"region": REGION, "runner": "none", "subnets": ["subnet-1"], "poll_every": 0.5}
    return {"type": "ecs", **usual, **options}


def of_batch(moto: AwsEmulator) -> dict[str, dict[str, Any]]:
    """One queue, and two that are not where they are said to be. Blocks."""
    queue = make_queue(moto)

    def of(region: str, name: str) -> dict[str, Any]:
        return {
            "type": "batch-spot",
            "region": region,
            "endpoint": moto.endpoint,
            "runner": "none",
            "sweep_every": 0.5,
            "queues": {"spot": {"queue": name}},
        }

    return {
        "batch": of(REGION, queue),
        "batch-nowhere": of(REGION, "no-such-queue"),
        "batch-far": of("eu-central-1", queue),
    }


def of_kubernetes(
    stack: contextlib.AsyncExitStack, cluster: Kubernetes, registry: str, root: Path
) -> dict[str, dict[str, Any]]:
    """A namespace with our rights, and others. Blocks."""
    good = stack.enter_context(cluster.namespace())
    dying = stack.enter_context(dying_namespace(cluster))

    def of(namespace: str, kubeconfig: str) -> dict[str, Any]:
        return {"type": "k8s-gpu", "namespace": namespace, "kubeconfig": kubeconfig}

    def by(name: str, token: str, server: str = cluster.server) -> str:
        path = root / name
        path.write_text(access(server, cluster.authority, token, good.name))
        return str(path)

    return {
        "ml": of(good.name, good.kubeconfig),
        "ml-rightless": of(good.name, by("rightless", cluster.token(good.name, "default"))),
        "ml-expired": of(good.name, by("expired", "eyJhbGciOiJSUzI1NiJ9.e30.c2ln")),
        "ml-other": of(good.name, by("other", "any", f"http://{registry}")),
        "ml-nowhere": of("no-such-namespace", cluster.kubeconfig),
        "ml-dying": of(dying, cluster.kubeconfig),
    }


@contextlib.contextmanager
def dying_namespace(cluster: Kubernetes) -> Any:
    """A namespace that is being deleted, for as long as this lasts."""
    with cluster.namespace() as made:
        held = {"name": "held", "namespace": made.name, "finalizers": ["hatoba.test/held"]}
        cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held})
        cluster.kubectl("delete", "namespace", made.name, "--wait=false")
        try:
            yield made.name
        finally:
            let_go = '{"metadata": {"finalizers": null}}'
            cluster.kubectl("patch", "-n", made.name, "configmap", "held", "-p", let_go)


def told(backends: Mapping[str, Mapping[str, Any]]) -> str:
    """As `hatoba.toml` has them."""
    tables = ['[server]\nlisten = "127.0.0.1:0"\n']
    for name, options in backends.items():
        rest = {key: value for key, value in options.items() if key not in ("type", "queues")}
        inline = ", ".join(f"{key} = {json.dumps(value)}" for key, value in rest.items())
        if "queues" in options:
            inline += (
                f', queues = {{ spot = {{ queue = "{options["queues"]["spot"]["queue"]}" }} }}'
            )
        tables.append(f'[backends.{name}]\ntype = "{options["type"]}"\noptions = {{ {inline} }}\n')
    return "\n".join(tables)
