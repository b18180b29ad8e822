"""A secret is found in its home and where it is used, and nowhere else.

One server with a host, Kubernetes, ECS and Batch; a canary on each way in. Jobs prove that they
got theirs, and fail; whatever was written, told or shown is searched meanwhile and afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from secret_site import Parts, SecretSite, client_of, secret_site
from testbed_fixtures import AwsEmulator, DockerEngine, Testbed
from testbed_kubernetes import Kubernetes
from waiting import eventually

from hatoba.aio import AsyncJob
from hatoba.v1 import admin_pb2, common_pb2, job_pb2, worker_pb2

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]

PATIENCE = 400.0
MARK = "seen-by-everybody"
"""Value of a plain variable: where it is not found, nobody looked."""
PROVES = """
printf '%s ' "$PLAIN"
printf '%s' "$CANARY" | sha256sum
sleep 20
exit 3
"""


class Way(NamedTuple):
    """A secret that a job names: by which way it came in, and where it is asked for."""

    way: str
    secret: str
    backend: str
    image: str = ""


@pytest.fixture
async def site(
    docker_engine: DockerEngine,
    kubernetes: Kubernetes,
    moto: AwsEmulator,
    ministack: AwsEmulator,
    registry: str,
    runtime_image: str,
    testbed: Testbed,
    tmp_path: Path,
) -> AsyncIterator[SecretSite]:
    with contextlib.ExitStack() as stack:
        namespace = await asyncio.to_thread(stack.enter_context, kubernetes.namespace())
        parts = Parts(
            docker_engine,
            kubernetes,
            namespace,
            moto,
            ministack,
            registry,
            runtime_image,
            tmp_path,
            testbed.directory / "logs",
        )
        async with secret_site(parts) as made:
            yield made
        await asyncio.to_thread(stack.close)


async def test_no_secret_is_found_anywhere_else(site: SecretSite) -> None:
    canaries, ways = site.canaries, ways_of(site)
    canaries.mark = MARK.encode()
    jobs = {one.way: await submitted(site, one) for one in ways}
    dumps = ["sh", "-c", "env > $HATOBA_OUTPUTS/env"]
    nosy = await site.client.submit(dumps, name="nosy", python="3.11", code=None)
    denied = await site.client.submit(["true"], name="denied", image=site.refused, code=None)
    async with asyncio.TaskGroup() as tasks:
        watcher = tasks.create_task(watch(site), name="watch")
        for job in (*jobs.values(), nosy, denied):
            await job.wait(PATIENCE)
        watcher.cancel()
    proofs = {way: f"{MARK} {digest(canaries.planted[way])}" for way in jobs if way not in UNHEARD}
    # What a platform keeps is brought before the release, which may be after the end.
    told = {way: await eventually(partial(log_of, jobs[way]), PATIENCE) for way in proofs}
    shown = {way: told[way].partition("  -")[0] for way in proofs}
    assert shown == proofs, {way: await attempts(job) for way, job in jobs.items()}
    assert await cause(jobs["Parameter Store, Batch"]) == common_pb2.CAUSE_CODE_SECRET_MISSING
    assert await cause(denied) == common_pb2.CAUSE_CODE_IMAGE_DENIED
    assert nosy.state == "SUCCEEDED"
    await look_at_what_is_told(site, [*jobs.values(), nosy, denied])
    await asyncio.to_thread(look_at_platforms, site)
    await asyncio.to_thread(look_at_disks, site)
    assert canaries.found == set()
    assert len(canaries.planted) >= 20
    assert canaries.seen >= MARKED


UNHEARD = {"Parameter Store, Batch"}
"""moto does not resolve secrets of containers: the runner misses it."""
MARKED = {"data directory", "answer", "command line", "container", "Kubernetes"}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def ways_of(site: SecretSite) -> list[Way]:
    """What jobs name."""
    return [
        Way("file, process of a host", "of-file", "yard"),
        Way("environment of a worker", "of_worker", "yard"),
        Way("file, container of a host", "of-container", "yard", site.locked),
        Way("Kubernetes Secret", "in-cluster", "ml", site.image),
        Way("Parameter Store, ECS", "ecs", "ecs", site.image),
        Way("Secrets Manager, ECS", site.manager_secret, "manager", site.image),
        Way("Parameter Store, Batch", "batch", "batch", site.image),
    ]


async def submitted(site: SecretSite, way: Way) -> AsyncJob:
    given: dict[str, Any] = {"image": way.image} if way.image else {"python": "3.11"}
    return await site.client.submit(
        ["sh", "-c", PROVES],
        name="proves",
        backend=way.backend,
        secrets=[f"{way.secret}=CANARY"],
        env={"PLAIN": MARK},
        code=None,
        **given,
    )


async def log_of(job: AsyncJob) -> str:
    return b"".join([piece.data async for piece in job.logs(stream="stdout")]).decode()


async def attempts(job: AsyncJob) -> list[job_pb2.Attempt]:
    request = job_pb2.ListAttemptsRequest(job=job.record.name)
    return list((await job.client.call(request, job_pb2.ListAttemptsResponse)).attempts)


async def cause(job: AsyncJob) -> int:
    return (await attempts(job))[-1].cause.code


# -- while it runs ---------------------------------------------------------------------------------


async def watch(site: SecretSite) -> None:
    """Search what is only there while jobs run, again and again."""
    while True:
        await asyncio.to_thread(look_at_what_passes, site)
        await asyncio.sleep(3.0)


def look_at_what_passes(site: SecretSite) -> None:
    """Containers, command lines, files of attempts, pods."""
    canaries = site.canaries
    for one in containers(site.engine):
        content = json.dumps(one).encode()
        # What runs with a secret has it in its environment, which whoever may use the engine reads.
        mine = {way for way in canaries.planted if f"CANARY={canaries.planted[way]}" in str(one)}
        canaries.look("container", one["Name"], content, mine)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes()
            # The line that people paste; the token in it was used up by then.
            mine = {"join token"} if b"\0--join\0" in words else set()
            canaries.look("process", str(path), words, mine)
    canaries.look_into("host", site.host.data)
    look_at_kubernetes(site)


def containers(engine: DockerEngine) -> list[dict[str, Any]]:
    """Everything that the engine has, as it is inspected."""
    names = engine.docker("ps", "-aq").split()
    try:
        told = engine.docker("inspect", *names) if names else "[]"
    except subprocess.CalledProcessError as error:
        told = error.stdout  # of those that have not ended meanwhile
    return list(json.loads(told))


def look_at_kubernetes(site: SecretSite) -> None:
    """All of the namespace, but the Secrets themselves."""
    kinds = "pods,jobs,events,services,configmaps,replicasets"
    told = site.cluster.kubectl("get", "-n", site.namespace.name, kinds, "-o", "json")
    site.canaries.look("Kubernetes", site.namespace.name, told.encode())


# -- afterwards ------------------------------------------------------------------------------------


async def look_at_what_is_told(site: SecretSite, jobs: list[AsyncJob]) -> None:
    """What the server answers, and what the command line shows."""
    for job in jobs:
        name = job.record.name
        heard(site, name, await job.client.call(job_pb2.GetJobRequest(name=name), job_pb2.Job))
        for attempt in await attempts(job):
            heard(site, name, attempt)
        for stream in ("stdout", "stderr", "build"):
            pieces = [piece.data async for piece in job.logs(stream=stream)]
            site.canaries.look("log", f"{name} {stream}", b"".join(pieces))
    listed = await site.client.call(admin_pb2.ListBackendsRequest(), admin_pb2.ListBackendsResponse)
    heard(site, "backends", listed)
    assert "lost" in {one.name for one in listed.backends}
    assert "is no JSON object with AccessKeyId" in str(listed.failures)
    hosts = await site.client.call(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
    heard(site, "hosts", hosts)
    (first, *_) = jobs
    for words in (
        ("jobs", "get", first.record.name, "-o", "yaml"),
        ("jobs", "trace", first.record.name, "-o", "json"),
        ("backends", "list", "-o", "yaml"),
        ("tokens", "list", "-o", "yaml"),
        ("explain", jobs[-1].record.name),
    ):
        done = await site.words(*words)
        site.canaries.look("command line", " ".join(words), (done.out + done.err).encode())


def heard(site: SecretSite, about: str, answer: Message) -> None:
    """Search an answer, in both of its writings."""
    content = answer.SerializeToString() + json_format.MessageToJson(answer).encode()
    site.canaries.look("answer", about, content)


def look_at_platforms(site: SecretSite) -> None:
    """What was left at the emulators, and in their logs."""
    ecs, batch = client_of(site.ministack, "ecs"), client_of(site.moto, "batch")
    for page in ecs.get_paginator("list_task_definitions").paginate():
        for arn in page["taskDefinitionArns"]:
            told = ecs.describe_task_definition(taskDefinition=arn)
            site.canaries.look("ECS", arn, json.dumps(told, default=str).encode())
    for status in ("RUNNING", "STOPPED"):
        listed = ecs.list_tasks(cluster=site.place, desiredStatus=status)["taskArns"]
        if listed:
            told = ecs.describe_tasks(cluster=site.place, tasks=listed)
            site.canaries.look("ECS", site.place, json.dumps(told, default=str).encode())
    definitions = batch.describe_job_definitions()["jobDefinitions"]
    site.canaries.look("Batch", "definitions", json.dumps(definitions, default=str).encode())
    look_at_kubernetes(site)


def look_at_disks(site: SecretSite) -> None:
    """Data directories, what was written beside them, and the components' own logs."""
    site.canaries.look_into("data directory", site.server.data)
    site.canaries.look_into("host", site.host.data)
    site.canaries.look("host", str(site.host.log), site.host.log.read_bytes())
    site.canaries.look_into("testbed's logs", site.logs)
