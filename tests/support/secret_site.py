"""One server with a host, Kubernetes, ECS and Batch, and a secret planted on each way into it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import grpc
import yaml
from batch_yard import REGION, make_queue
from canaries import Canaries
from command_line import CommandLine
from ecs_yard import clear, ecs
from joining import Machine, machine
from locked_registry import locked_registry
from server_process import ColdLauncher, HatobaServer, configured, running_server
from testbed_fixtures import AwsEmulator, DockerEngine, fresh_name
from testbed_kubernetes import Kubernetes, Namespace
from waiting import eventually

from hatoba.aio import AsyncClient
from hatoba.v1 import worker_pb2

# A channel that is the last one ends grpc's own thread as it goes, and waits for it on the loop.
grpc.aio.init_grpc_aio()

CONFIG = """
[server]
listen = "{gateway}:0"

[defaults]
train = "yard"

[backends.yard]
type = "hosts"

[backends.ml]
type = "k8s-gpu"
options = {{ {ml} }}

[backends.lost]
type = "k8s-gpu"
options = {{ {lost} }}

[backends.batch]
type = "batch-spot"
options = {{ {batch}, queues = {{ spot = {{ queue = "{queue}" }} }} }}

[backends.ecs]
type = "ecs"
options = {{ {ecs} }}

[backends.manager]
type = "ecs"
options = {{ {manager} }}

[backends.torn]
type = "ecs"
options = {{ {torn} }}
"""


@dataclass
class SecretSite:
    """Everything, and who may look at it."""

    canaries: Canaries
    server: HatobaServer
    client: AsyncClient
    words: CommandLine
    host: Machine
    engine: DockerEngine
    cluster: Kubernetes
    namespace: Namespace
    moto: AwsEmulator
    ministack: AwsEmulator
    place: str
    """Name of the ECS cluster."""
    image: str
    locked: str
    """An image behind a registry that knows the host's login."""
    refused: str
    """An image behind a registry that does not know the login that the host shows there."""
    manager_secret: str
    logs: Path
    """What the components wrote."""


@dataclass
class Parts:
    """The real components, and a directory."""

    engine: DockerEngine
    cluster: Kubernetes
    namespace: Namespace
    moto: AwsEmulator
    ministack: AwsEmulator
    registry: str
    image: str
    root: Path
    logs: Path
    """What the components wrote."""


def client_of(emulator: AwsEmulator, service: str) -> Any:
    """A plain client, for what a test does behind the backend's back."""
    return boto3.client(
        service,
        endpoint_url=emulator.endpoint,
        region_name=REGION,
        aws_access_key_id=emulator.credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=emulator.credentials["AWS_SECRET_ACCESS_KEY"],
    )


@asynccontextmanager
async def secret_site(parts: Parts) -> AsyncIterator[SecretSite]:
    """Planted, open, and gone at the end."""
    canaries, data, host = Canaries(), parts.root / "data", parts.root / "host"
    cluster = fresh_name("secrets")
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        options, secret = await asyncio.to_thread(planted_elsewhere, parts, canaries, cluster)
        stack.push_async_callback(asyncio.to_thread, clear, parts.ministack, cluster)
        await asyncio.to_thread(configured, data, CONFIG.format(**options))
        launcher = ColdLauncher()
        launcher.environ |= planted_in_server(canaries, data, parts.moto)
        stack.push_async_callback(asyncio.to_thread, launcher.close)
        server = await enter(running_server(data, worker=False, launcher=launcher, patience=120.0))
        authority = str(data / "tls" / "ca.pem")
        client = await enter(
            AsyncClient(server.address, token_file=str(data / "admin.token"), ca_file=authority)
        )
        yard = await enter(machine(host))
        login = await asyncio.to_thread(planted_on_host, canaries, host)
        yard.environ |= {"HATOBA_SECRET_OF_WORKER": canaries.plant("environment of a worker")}
        docked = parts.image.partition("/")[2]
        open_one = await enter(locked_registry(parts.engine.gateway, parts.registry, login))
        shut_one = await enter(locked_registry(parts.engine.gateway, parts.registry, "nobody:x"))
        words = CommandLine(server, parts.root, 240.0)
        await joined(canaries, words, yard, parts.engine, (open_one, shut_one))
        await eventually(lambda: known(client), 120.0)
        await asyncio.to_thread(known_of_server, canaries, data)
        yield SecretSite(
            canaries,
            server,
            client,
            words,
            yard,
            parts.engine,
            parts.cluster,
            parts.namespace,
            parts.moto,
            parts.ministack,
            cluster,
            parts.image,
            f"{open_one}/{docked}",
            f"{shut_one}/{docked}",
            secret,
            parts.logs,
        )


