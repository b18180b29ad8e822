"""Where tasks answer: by their own network interface, or by the instance they are on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from hatoba.replica_names import HEADER, may_be
from hatoba_plugins.backends.ecs.calls import EcsCalls, Item
from hatoba_plugins.backends.ecs.definitions import PORT
from hatoba_plugins.backends.ecs.names import cluster_of
from hatoba_plugins.backends.ecs.states import main_container

PROBE_SECONDS = 2.0


def own_address(task: Mapping[str, Any]) -> str:
    """`HOST:PORT` of a task with an interface of its own; empty: it has none."""
    for attachment in task.get("attachments") or []:
        for detail in attachment.get("details") or []:
            if detail.get("name") == "privateIPv4Address" and detail.get("value"):
                return f"{detail['value']}:{PORT}"
    return ""


def instance_port(task: Mapping[str, Any]) -> int:
    """The instance's port that leads to the task; 0: there is none yet."""
    for binding in main_container(task).get("networkBindings") or []:
        if binding.get("containerPort") == PORT:
            return int(binding.get("hostPort") or 0)
    return 0


class Addresses:
    """Addresses of tasks; those of instances are looked up once."""

    def __init__(self, calls: EcsCalls, network: str) -> None:
        self._calls = calls
        self._by_instance = network == "bridge"
        self._instances: dict[str, str] = {}

    async def of(self, tasks: Iterable[Item]) -> dict[str, str]:
        """`HOST:PORT` by task; empty where there is none yet."""
        known = list(tasks)
        if not self._by_instance:
            return {task["taskArn"]: own_address(task) for task in known}
        await self._learn(known)
        return {task["taskArn"]: self._at_instance(task) for task in known}

    def _at_instance(self, task: Item) -> str:
        host = self._instances.get(str(task.get("containerInstanceArn")), "")
        port = instance_port(task)
        return f"{host}:{port}" if host and port else ""

    async def _learn(self, tasks: Iterable[Item]) -> None:
        new: dict[str, dict[str, None]] = {}
        for task in tasks:
            arn = task.get("containerInstanceArn")
            if arn and arn not in self._instances and instance_port(task):
                new.setdefault(cluster_of(task["taskArn"]), {})[arn] = None
        for cluster, arns in new.items():
            machines = {
                one["ec2InstanceId"]: one["containerInstanceArn"]
                for one in await self._calls.instances(cluster, list(arns))
                if one.get("ec2InstanceId")
            }
            for machine, host in (await self._calls.hosts(list(machines))).items():
                self._instances[machines[machine]] = host


async def answers(address: str, name: str) -> bool:
    """Whether the replica of this name answers there that it is ready.

    Another one may have the address by now. One that does not say who it is, is taken for it.
    """
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                request = f"GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                await writer.drain()
                head = await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, EOFError, TimeoutError, ValueError, asyncio.LimitOverrunError):
        return False
    status, *lines = head.decode("latin-1").split("\r\n")
    return status.split(" ")[1:2] == ["200"] and may_be(_said(lines), name)


def _said(lines: Iterable[str]) -> str:
    """Who answers, by the headers; empty: it is not said."""
    headers = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in headers if key.lower() == HEADER), "")
