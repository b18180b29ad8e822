"""Amazon ECS as far as it is here: ministack's real containers behind a proxy, and an image whose
entrypoint stands in for ours."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
from aiohttp import web
from aws_proxy import AwsProxy
from testbed_fixtures import AwsEmulator, DockerEngine

from hatoba_plugins.conformance.proxy import Call, Json

REGION = "us-east-1"
ENTRYPOINT = """#!/bin/sh
# Stands in for the runner and for the model server.
serve() {
    echo "serves as ${KIT_LIFE:-usual}"
    case "$KIT_LIFE" in
    never_ready) sleep 1000 & ;;
    crashes) (httpd -f -p 8080 -h /www & sleep 2; kill $!; exit 1) & ;;
    ends) exit 7 ;;
    *) httpd -f -p 8080 -h /www & ;;
    esac
}
run() {
    shift
    desk="${HATOBA_SERVER#grpc://}"
    wget -q -O /dev/null "http://$desk/claim/$HATOBA_ATTEMPT/$(hostname)" || exit 83
    "$@" &
}
command="$1"
shift
"$command" "$@"
child=$!
trap 'kill -TERM $child' TERM
wait $child
code=$?
# The wait ends when a signal comes; the child may go on for a while.
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""


def kit_image(engine: DockerEngine, registry: str, directory: Path) -> str:
    """The image of the kit's tasks, built and pushed: services pull what they start."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "hatoba-entrypoint").write_text(ENTRYPOINT)
    (directory / "hatoba-entrypoint").chmod(0o755)
    (directory / "readyz").write_text("ready\n")
    (directory / "Dockerfile").write_text(
        f"FROM {engine.busybox}\n"
        "COPY hatoba-entrypoint /bin/hatoba-entrypoint\n"
        "COPY readyz /www/readyz\n"
    )
    image = f"{registry}/ecs-kit:1"
    for arguments in (["build", "-q", "-t", image, str(directory)], ["push", image]):
        command = ["docker", "--host", engine.host, *arguments]
        plain = {**os.environ, "DOCKER_BUILDKIT": "0"}
        subprocess.run(command, check=True, capture_output=True, env=plain)
    return image


def ecs(emulator: AwsEmulator) -> Any:
    """A plain client, for what a test does behind the backend's back."""
    return _client(emulator, "ecs")


def make_log_group(emulator: AwsEmulator, name: str) -> str:
    """A group of that name in CloudWatch, as the template makes one."""
    _client(emulator, "logs").create_log_group(logGroupName=name)
    return name


def _client(emulator: AwsEmulator, service: str) -> Any:
    return boto3.client(
        service,
        endpoint_url=emulator.endpoint,
        region_name=REGION,
        aws_access_key_id="hatoba-test",
        aws_secret_access_key="hatoba-test-secret",
    )


@dataclass
class EcsProxy(AwsProxy):
    """What ministack leaves out: a service that shrinks stops no task that is protected."""

    _protected: set[str] = field(default_factory=set)

    async def forward(self, call: Call) -> web.Response:
        """Note what is protected; of a service with such tasks end others first."""
        operation, asked = self.dialect.operation(call), json.loads(call.body or b"{}")
        if operation == "updatetaskprotection":
            on = asked["protectionEnabled"]
            self._protected = self._protected.difference(asked["tasks"])
            self._protected |= set(asked["tasks"]) if on else set()
        if operation == "updateservice" and "desiredCount" in asked:
            await self._shrink(call, asked)
        return await super().forward(call)

    async def _shrink(self, call: Call, asked: Json) -> None:
        where = {"cluster": asked["cluster"]}
        listed = await self._ask_for(call, "ListTasks", {**where, "serviceName": asked["service"]})
        tasks = listed["taskArns"]
        others = [arn for arn in tasks if arn not in self._protected]
        if len(others) == len(tasks):
            return
        for arn in others[: max(0, len(tasks) - asked["desiredCount"])]:
            stop = {**where, "task": arn, "reason": "Service scaling down"}
            await self._ask_for(call, "StopTask", stop)

    async def _ask_for(self, call: Call, operation: str, asked: Json) -> Json:
        """A call of the proxy's own, beside the one that came."""
        service = call.headers["X-Amz-Target"].partition(".")[0]
        headers = {**call.headers, "X-Amz-Target": f"{service}.{operation}"}
        reply = await super().forward(
            replace(call, headers=headers, body=json.dumps(asked).encode())
        )
        assert isinstance(reply.body, bytes)
        told: Json = json.loads(reply.body)
        assert reply.status == 200, told
        return told


def clear(emulator: AwsEmulator, cluster: str) -> None:
    """End everything in a cluster."""
    client = ecs(emulator)
    for service in client.list_services(cluster=cluster)["serviceArns"]:
        client.delete_service(cluster=cluster, service=service, force=True)
    for task in client.list_tasks(cluster=cluster)["taskArns"]:
        client.stop_task(cluster=cluster, task=task)


class Curtain:
    """Hides tasks: new ones for a while, or those of a name for ever."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._hide_for = 0.0
        self._seen_at: dict[str, float] = {}
        self._names: dict[str, str] = {}

    def hide_new_for(self, seconds: float) -> None:
        """What is started from now on is hidden for so long."""
        self._hide_for = seconds

    def _hides(self, arn: str) -> bool:
        return self._names.get(arn) in self.names or time.monotonic() < self._seen_at.get(arn, 0.0)

    async def __call__(self, proxy: AwsProxy, operation: str, asked: Json, reply: Json) -> None:
        """Take what is hidden out of a reply."""
        del proxy, asked
        if operation == "runtask":
            for task in reply["tasks"]:
                self._names[task["taskArn"]] = task["startedBy"]
                self._seen_at[task["taskArn"]] = time.monotonic() + self._hide_for
        if operation == "listtasks":
            reply["taskArns"] = [arn for arn in reply["taskArns"] if not self._hides(arn)]
        if operation == "describetasks":
            reply["tasks"] = [one for one in reply["tasks"] if not self._hides(one["taskArn"])]