def planted_elsewhere(parts: Parts, canaries: Canaries, cluster: str) -> tuple[dict[str, str], str]:
    """Put secrets into clusters and clouds; the options of the backends, and the name of the one
    in Secrets Manager. Blocks."""
    prefix = fresh_name("canary")
    planted_in_kubernetes(parts, canaries)
    lost = canaries.plant("token of a cluster out of reach", parts.root / "lost")
    (parts.root / "lost").write_text(json.dumps(kubeconfig_of(lost)))
    client_of(parts.ministack, "ssm").put_parameter(
        Name=f"/{prefix}/ecs", Value=canaries.plant("Parameter Store, ECS"), Type="String"
    )
    client_of(parts.moto, "ssm").put_parameter(
        Name=f"/{prefix}/batch", Value=canaries.plant("Parameter Store, Batch"), Type="SecureString"
    )
    arn = client_of(parts.ministack, "secretsmanager").create_secret(
        Name=f"{prefix}-one", SecretString=canaries.plant("Secrets Manager, ECS")
    )["ARN"]
    before, _, secret = arn.rpartition(f"{prefix}-")
    ecs(parts.ministack).create_cluster(clusterName=cluster)
    account = arn.split(":")[4]
    tasks: dict[str, Any] = {
        "region": REGION,
        "endpoint": parts.ministack.endpoint,
        "cluster": cluster,
    }
    tasks |= {"subnets": ["subnet-1"], "readiness": "probe", "poll_every": 0.5}
    pods: dict[str, Any] = {
        "namespace": parts.namespace.name,
        "image": parts.image,
        "runner_image": parts.image,
    }
    pods |= {"secrets": ["in-cluster"], "image_pull_secrets": ["pull"], "settles_after": 1.0}
    jobs: dict[str, Any] = {"region": REGION, "endpoint": parts.moto.endpoint, "sweep_every": 0.5}
    jobs |= {"settles_after": 2.0, "memory_mib": 512}
    return {
        "gateway": parts.engine.gateway,
        "queue": make_queue(parts.moto),
        "ml": toml(**pods, kubeconfig=parts.namespace.kubeconfig),
        "lost": toml(namespace="ml", kubeconfig=str(parts.root / "lost")),
        "batch": toml(**jobs, credentials="batch", secrets_prefix=f"/{prefix}/", secrets=["batch"]),
        "ecs": toml(
            **tasks,
            secrets_prefix=f"arn:aws:ssm:{REGION}:{account}:parameter/{prefix}/",
            secrets=["ecs"],
        ),
        "manager": toml(**tasks, secrets_prefix=f"{before}{prefix}-", secrets=[secret]),
        "torn": toml(**tasks, credentials="torn"),
    }, secret


def planted_in_kubernetes(parts: Parts, canaries: Canaries) -> None:
    """A Secret for jobs, one that opens a registry, and the token in our own kubeconfig."""
    login = base64.b64encode(f"us:{canaries.plant('Secret that opens a registry')}".encode())
    pull = {"auths": {parts.registry: {"auth": login.decode()}}}
    of = {"namespace": parts.namespace.name}
    parts.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {**of, "name": "in-cluster"},
            "stringData": {"value": canaries.plant("Kubernetes Secret")},
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/dockerconfigjson",
            "metadata": {**of, "name": "pull"},
            "stringData": {".dockerconfigjson": json.dumps(pull)},
        },
    )
    path = Path(parts.namespace.kubeconfig)
    (user,) = yaml.safe_load(path.read_text())["users"]
    canaries.know("token in a kubeconfig", user["user"]["token"], path)


def planted_in_server(canaries: Canaries, data: Path, emulator: AwsEmulator) -> dict[str, str]:
    """Credentials of backends: files of the server, and its environment. Blocks."""
    home = data / "credentials"
    home.mkdir(mode=0o700)
    keys = {
        "AccessKeyId": "hatoba-test",
        "SecretAccessKey": canaries.plant("key in the server's credentials", home / "batch"),
        "SessionToken": canaries.plant("session in the server's credentials", home / "batch"),
    }
    kept(home / "batch", json.dumps(keys))
    kept(home / "torn", canaries.plant("credentials that are none", home / "torn"))
    key = canaries.plant("key in the server's environment")
    return {**emulator.credentials, "AWS_SECRET_ACCESS_KEY": key}


def planted_on_host(canaries: Canaries, host: Path) -> str:
    """Secrets of a host: of jobs, and logins of two registries; gives the good one. Blocks."""
    home = host / "secrets"
    home.mkdir(mode=0o700, parents=True)
    for name, way in (("of-file", "file, process"), ("of-container", "file, container")):
        kept(home / name, canaries.plant(f"{way} of a host", home / name))
    logins = [canaries.plant(f"login of a registry that {way}", home / way) for way in LOGINS]
    for name, login in zip(LOGINS, logins, strict=True):
        kept(home / name, f"us:{login}")
    return f"us:{logins[0]}"


LOGINS = ("opens", "refuses")


async def joined(
    canaries: Canaries,
    words: CommandLine,
    yard: Machine,
    engine: DockerEngine,
    registries: tuple[str, str],
) -> None:
    """Make the machine a host, as people do it."""
    line = await words("hosts", "add", "yard-1")
    assert line.code == 0, line
    *_, server, _, token = line.out.split()
    canaries.know("join token", token)
    logins = [f"--registry={where}={name}" for where, name in zip(registries, LOGINS, strict=True)]
    options = ("--server", server, "--join", token, "--engine", engine.socket, *logins)
    await asyncio.to_thread(yard.start, *options)
    made = await words("tokens", "create", "someone", "--role", "user")
    canaries.know("token of a user", made.out.split()[-1])


async def known(client: AsyncClient) -> bool:
    """Whether the host is there, and with its secrets."""
    listed = await client.call(worker_pb2.ListHostsRequest(), worker_pb2.ListHostsResponse)
    return any(one.connected for one in listed.hosts)


def known_of_server(canaries: Canaries, data: Path) -> None:
    """What the server made for itself. Blocks."""
    for name in ("admin.token", "router.token"):
        canaries.know(name, (data / name).read_text().strip(), data / name)
    keys = json.loads((data / "runner.keys").read_text())
    canaries.know("key of runners' credentials", key_text(keys), data / "runner.keys")
    body = (data / "tls" / "ca.key").read_text().splitlines()[1]
    canaries.know("key of the authority", body, data / "tls" / "ca.key")


def key_text(keys: Any) -> str:
    """The longest text in a file of keys: the key itself."""
    return max(texts(keys), key=len)


def texts(node: Any) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(node, str):
        return [node]
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [text for one in below for text in texts(one)]


def kept(path: Path, content: str) -> None:
    """Write a file for its owner alone."""
    path.touch(0o600)
    path.write_text(content)


def kubeconfig_of(token: str) -> dict[str, Any]:
    """Access to a cluster that does not answer."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "me", "user": {"token": token}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }


def toml(**options: Any) -> str:
    """Options as an inline table's inside."""
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items())
